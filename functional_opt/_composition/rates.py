"""Learning rates inside a tree of optimizers."""

import functools
from dataclasses import KW_ONLY
from typing import final

import optax

from .._base import AbstractOptimizer, AbstractSchedule
from .._fields import number, part
from .._types import LearningRate, NonNegative, Scalar, typed
from .held import replace_held, with_fields


@final
class WithRate(AbstractOptimizer):
    """An optimizer with a learning rate of its own, or a scaled one.

    **Arguments:**

    - `optimizer`: the optimizer.
    - `schedule`: its learning rate. None is that of the whole.
    - `scale`: what the learning rate is multiplied by.
    """

    _: KW_ONLY
    optimizer: AbstractOptimizer = part()
    schedule: AbstractSchedule | NonNegative | None = part(default=None)
    scale: NonNegative = number(default=1.0)

    @typed
    def build(self, schedule: LearningRate) -> optax.GradientTransformationExtraArgs:
        rate = schedule if self.schedule is None else self.schedule
        if _is_one(self.scale):
            return self.optimizer.build(rate)
        optimizer = scale_rates(self.optimizer, self.scale)
        return optimizer.build(scaled(rate, self.scale))


def scaled(schedule: LearningRate, factor: Scalar) -> LearningRate:
    if callable(schedule):
        return lambda count: factor * schedule(count)
    return factor * schedule


def _is_one(factor: Scalar) -> bool:
    return isinstance(factor, float) and factor == 1.0


@functools.singledispatch
def scale_rates(optimizer: AbstractOptimizer, factor: Scalar) -> AbstractOptimizer:
    """The same optimizer with all learning rates that it sets by itself scaled.

    Those that it is built with are scaled by whoever builds it.
    """
    return replace_held(optimizer, lambda inner: scale_rates(inner, factor))


@scale_rates.register
def _(optimizer: WithRate, factor: Scalar) -> AbstractOptimizer:
    if optimizer.schedule is None:
        return replace_held(optimizer, lambda inner: scale_rates(inner, factor))
    return with_fields(optimizer, scale=optimizer.scale * factor)
