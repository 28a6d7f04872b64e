"""The arguments of `update` besides gradients, state and parameters."""

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
    """Marks an extra argument that is on the devices of a single stage.

    The loss, for example, is computed on the last stage. It is sent to the other stages
    only if their updates depend on it.

    **Arguments:**

    - `value`: the argument, or its shape and dtype.
    - `stage`: the stage that holds it, counted from 0.

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
    """The shapes and dtypes of extra arguments, and the stages that hold them."""
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
    described = "the `extra_args` of `stage_local`"
    return shapes, TreeSplit.of(shapes, leaves, num_stages, described)


def split_extra_args(
    split: TreeSplit, extra_args: Mapping[str, Any], here: AbstractSet[int]
) -> tuple[PyTree, ...]:
    """The extra arguments of each stage; those of other processes may be missing."""
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
            f"The extra argument `{name}` is a function. The transformation would call "
            "it with all parameters, but no stage holds them all. Call it in the "
            "pipeline and pass its value to the transformation, or use a "
            "transformation without a function argument."
        )
    for leaf in leaves:
        if not (hasattr(leaf, "dtype") or isinstance(leaf, int | float | complex)):
            raise TypeError(
                f"The extra argument `{name}` must be an array, a number, a pytree of "
                f"these, or an `OnStage` of one of them, got {leaf!r}."
            )
    return jax.eval_shape(lambda x: x, value)
