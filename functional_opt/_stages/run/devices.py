"""The devices of the stages, and copies of values to them."""

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.sharding import (
    Mesh,
    NamedSharding,
    PartitionSpec,
    Sharding,
    SingleDeviceSharding,
)
from jaxtyping import Array, PyTree

from ..._slicing.stage_sets import stages_text


def is_concrete(leaf: Any) -> bool:
    """Whether a leaf is a `jax.Array` with a value, not a tracer."""
    return isinstance(leaf, jax.Array) and not isinstance(leaf, Tracer)


@functools.lru_cache(maxsize=4096)
def on_mesh(mesh: Mesh | jax.Device) -> Sharding:
    """The sharding that replicates a value on every device of a mesh."""
    if isinstance(mesh, Mesh):
        return NamedSharding(mesh, PartitionSpec())
    return SingleDeviceSharding(mesh)


def shardings_on(
    meshes: Sequence[Mesh | jax.Device], num_stages: int
) -> tuple[Sharding, ...]:
    """Checks the `meshes` of `stage_local` and returns the sharding of each stage."""
    if len(meshes) != num_stages:
        raise ValueError(
            f"`meshes` must have one mesh or device for each of the {num_stages} "
            f"stages, got {len(meshes)}."
        )
    shardings = tuple(map(on_mesh, meshes))
    group_by_devices(shardings)
    return shardings


def check_on_meshes(
    found: Sequence[Sharding | None], meshes: Sequence[Sharding | None]
) -> None:
    """Raises an error if a stage is on other devices than `meshes` of `stage_local`."""
    for stage, (given, wanted) in enumerate(zip(found, meshes, strict=True)):
        if given is None or wanted is None or given.device_set == wanted.device_set:
            continue
        raise ValueError(
            f"`meshes` puts stage {stage} on {devices_text(wanted.device_set)}, but "
            f"its leaves are on {devices_text(given.device_set)}. Move them with "
            "`jax.device_put`."
        )


def check_one_program(
    leaves_by_stage: Iterable[Sequence[Any] | None],
    meshes: Sequence[Sharding] | None,
) -> None:
    """Refuses to be traced into one program if the devices of the stages differ."""
    concrete = [
        leaf.sharding
        for leaves in leaves_by_stage
        for leaf in filter(is_concrete, leaves or ())
        if leaf.committed
    ]
    if len({frozenset(s.device_set) for s in meshes or concrete}) > 1:
        raise ValueError(
            "Stages on different devices cannot be part of one larger program, such as "
            "`jax.jit` of a function that calls `step`. Call `step`, or `whole.step` "
            "for whole trees, outside of `jit`: each stage is compiled anyway. Or call "
            "the pure functions of `programs` in programs of your own, or `over_axis` "
            "inside `jax.shard_map`."
        )


def place(tree: PyTree, sharding: Sharding | None) -> PyTree:
    """Replicates the leaves of a tree on all devices of a stage."""
    if sharding is None:
        return tree
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)
    # `jax.device_put` would exchange messages with other processes,
    # which may not call it: each process puts its own copies.
    copies = [jax.device_put(tree, device) for device in sharding.addressable_devices]

    def whole(*leaves: Array) -> Array:
        shape = leaves[0].shape
        return jax.make_array_from_single_device_arrays(shape, sharding, list(leaves))

    return jax.tree.map(whole, *copies)


def put(leaf: Array, sharding: Sharding) -> Array:
    """A copy of a leaf in its own buffers, of which this process makes its shards."""
    # From one device to a sharding that contains it, `jax.device_put` reuses the buffer
    # even with `may_alias=False`; donating the copy would then delete the leaf.
    copy = jnp.copy(leaf)
    if sharding.is_fully_addressable:
        return jax.device_put(copy, sharding)
    return jax.make_array_from_callback(copy.shape, sharding, lambda index: copy[index])


def group_by_devices(shardings: Sequence[Sharding | None]) -> list[list[int]]:
    """Groups the stages that share their devices.

    **Raises:** `ValueError` if stages share some of their devices but not all.
    """
    groups: dict[frozenset[jax.Device], list[int]] = {}
    for stage, sharding in enumerate(shardings):
        if sharding is not None:
            groups.setdefault(frozenset(sharding.device_set), []).append(stage)
    taken: dict[jax.Device, int] = {}
    for devices, (stage, *_) in groups.items():
        for device in devices:
            if device in taken:
                raise ValueError(
                    f"{stages_text(frozenset({taken[device], stage}))} share {device}, "
                    "but not all of their devices. Two stages must have the same "
                    "devices or no device in common."
                )
            taken[device] = stage
    return list(groups.values())


@functools.lru_cache(maxsize=4096)
def device_order(sharding: Sharding) -> tuple[jax.Device, ...]:
    """The devices of a stage, in the order in which its sharding lists them."""
    mesh = getattr(sharding, "mesh", None)
    return tuple(mesh.devices.flat if isinstance(mesh, Mesh) else sharding.device_set)


def devices_text(devices: Iterable[jax.Device]) -> str:
    return ", ".join(map(str, sorted(devices, key=lambda device: device.id)))
