"""Optax transformations made of the fields of an optimizer."""

import dataclasses
from collections.abc import Callable
from typing import Any

import optax
from jax.core import Tracer

from .._base import AbstractOptimizer
from .._schedules.constant import Constant
from .._types import LearningRate


Factory = Callable[..., optax.GradientTransformation]


def built(
    factory: Factory,
    optimizer: AbstractOptimizer,
    schedule: LearningRate,
    **changes: Any,
) -> optax.GradientTransformationExtraArgs:
    """Calls an Optax function whose parameters are the fields of an optimizer.

    **Arguments:**

    - `factory`: the function, whose first parameter is the learning rate.
    - `changes`: parameters whose values are not those of the fields.
    """
    names = [field.name for field in dataclasses.fields(optimizer)]
    given = {name: getattr(optimizer, name) for name in names} | changes
    return optax.with_extra_args_support(factory(schedule, **given))


def at_rate(
    make: Factory, schedule: LearningRate
) -> optax.GradientTransformationExtraArgs:
    """A transformation whose function takes a number as its learning rate."""
    rate = plain_rate(schedule)
    if not callable(rate):
        return optax.with_extra_args_support(make(rate))
    # The rate of an update is known only there.
    return optax.inject_hyperparams(make)(rate)


def first_rate(schedule: LearningRate) -> Any:
    """The learning rate at the first update."""
    rate = plain_rate(schedule)
    return rate(0) if callable(rate) else rate


def check_starts(schedule: LearningRate, name: str, instead: str) -> None:
    """Refuses a learning rate of 0 at the first update, where it divides by 0."""
    rate = first_rate(schedule)
    if not isinstance(rate, Tracer) and rate == 0:
        raise ValueError(
            f"`{name}` requires a learning rate greater than 0 at the first update, "
            f"got {schedule}: its estimate would be 0 / 0. {instead}"
        )


def plain_rate(schedule: LearningRate) -> LearningRate:
    """The number that a constant schedule is, or else the learning rate as it is."""
    return schedule.value if isinstance(schedule, Constant) else schedule
