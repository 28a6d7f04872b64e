"""A partition that is inferred from the devices of the parameters."""

from collections.abc import Sequence
from typing import Any

import jax
from jax.core import Tracer
from jax.sharding import Mesh
from jaxtyping import PyTree

from .._paths import path_text
from .._slicing.stage_sets import StageSet
from .._types import typed
from .partition import partition, StagePartition
from .run.devices import devices_text, on_mesh


Devices = frozenset[jax.Device]


@typed
def partition_by_devices(
    tree: PyTree, meshes: Sequence[Mesh | jax.Device] | None = None
) -> StagePartition:
    """Infers the stage of each parameter from the devices that it is on.

    Many pipeline runtimes hold one tree, with each leaf on the devices of its stage. A
    parameter on the devices of several stages, such as a tied embedding that is
    replicated over two meshes, is owned by all of them.

    **Arguments:**

    - `tree`: the parameters or gradients, or `jax.ShapeDtypeStruct`s with shardings.
        Leaves that are not inexact arrays may be on any device.
    - `meshes`: for each stage its device or its mesh. If omitted, the stages are the
        smallest sets of devices that hold a parameter, ordered by their lowest device.

    **Returns:** a `StagePartition`, for `stage_local`.

    **Raises:** `ValueError` with the path of a parameter that has no sharding, or that
    is not on all devices of each of its stages.

    !!! Example

        >>> import functional_opt as fo, jax, jax.numpy as jnp
        >>> params = {"embed": jnp.ones((8, 2)), "head": jnp.ones((2, 8))}
        >>> fo.partition_by_devices(params, jax.devices()[:1]).num_stages
        1
    """
    if meshes is None:
        stages = _smallest(tree)
    else:
        stages = [frozenset(on_mesh(mesh).device_set) for mesh in meshes]
        if sum(map(len, stages)) > len(frozenset().union(*stages)):
            raise ValueError(
                "`meshes` of `partition_by_devices` share devices, so the stage of a "
                "parameter cannot be inferred from its devices. Use `fo.partition` to "
                "assign stages."
            )

    def stage_of(path: tuple[Any, ...], leaf: Any) -> StageSet:
        devices = _devices(path, leaf)
        owners = [s for s, own in enumerate(stages) if own <= devices]
        if frozenset().union(*(stages[s] for s in owners)) != devices:
            raise ValueError(
                f"`{path_text(path)}` is on {devices_text(devices)}, which are not the "
                "devices of one or more stages. The stages are on "
                f"{'; '.join(map(devices_text, stages))}. Put it on all devices of its "
                "stage, or pass the devices of the stages as `meshes`."
            )
        return frozenset(owners)

    return partition(tree, stage_of, num_stages=len(stages))


def _smallest(tree: PyTree) -> list[Devices]:
    """The sets of devices of parameters that contain no other such set."""
    found: dict[Devices, None] = {}

    def note(path: tuple[Any, ...], leaf: Any) -> int:
        found[_devices(path, leaf)] = None
        return 0

    partition(tree, note)
    smallest = [one for one in found if not any(other < one for other in found)]
    return sorted(smallest, key=lambda devices: min(d.id for d in devices))


def _devices(path: tuple[Any, ...], leaf: Any) -> Devices:
    sharding = getattr(leaf, "sharding", None)
    if sharding is None or isinstance(leaf, Tracer):
        raise ValueError(
            f"`{path_text(path)}` is not on a device: it is a {type(leaf).__name__} "
            "without a sharding. Put it on the devices of its stage with "
            "`jax.device_put`, or use `fo.partition`."
        )
    return frozenset(sharding.device_set)
