"""How messages travel between the devices of one process."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.core import Tracer
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding
from jaxtyping import Array


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


def gather(
    messages: Sequence[Array | None], placements: Sequence[Sharding | None]
) -> list[list[Array | None]]:
    """Gives every stage every other's message.

    **Arguments:**

    - `messages`: for each stage its vector, on its own devices; None if it has
        nothing to say.
    - `placements`: where each stage wants what it receives.

    **Returns:** for each stage the list of all messages, on its devices.
    """
    devices = list(dict.fromkeys(d for p in placements if p for d in _devices(p)))
    if len(devices) <= 1:
        return [list(messages)] * len(placements)
    everywhere = NamedSharding(Mesh(np.array(devices), ("stage",)), PartitionSpec())
    sent = [message for message in messages if message is not None]
    received = iter(jax.device_put(sent, everywhere))
    copies = [None if m is None else _by_device(next(received)) for m in messages]
    return [
        [None if copy is None else _at(copy, placement) for copy in copies]
        for placement in placements
    ]


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
