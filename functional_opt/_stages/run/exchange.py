"""How messages travel between devices, of one process or of many."""

import contextlib
import functools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding
from jaxtyping import Array, PyTree, UInt32

from ..._slicing.stage_sets import stages_text


Vector = UInt32[Array, " words"]


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
    """Puts values where they are needed."""
    if placement is None:
        return tree
    if placement.is_fully_addressable:
        return jax.device_put(tree, placement)
    devices = placement.addressable_devices
    copies = [jax.device_put(tree, device) for device in devices]
    return jax.tree.map(lambda *leaves: _whole(leaves, placement), *copies)


def _whole(copies: Sequence[Array], placement: Sharding) -> Array:
    """A leaf that is the same on every device, of which this process has some."""
    return jax.make_array_from_single_device_arrays(
        copies[0].shape, placement, list(copies)
    )


def put(leaf: Array, sharding: Sharding) -> Array:
    """A copy of a leaf in memory of its own; only the shards of this process."""
    # `device_put` with `may_alias=False` aliases what is on one of several devices.
    copy = jnp.copy(leaf)
    if sharding.is_fully_addressable:
        return jax.device_put(copy, sharding)
    return jax.make_array_from_callback(copy.shape, sharding, lambda index: copy[index])


def group_by_devices(
    placements: Sequence[Sharding | None],
) -> dict[frozenset[jax.Device], list[int]]:
    """The stages that share their devices.

    **Raises:** `ValueError` if stages share some devices but not all.
    """
    groups: dict[frozenset[jax.Device], list[int]] = {}
    for stage, placement in enumerate(placements):
        if placement is not None:
            groups.setdefault(frozenset(placement.device_set), []).append(stage)
    taken: dict[jax.Device, int] = {}
    for devices, (stage, *_) in groups.items():
        for device in devices:
            if device in taken:
                raise ValueError(
                    f"{stages_text(frozenset({taken[device], stage}))} share {device}, "
                    "but not all of their devices. Give stages the same devices, or "
                    "no device in common."
                )
            taken[device] = stage
    return groups


def placements_on(
    meshes: Sequence[Mesh | jax.Device], num_stages: int
) -> tuple[Sharding, ...]:
    """For each stage where it is, if `meshes` is what `stage_local` allows."""
    if len(meshes) != num_stages:
        raise ValueError(
            f"`meshes` must have one mesh or device for each of the {num_stages} "
            f"stages, got {len(meshes)}."
        )
    placements = tuple(map(on_mesh, meshes))
    group_by_devices(placements)
    return placements


