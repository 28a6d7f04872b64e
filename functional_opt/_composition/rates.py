"""Learning rates inside a tree of optimizers."""

import dataclasses
import functools
from collections.abc import Iterator
from dataclasses import KW_ONLY
from typing import ClassVar, final

import jax
import optax

from .._base import AbstractOptimizer, AbstractSchedule
from .._config import AbstractConfig
from .._fields import number, part
from .._types import LearningRate, NonNegative, Scalar, Schedule, typed
from .held import replace_held, with_fields


@final
class WithRate(AbstractOptimizer):
    """An optimizer with a learning rate of its own, or a scaled one.

    **Arguments:**

    - `optimizer`: the optimizer.
    - `schedule`: its learning rate. None for that of the whole optimizer.
    - `scale`: factor on the learning rate.
    """

    UNDOES: ClassVar[str | None] = None

    _: KW_ONLY
    optimizer: AbstractOptimizer = part()
    schedule: AbstractSchedule | Schedule | Scalar | None = part(default=None)
    scale: NonNegative = number(default=1.0)

    @typed
    def build(self, schedule: LearningRate) -> optax.GradientTransformationExtraArgs:
        rate = schedule if self.schedule is None else self.schedule
        if is_one(self.scale):
            return self.optimizer.build(rate)
        optimizer = scale_rates(self.optimizer, self.scale)
        return optimizer.build(scaled(rate, self.scale))


def scaled(schedule: LearningRate, factor: LearningRate) -> LearningRate:
    """The product of two hyperparameters, each a number or a schedule."""
    if callable(schedule) or callable(factor):
        return lambda count: _at(factor, count) * _at(schedule, count)
    return factor * schedule


def schedules_in(config: AbstractConfig) -> Iterator[AbstractSchedule]:
    """The outermost schedules in a module and in the modules inside it."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        for item in value if isinstance(value, tuple) else (value,):
            if isinstance(item, AbstractSchedule):
                yield item
            elif isinstance(item, AbstractConfig):
                yield from schedules_in(item)


def _at(value: LearningRate, count: jax.typing.ArrayLike) -> jax.typing.ArrayLike:
    return value(count) if callable(value) else value


def is_one(factor: Scalar) -> bool:
    return isinstance(factor, float) and factor == 1.0


@functools.singledispatch
def scale_rates(optimizer: AbstractOptimizer, factor: Scalar) -> AbstractOptimizer:
    """The same optimizer with a factor on all learning rates that it sets itself.

    The learning rate that it is built with is scaled by the caller of `build`.
    """
    return replace_held(optimizer, lambda inner: scale_rates(inner, factor))


@scale_rates.register
def _(optimizer: WithRate, factor: Scalar) -> AbstractOptimizer:
    if optimizer.schedule is None:
        return replace_held(optimizer, lambda inner: scale_rates(inner, factor))
    return with_fields(optimizer, scale=optimizer.scale * factor)
