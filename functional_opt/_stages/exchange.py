"""How messages travel between the devices of one process."""

from collections.abc import Collection, Sequence
from typing import Any

import jax
import numpy as np
from jax.core import Tracer
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding
from jaxtyping import Array, PyTree


def placement_of(leaf: Any) -> Sharding | None:
    """Where small values go that are to be used with `leaf`; None for any place."""
    if isinstance(leaf, Tracer) or not isinstance(leaf, jax.Array):
        return None
    sharding = leaf.sharding
    return on_mesh(sharding.mesh) if isinstance(sharding, NamedSharding) else sharding


def on_mesh(mesh: Mesh | jax.Device) -> Sharding:
    """A whole copy on every device of a mesh."""
    if isinstance(mesh, Mesh):
        return NamedSharding(mesh, PartitionSpec())
    return jax.sharding.SingleDeviceSharding(mesh)


def place(tree: PyTree, placement: Sharding | None) -> PyTree:
    """Puts arrays where they are needed. Python's numbers are at home anywhere."""
    if placement is None:
        return tree
    return jax.tree.map(
        lambda x: jax.device_put(x, placement) if isinstance(x, jax.Array) else x, tree
    )


def gather(
    messages: Sequence[Array | None],
    placements: Sequence[Sharding | None],
    readers: Sequence[Collection[int]],
) -> list[list[Array | None]]:
    """Gives every stage the messages that it reads.

    **Arguments:**

    - `messages`: for each stage its vector, on its own devices; None if it has
        nothing to say.
    - `placements`: where each stage wants what it receives.
    - `readers`: for each stage, which stages read what it says.

    **Returns:** for each stage the list of all messages, on its devices, and None for
    those that it does not read.
    """
    devices = {device for p in placements if p for device in p.device_set}
    if len(devices) <= 1:
        return [list(messages)] * len(placements)
    sent = [
        (message, _copies_for([placements[reader] for reader in audience], devices))
        for message, audience in zip(messages, readers, strict=True)
        if message is not None
    ]
    received = iter(jax.device_put([m for m, _ in sent], [where for _, where in sent]))
    copies = [None if m is None else _by_device(next(received)) for m in messages]
    return [
        [
            _at(copy, placement) if copy is not None and stage in audience else None
            for copy, audience in zip(copies, readers, strict=True)
        ]
        for stage, placement in enumerate(placements)
    ]


def _copies_for(
    placements: Sequence[Sharding | None], default: Collection[jax.Device]
) -> Sharding:
    """A whole copy on every device of some placements."""
    needed = {device for p in placements if p for device in p.device_set} or default
    devices = np.array(sorted(needed, key=lambda device: device.id))
    return on_mesh(Mesh(devices, ("stage",)))


def _devices(placement: Sharding) -> list[jax.Device]:
    return sorted(placement.device_set, key=lambda device: device.id)


def _by_device(array: Array) -> dict[jax.Device, Array]:
    return {shard.device: shard.data for shard in array.addressable_shards}


def _at(copies: dict[jax.Device, Array], placement: Sharding | None) -> Array:
    if placement is None:
        return next(iter(copies.values()))
    shards = [copies[device] for device in _devices(placement)]
    if len(shards) == 1:
        return shards[0]
    return jax.make_array_from_single_device_arrays(shards[0].shape, placement, shards)
