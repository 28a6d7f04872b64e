"""Splits an Optax transformation into the functions of its stages."""

import contextlib
import gc
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
from jaxtyping import PyTree

from ..._slicing.canonical import Canonical
from ..extra import describe_extra_args
from ..hyperparameters import Hyperparameters
from ..partition import StageOf, StagePartition
from ..trees import TreeSplit
from .functions import Likes, SplitFunction
from .marks import (
    marks_of_extra_args,
    marks_of_grads,
    marks_of_params,
    marks_of_state,
)
from .ownership import owners_by_init, owners_by_use, owners_by_word
from .ties import Ties
from .tracing import shapes_of_params, trace_init, trace_update


@dataclass(frozen=True, eq=False)
class Derived:
    """An Optax transformation, split into functions of stages.

    **Attributes:**

    - `init`: maps parameters and hyperparameters to a state.
    - `step`: maps parameters, state, gradients, extra arguments and hyperparameters to
        updates, new parameters and a new state.
    - `ties`: the sums of tied gradients, computed before `step`; None if no parameter
        is tied.
    """

    init: SplitFunction
    step: SplitFunction
    ties: Ties | None


# The names of the results of each public function.
INIT = ("state",)
STEP = ("params", "state")
UPDATE = ("updates", "state")


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Pauses the garbage collector.

    Traces and slices are many objects that stay, and each of its collections visits
    those of the whole process: a third of the time of `derive` for 320 leaves.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@_no_garbage_collection()
def derive(
    hyperparameters: Hyperparameters,
    params: PyTree,
    partition: StagePartition,
    grads: PyTree | None,
    extra_args: Mapping[str, Any],
    state_stage_of: StageOf | None,
    travel_limit: int,
) -> Derived:
    """Traces and splits a transformation. The arguments are those of `stage_local`."""
    num_stages, split = partition.num_stages, partition.params
    tx, arrays = hyperparameters.tx, hyperparameters.split(num_stages)
    shapes = shapes_of_params(params, partition)
    given = shapes if grads is None else shapes_of_params(grads, partition, "grads")
    extra_shapes, extra = describe_extra_args(extra_args, num_stages)
    state = jax.eval_shape(tx.init, shapes)
    update = trace_update(hyperparameters, shapes, state, given, extra_shapes)
    owners = owners_by_init(tx, shapes, split, state)
    if owners is None:
        after = [*split.stage_sets, *extra.stage_sets, *arrays.stage_sets]
        owners = owners_by_use(
            update, before=split.stage_sets, after=after, num_stages=num_stages
        )
    owners = owners_by_word(state_stage_of, state, owners, num_stages)
    state_split = TreeSplit.of(
        state, owners, num_stages, "the state of this transformation"
    )
    like_params, like_state = _each("params", split), _each("state", state_split)
    canonical, of_params = Canonical(), marks_of_params(shapes)
    of_arrays = marks_of_extra_args(hyperparameters.arrays, shapes)
    step = SplitFunction(
        update,
        {
            "params": split,
            "state": state_split,
            "grads": split,
            "extra_args": extra,
            "hyperparameters": arrays,
        },
        {"updates": split, "params": split, "state": state_split},
        {"updates": like_params, "params": like_params, "state": like_state},
        [STEP, UPDATE],
        canonical,
        marks=[
            *of_params,
            *marks_of_state(tx, shapes, state),
            *marks_of_grads(given, shapes),
            *marks_of_extra_args(extra_shapes, shapes),
            *of_arrays,
        ],
        travel_limit=travel_limit,
    )
    init = SplitFunction(
        trace_init(hyperparameters, shapes),
        {"params": split, "hyperparameters": arrays},
        {"state": state_split},
        {"state": _params_of_state(shapes, state)},
        [INIT],
        canonical,
        marks=[*of_params, *of_arrays],
        travel_limit=travel_limit,
    )
    return Derived(init, step, Ties.of(step))


def _each(name: str, split: TreeSplit) -> list[Likes]:
    return [[(name, i)] for i in range(len(split.paths))]


def _params_of_state(params: PyTree, state: PyTree) -> list[Likes]:
    """For each leaf of a state, the parameter of the same path and shape, if any.

    The moment `[0].mu['w']` of Adam ends with the path of the parameter `['w']`: it is
    sharded like this parameter.
    """
    named = {
        path: (i, leaf.shape)
        for i, (path, leaf) in enumerate(jax.tree.leaves_with_path(params))
    }
    likes = []
    for path, leaf in jax.tree.leaves_with_path(state):
        ends = (path[start:] for start in range(len(path) + 1))
        found = [named[end] for end in ends if end in named]
        likes.append([("params", i) for i, shape in found if shape == leaf.shape])
    return likes
