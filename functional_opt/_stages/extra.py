"""What `update` takes besides gradients, state and parameters."""

from collections.abc import Mapping, Set as AbstractSet
from dataclasses import dataclass
from typing import Any

import jax
from jaxtyping import PyTree

from .._slicing.errors import CrossStageError
from .._slicing.stage_sets import StageSet as Place
from .._types import typed
from .trees import Cut


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


def cut_extra_args(
    extra_args: Mapping[str, Any], num_stages: int
) -> tuple[dict[str, PyTree], Cut]:
    """The shapes of extra arguments, and which stages are given them."""
    shapes = {name: _shapes(name, _value(arg)) for name, arg in extra_args.items()}
    everywhere = frozenset(range(num_stages))
    places: dict[str, Place] = {}
    for name, arg in extra_args.items():
        places[name] = _place(name, arg, everywhere)
    leaves = [
        places[name] for name in sorted(shapes) for _ in jax.tree.leaves(shapes[name])
    ]
    described = "the extra arguments that `stage_local` was given"
    return shapes, Cut.of(shapes, leaves, num_stages, described)


def split_extra_args(
    cut: Cut, extra_args: Mapping[str, Any], here: AbstractSet[int]
) -> tuple[PyTree, ...]:
    """Each stage's extra arguments; those of other processes need not be given."""
    places = jax.tree.unflatten(cut.structure, cut.places)
    elsewhere = {
        name: places_of_arg
        for name, places_of_arg in places.items()
        if all(map(here.isdisjoint, jax.tree.leaves(places_of_arg)))
    }
    return cut.split(cut.flatten_whole("extra_args", {**extra_args, **elsewhere}))


def values_of(extra_args: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _value(arg) for name, arg in extra_args.items()}


def _value(arg: Any) -> Any:
    return arg.value if isinstance(arg, OnStage) else arg


def _place(name: str, arg: Any, everywhere: Place) -> Place:
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
