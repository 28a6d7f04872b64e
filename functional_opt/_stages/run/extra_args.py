"""Puts extra arguments on the devices of the stages that require them."""

from collections.abc import Mapping, Sequence, Set as AbstractSet
from typing import Any

import jax
from jax.sharding import Sharding
from jaxtyping import PyTree

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
        piece, params = pieces[stage], jax.tree.leaves(params_by_stage[stage])
        first = next(filter(is_param, params), None)
        first = first if is_concrete(first) else None
        sharding = sharding_of(first) if meshes is None else meshes[stage]
        committed = meshes is not None or getattr(first, "committed", False)
        if committed or (sharding is not None and _is_elsewhere(piece, sharding)):
            placed[stage] = place(piece, sharding)
        elif sharding is not None:
            # The parameters are uncommitted. Committed extra arguments would commit the
            # new parameters too, for which the next step would compile again.
            placed[stage] = jax.device_put(piece)
        else:
            placed[stage] = piece
    return placed


def _is_elsewhere(piece: PyTree, sharding: Sharding) -> bool:
    """Whether a leaf is committed to other devices."""
    return any(
        leaf.committed and leaf.sharding.device_set != sharding.device_set
        for leaf in filter(is_concrete, jax.tree.leaves(piece))
    )
