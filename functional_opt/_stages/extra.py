"""The arguments of `update` besides gradients, state and parameters."""

from collections.abc import Mapping, Set as AbstractSet
from dataclasses import dataclass
from typing import Any

import jax
from jaxtyping import PyTree

from .._slicing.errors import CrossStageError
from .._slicing.stage_sets import StageSet
from .._types import typed
from .trees import leaves_of, TreeSplit


@typed
@dataclass(frozen=True)
class OnStage:
    """Marks an extra argument that is on the devices of a single stage.

    The loss, for example, is computed on the last stage. It is sent to the other stages
    only if their updates depend on it. The leaves of a tree may be on different stages,
    each in an `OnStage` of its own.

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
    values = values_of(extra_args)
    shapes = {name: _shapes(name, value) for name, value in values.items()}
    everywhere = frozenset(range(num_stages))
    stage_sets: dict[str, list[StageSet]] = {}
    for name, arg in extra_args.items():
        stage_sets[name] = _stage_sets(name, arg, everywhere)
    leaves = [stages for name in sorted(shapes) for stages in stage_sets[name]]
    described = "the `extra_args` of `stage_local`"
    return shapes, TreeSplit.of(shapes, leaves, num_stages, described)


def split_extra_args(
    split: TreeSplit, extra_args: Mapping[str, Any], here: AbstractSet[int]
) -> tuple[PyTree, ...]:
    """The extra arguments of each stage; those of other processes may be missing.

    In a tree with leaves of this process, None stands for a leaf that is missing.
    """
    given = dict(extra_args)
    stage_sets = jax.tree.unflatten(split.structure, split.stage_sets)
    for name, sets_of_arg in stage_sets.items():
        are_elsewhere = list(map(here.isdisjoint, jax.tree.leaves(sets_of_arg)))
        if all(are_elsewhere):
            given[name] = sets_of_arg
        elif any(are_elsewhere) and name in given:
            given[name] = _filled(sets_of_arg, given[name], here)
    return split.pieces(split.flatten_whole("extra_args", given))


def _filled(stage_sets: PyTree, arg: PyTree, here: AbstractSet[int]) -> PyTree:
    """An argument with anything in place of the leaves of other processes."""
    sets, structure = jax.tree.flatten(stage_sets)
    leaves = leaves_of(structure, arg, or_none=True)
    if leaves is None:
        return arg
    filled = [
        stages if leaf is None and here.isdisjoint(stages) else leaf
        for stages, leaf in zip(sets, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, filled)


def values_of(extra_args: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: jax.tree.map(_value, arg, is_leaf=_is_on_stage)
        for name, arg in extra_args.items()
    }


def _is_on_stage(node: Any) -> bool:
    return isinstance(node, OnStage)


def _value(node: Any) -> Any:
    return node.value if isinstance(node, OnStage) else node


def _stage_sets(name: str, arg: Any, everywhere: StageSet) -> list[StageSet]:
    """The stages that hold each leaf of an extra argument."""
    found: list[StageSet] = []
    for node in jax.tree.leaves(arg, is_leaf=_is_on_stage):
        if not isinstance(node, OnStage):
            found.append(everywhere)
            continue
        if node.stage not in everywhere:
            raise ValueError(
                f"The extra argument `{name}` is on stage {node.stage}, but the stages "
                f"are 0 to {len(everywhere) - 1}."
            )
        found += [frozenset({node.stage})] * len(jax.tree.leaves(node.value))
    return found


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
                f"these, or one with an `OnStage` around some of them, got {leaf!r}."
            )
    return jax.eval_shape(lambda x: x, value)
