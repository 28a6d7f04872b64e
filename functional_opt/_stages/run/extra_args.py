"""Puts extra arguments and hyperparameters on the devices of the stages."""

from collections.abc import Mapping, Sequence, Set as AbstractSet
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Sharding
from jaxtyping import PyTree

from ..derive.slices import Leaves
from ..extra import split_extra_args, values_of
from ..partition import is_param
from ..trees import TreeSplit
from .devices import is_concrete, place
from .executor import sharding_of


def placed_extra_args(
    split: TreeSplit,
    extra_args: Mapping[str, Any],
    here: AbstractSet[int],
    params_by_stage: Sequence[PyTree],
    meshes: Sequence[Sharding | None] | None,
) -> list[PyTree]:
    """The extra arguments of each stage, on its own devices.

    **Arguments:**

    - `split`: the stages that hold each leaf of the extra arguments.
    - `extra_args`: the arguments of `step`; some may be an `OnStage`.
    - `here`: the stages of this process.
    - `params_by_stage`: the parameters of each stage.
    - `meshes`: the shardings of the stages, if `meshes` of `stage_local` are set.
    """
    pieces = split_extra_args(split, values_of(extra_args), here)
    placed: list[PyTree] = [None] * len(pieces)
    for stage in here:
        params = jax.tree.leaves(params_by_stage[stage])
        first = next(filter(is_param, params), None)
        home = Home.of(first, None if meshes is None else meshes[stage])
        placed[stage] = home.put(pieces[stage])
    return placed


class Home(NamedTuple):
    """Where a stage is.

    **Attributes:**

    - `sharding`: a copy on each of its devices; None if it is on none yet.
    - `is_committed`: whether its values were put there by the user.
    """

    sharding: Sharding | None
    is_committed: bool

    @classmethod
    def of(cls, first: Any, mesh: Sharding | None) -> "Home":
        """Where its first leaf is, or its mesh, if it has one."""
        if mesh is not None:
            return cls(mesh, True)
        if not is_concrete(first):
            return cls(None, False)
        return cls(sharding_of(first), first.committed)

    def put(self, piece: PyTree) -> PyTree:
        if self.sharding is None:
            return piece
        if self.is_committed or _is_elsewhere(piece, self.sharding):
            return place(piece, self.sharding)
        # On the default device, as the parameters, and not committed to it, as the
        # results would be, too: the next step would have to compile again.
        return jax.device_put(piece)


class ReplicatedArrays:
    """Arrays that every stage holds: put on the devices of each, once.

    **Attributes:**

    - `values`: the arrays.
    """

    def __init__(self, arrays: Sequence[Any]) -> None:
        # To `jax.jit`, a weakly typed array is of another type.
        self.values = [jnp.asarray(array, array.dtype) for array in arrays]
        self._placed: dict[Home, Leaves] = {}

    def at(self, leaves: Leaves, mesh: Sharding | None = None) -> Leaves:
        """The arrays where a stage with such leaves is."""
        if not self.values:
            return ()
        home = Home.of(leaves[0] if leaves else None, mesh)
        if home in self._placed:
            return self._placed[home]
        placed = home.put(self.values)
        # Inside `jax.jit` even a copy of what is not traced is.
        if all(map(is_concrete, placed)):
            self._placed[home] = placed
        return placed


def _is_elsewhere(piece: PyTree, sharding: Sharding) -> bool:
    """Whether a leaf is committed to other devices."""
    return any(
        leaf.committed and leaf.sharding.device_set != sharding.device_set
        for leaf in filter(is_concrete, jax.tree.leaves(piece))
    )