@dataclass(frozen=True, eq=False)
class Exchange:
    """A round of exchange: each of some stages sends a vector to all of some stages.

    The devices of a group of stages hold one row or more of a matrix of devices, in
    whose columns are copies. A vector is on all devices of its stage; one program on
    all devices gathers the vectors into a table. Where stages share devices, their
    vectors are gathered side by side.

    **Attributes:**

    - `senders`: the stages that send.
    - `num_words`: the length of each vector.
    - `placements`: for each stage where it is, and wants what it receives; None for
        stages that take no part.
    """

    senders: tuple[int, ...]
    num_words: int
    placements: tuple[Sharding | None, ...]

    @functools.cached_property
    def _groups(self) -> list[tuple[list[jax.Device], list[int]]]:
        """The devices of each group of stages, and those of its stages that send."""
        return [
            (_in_order(devices), [s for s in self.senders if s in stages])
            for devices, stages in group_by_devices(self.placements).items()
        ]

    @functools.cached_property
    def _mesh(self) -> Mesh:
        copies = math.gcd(*(len(devices) for devices, _ in self._groups))
        devices = np.array([device for group, _ in self._groups for device in group])
        return Mesh(devices.reshape(-1, copies), ("stage", "copy"))

    @functools.cached_property
    def _sharding(self) -> NamedSharding:
        return NamedSharding(self._mesh, PartitionSpec("stage"))

    @functools.cached_property
    def _slots(self) -> list[dict[jax.Device, int]]:
        """For each vector gathered side by side, the stage whose vector it is."""
        most = max(len(senders) for _, senders in self._groups)
        return [
            {
                device: senders[slot]
                for devices, senders in self._groups
                if slot < len(senders)
                for device in devices
            }
            for slot in range(most)
        ]

    @functools.cached_property
    def _rows(self) -> np.ndarray:
        """Where in the matrix of all slots the vector of each sender is."""
        first = self._mesh.devices[:, 0]
        found = {
            stages[device]: slot * len(first) + row
            for slot, stages in enumerate(self._slots)
            for row, device in reversed(list(enumerate(first)))
            if device in stages
        }
        return np.array([found[sender] for sender in self.senders])

    @functools.cached_property
    def _addressable(self) -> list[jax.Device]:
        index = jax.process_index()
        return [d for d in self._mesh.devices.flat if d.process_index == index]

    @functools.cached_property
    def _nothing(self) -> dict[jax.Device, Vector]:
        """A vector for each device that has a slot without a sender."""
        zeros = np.zeros(self.num_words, np.uint32)
        return {
            device: jax.device_put(zeros, device)
            for device in self._addressable
            if any(device not in stages for stages in self._slots)
        }

    @functools.cached_property
    def gather(self) -> jax.stages.Wrapped:
        """The program: from the slots to the table, on all devices."""
        everywhere = NamedSharding(self._mesh, PartitionSpec())

        def gather(slots: Sequence[Array]) -> UInt32[Array, "senders words"]:
            slots = [jax.lax.with_sharding_constraint(x, everywhere) for x in slots]
            rows = jnp.concatenate(slots).reshape(-1, self.num_words)
            in_order = np.array_equal(self._rows, np.arange(len(rows)))
            return rows if in_order else rows[self._rows]

        return jax.jit(gather, out_shardings=everywhere)

    def __call__(self, messages: Sequence[Vector | None]) -> list[Any]:
        """Gives every stage a table of what the senders said; None if it is elsewhere.

        **Arguments:**

        - `messages`: for each stage of this process its vector, on its own devices.
        """
        if len(self._groups) <= 1:
            return [[messages[sender] for sender in self.senders]] * len(messages)
        if not self._addressable:
            return [None] * len(messages)
        slots = [self._assemble(messages, slot) for slot in self._slots]
        with failures_named(self._mesh.devices.flat):
            table = self.gather(slots)
        copies = dict(shards_of(table))
        return [self._at(copies, placement) for placement in self.placements]

    def _assemble(
        self, messages: Sequence[Vector | None], stages: dict[jax.Device, int]
    ) -> Array:
        """One array of all vectors of a slot, which stay where they are."""
        by_device: dict[jax.Device, Vector] = {}
        for stage in dict.fromkeys(stages.values()):
            message = messages[stage]
            if message is not None:
                by_device.update(shards_of(message))
        shards = [
            by_device[d] if d in stages else self._nothing[d] for d in self._addressable
        ]
        return jax.make_array_from_single_device_arrays(
            (len(self._mesh.devices) * self.num_words,), self._sharding, shards
        )

    def _at(self, copies: dict[jax.Device, Array], placement: Sharding | None) -> Any:
        if placement is None:
            return next(iter(copies.values()))
        shards = [copies[d] for d in _in_order(placement.device_set) if d in copies]
        if len(placement.device_set) == 1 or not shards:
            return shards[0] if shards else None
        shape = len(self.senders), self.num_words
        return jax.make_array_from_single_device_arrays(shape, placement, shards)


def device_order(placement: Sharding) -> list[jax.Device]:
    """The devices of a placement, in the order in which JAX numbers them."""
    mesh = getattr(placement, "mesh", None)
    return list(mesh.devices.flat if isinstance(mesh, Mesh) else placement.device_set)


@contextlib.contextmanager
def failures_named(devices: Iterable[jax.Device]) -> Iterator[None]:
    """Says which processes take part in an exchange that fails."""
    try:
        yield
    # The kinds of error that XLA raises, for which JAX has more than one class.
    except (ValueError, RuntimeError) as error:
        indices = sorted({device.process_index for device in devices})
        raise RuntimeError(
            f"An exchange between processes {', '.join(map(str, indices))} failed. If "
            "one of them has died, start all of them again from the last checkpoint."
        ) from error


def devices_text(devices: Iterable[jax.Device]) -> str:
    return ", ".join(map(str, _in_order(devices)))


def _in_order(devices: Iterable[jax.Device]) -> list[jax.Device]:
    return sorted(devices, key=lambda device: device.id)


def shards_of(array: Array) -> Iterable[tuple[jax.Device, Array]]:
    return ((shard.device, shard.data) for shard in array.addressable_shards)
