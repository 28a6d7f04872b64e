"""What `update` takes besides gradients, state and parameters."""

from collections.abc import Mapping, Set as AbstractSet
from dataclasses import dataclass
from typing import Any

import jax
from jaxtyping import PyTree

from .._slicing.errors import CrossStageError
from .._slicing.stage_sets import StageSet
from .._types import typed
from .trees import TreeSplit


@typed
@dataclass(frozen=True)
class OnStage:
    """Says that an extra argument is known to one stage only.

    The loss, for example, is on the devices of the last stage. It travels to the
    others if, and when, their updates need it.

    **Arguments:**

    - `value`: the argument, or its shape and dtype.
    - `stage`: the stage that has it, from 0.

    !!! Example

        >>> import functional_opt as fo, jax.numpy as jnp, optax
        >>> params = {"embed": jnp.ones((8, 2)), "head": jnp.ones((2, 8))}
        >>> partition = fo.partition(params, {"embed": 0, "head": 1})
        >>> tx = optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau())
        >>> loss = fo.OnStage(jnp.float32(0.5), 1)
        >>> staged = fo.stage_local(tx, params, partition, extra_args={"value": loss})
        >>> staged.rounds
        1
    """

    value: Any
    stage: int


def describe_extra_args(
    extra_args: Mapping[str, Any], num_stages: int
) -> tuple[dict[str, PyTree], TreeSplit]:
    """The shapes of extra arguments, and which stages are given them."""
    shapes = {name: _shapes(name, _value(arg)) for name, arg in extra_args.items()}
    everywhere = frozenset(range(num_stages))
    stage_sets: dict[str, StageSet] = {}
    for name, arg in extra_args.items():
        stage_sets[name] = _stage_set(name, arg, everywhere)
    leaves = [
        stage_sets[name]
        for name in sorted(shapes)
        for _ in jax.tree.leaves(shapes[name])
    ]
    described = "the extra arguments that `stage_local` was given"
    return shapes, TreeSplit.of(shapes, leaves, num_stages, described)


def split_extra_args(
    split: TreeSplit, extra_args: Mapping[str, Any], here: AbstractSet[int]
) -> tuple[PyTree, ...]:
    """Each stage's extra arguments; those of other processes need not be given."""
    stage_sets = jax.tree.unflatten(split.structure, split.stage_sets)
    elsewhere = {
        name: sets_of_arg
        for name, sets_of_arg in stage_sets.items()
        if all(map(here.isdisjoint, jax.tree.leaves(sets_of_arg)))
    }
    return split.pieces(split.flatten_whole("extra_args", {**extra_args, **elsewhere}))


def values_of(extra_args: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _value(arg) for name, arg in extra_args.items()}


def _value(arg: Any) -> Any:
    return arg.value if isinstance(arg, OnStage) else arg


def _stage_set(name: str, arg: Any, everywhere: StageSet) -> StageSet:
    if not isinstance(arg, OnStage):
        return everywhere
    if arg.stage not in everywhere:
        raise ValueError(
            f"The extra argument `{name}` is on stage {arg.stage}, but the stages are "
            f"0 to {len(everywhere) - 1}."
        )
    return frozenset({arg.stage})


def _shapes(name: str, value: Any) -> PyTree:
    leaves = jax.tree.leaves(value)
    if any(map(callable, leaves)):
        raise CrossStageError(
            f"The extra argument `{name}` is a function. The transformation would "
            "call it with the whole parameters, which no stage has. Call it in the "
            "pipeline, and give the transformation its value; or use a transformation "
            "that needs no function."
        )
    for leaf in leaves:
        if not (hasattr(leaf, "dtype") or isinstance(leaf, int | float | complex)):
            raise TypeError(
                f"The extra argument `{name}` must be an array, a number, a tree of "
                f"these, or one `OnStage` of it, got {leaf!r}."
            )
    return jax.eval_shape(lambda x: x, value)
