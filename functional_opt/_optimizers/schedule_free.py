"""Averages of iterates instead of a decay of the learning rate."""

from collections.abc import Mapping
from dataclasses import KW_ONLY
from types import MappingProxyType
from typing import Annotated, ClassVar, final

import jax.numpy as jnp
import optax
from annotated_types import Interval

from .._base import AbstractOptimizer, WeightDecay
from .._composition.decay import decayed
from .._composition.frozen import without_frozen
from .._composition.held import with_fields
from .._fields import as_dtype, number, part, setting
from .._types import (
    DecayRate,
    FloatDtype,
    LearningRate,
    NonNegative,
    PositiveCount,
    Scalar,
    typed,
)
from .._where import Mask
from .adaptive import RMSProp
from .factories import built, plain_rate
from .momentum import SGD


AVERAGED = MappingProxyType(
    {
        "Hyperball": "averages of parameters do not keep norms. Omit one of them.",
        "QKClip": "its averages do not follow weights that are scaled after its step. "
        "Omit one of them.",
    }
)
STEPS_OF_AN_AVERAGE = MappingProxyType(
    {
        **AVERAGED,
        "Cautious": "the average follows from all of its step. Change the steps that "
        "are averaged: `ScheduleFree(optimizer=Cautious(...))`.",
    }
)


@final
class ScheduleFree(AbstractOptimizer):
    """[Schedule-free](https://arxiv.org/abs/2405.15682) (Defazio et al. 2024).

    `optax.contrib.schedule_free` around another optimizer without momentum: an average
    of its iterates replaces a decay of the learning rate. Gradients are computed at the
    parameters of the run; `Recipe.eval_params` returns those for evaluation.

    ```python
    >>> import functional_opt as fo
    >>> optimizer = fo.ScheduleFree(optimizer=fo.AdamW(b1=0.0))
    >>> schedule = fo.WarmupConstant(init_value=0.0, peak_value=2e-3, warmup_steps=100)
    >>> transformation = optimizer.build(schedule)

    ```

    **Arguments:**

    - `optimizer`: the optimizer of the iterates to average.
    - `b1`: interpolation weight of the average in the parameters of the run, in (0, 1).
    - `weight_lr_power`: the weight of an iterate is the largest learning rate so far to
        this power; at least 0.
    - `state_dtype`: dtype of the iterates; if omitted, that of the parameters.
    """

    REFUSED_BY: ClassVar[Mapping[str, str]] = AVERAGED
    UNDOES: ClassVar[str | None] = "its average of parameters"

    _: KW_ONLY
    optimizer: AbstractOptimizer = part()
    b1: Annotated[Scalar, Interval(gt=0, lt=1)] = number(default=0.9)
    weight_lr_power: NonNegative = number(default=2.0)
    state_dtype: FloatDtype | None = setting(default=None, convert=as_dtype)

    @typed
    def build(self, schedule: LearningRate) -> optax.GradientTransformationExtraArgs:
        averaged = optax.contrib.schedule_free(
            self.optimizer.build(schedule),
            schedule,
            b1=self.b1,
            weight_lr_power=self.weight_lr_power,
            state_dtype=self.state_dtype,
        )
        # An average of equal parameters differs from them by rounding.
        return without_frozen(self.optimizer, averaged)


@final
class ScheduleFreeSGD(AbstractOptimizer):
    """[Schedule-free SGD](https://arxiv.org/abs/2405.15682) (Defazio et al. 2024).

    `optax.contrib.schedule_free_sgd`: [`ScheduleFree`][] around SGD, with a warmup.

    ```python
    >>> import functional_opt as fo
    >>> recipe = fo.Recipe(optimizer=fo.ScheduleFreeSGD(warmup_steps=100), schedule=1.0)

    ```

    **Arguments:**

    - `warmup_steps`: the number of updates, at least 1, in which the learning rate
        grows from 0 to its full value. If None, there is no warmup.
    - `b1`, `weight_lr_power`, `state_dtype`: as in [`ScheduleFree`][].
    - `weight_decay`: weight decay per unit of learning rate; at least 0. If None, there
        is none.
    """

    REFUSED_BY: ClassVar[Mapping[str, str]] = STEPS_OF_AN_AVERAGE

    _: KW_ONLY
    warmup_steps: PositiveCount | None = setting(default=None)
    b1: Annotated[Scalar, Interval(gt=0, lt=1)] = number(default=0.9)
    weight_decay: NonNegative | None = number(default=None)
    weight_lr_power: NonNegative = number(default=2.0)
    state_dtype: FloatDtype | None = setting(default=None, convert=as_dtype)

    @typed
    def build(self, schedule: LearningRate) -> optax.GradientTransformationExtraArgs:
        rate = _warmed(schedule, self.warmup_steps)
        sgd = optax.contrib.schedule_free_sgd
        return built(sgd, self, rate, warmup_steps=None)


@final
class ScheduleFreeAdamW(AbstractOptimizer):
    """[Schedule-free AdamW](https://arxiv.org/abs/2405.15682) (Defazio et al. 2024).

    `optax.contrib.schedule_free_adamw`: [`ScheduleFree`][] around AdamW without a first
    moment, with a warmup.

    ```python
    >>> import functional_opt as fo
    >>> optimizer = fo.ScheduleFreeAdamW(warmup_steps=100, weight_decay=0.1)
    >>> recipe = fo.Recipe(optimizer=optimizer, schedule=0.0025)

    ```

    **Arguments:**

    - `warmup_steps`: the number of updates, at least 1, in which the learning rate
        grows from 0 to its full value. If None, there is no warmup.
    - `b1`, `weight_lr_power`, `state_dtype`: as in [`ScheduleFree`][].
    - `b2`: exponential decay rate of the second moment, in [0, 1).
    - `eps`: added to the square root, in units of the gradient; at least 0.
    - `weight_decay`: weight decay per unit of learning rate; at least 0.
    """

    REFUSED_BY: ClassVar[Mapping[str, str]] = STEPS_OF_AN_AVERAGE

    _: KW_ONLY
    warmup_steps: PositiveCount | None = setting(default=None)
    b1: Annotated[Scalar, Interval(gt=0, lt=1)] = number(default=0.9)
    b2: DecayRate = number(default=0.999)
    eps: NonNegative = number(default=1e-8)
    weight_decay: NonNegative = number(default=0.0)
    weight_lr_power: NonNegative = number(default=2.0)
    state_dtype: FloatDtype | None = setting(default=None, convert=as_dtype)

    @typed
    def build(self, schedule: LearningRate) -> optax.GradientTransformationExtraArgs:
        rate = _warmed(schedule, self.warmup_steps)
        adamw = optax.contrib.schedule_free_adamw
        return built(adamw, self, rate, warmup_steps=None)


AVERAGING = (ScheduleFree, ScheduleFreeSGD, ScheduleFreeAdamW)


@final
class Warmed(AbstractOptimizer):
    """An optimizer with a warmup of its learning rate.

    **Arguments:**

    - `optimizer`: the optimizer.
    - `warmup_steps`: as in `ScheduleFreeSGD`.
    """

    UNDOES: ClassVar[str | None] = None

    _: KW_ONLY
    optimizer: AbstractOptimizer = part()
    warmup_steps: PositiveCount | None = setting(default=None)

    @typed
    def build(self, schedule: LearningRate) -> optax.GradientTransformationExtraArgs:
        return self.optimizer.build(_warmed(schedule, self.warmup_steps))


@decayed.register(ScheduleFreeSGD)
@decayed.register(ScheduleFreeAdamW)
def _(
    optimizer: ScheduleFreeSGD | ScheduleFreeAdamW,
    weight_decay: WeightDecay,
    mask: Mask | None = None,
) -> AbstractOptimizer:
    if mask is None:
        return with_fields(optimizer, weight_decay=weight_decay)
    averaged = ScheduleFree(
        optimizer=decayed(_inside(optimizer), weight_decay, mask),
        b1=optimizer.b1,
        weight_lr_power=optimizer.weight_lr_power,
        state_dtype=optimizer.state_dtype,
    )
    return Warmed(optimizer=averaged, warmup_steps=optimizer.warmup_steps)


def _inside(optimizer: ScheduleFreeSGD | ScheduleFreeAdamW) -> AbstractOptimizer:
    """What is averaged, without a weight decay."""
    if isinstance(optimizer, ScheduleFreeSGD):
        return SGD()
    return RMSProp(
        decay=optimizer.b2, eps=optimizer.eps, eps_in_sqrt=False, bias_correction=True
    )


def _warmed(schedule: LearningRate, warmup_steps: int | None) -> LearningRate:
    """A learning rate after a linear warmup from 0; of a number, that of Optax."""
    rate = plain_rate(schedule)
    if warmup_steps is None:
        return rate
    if not callable(rate):
        return optax.warmup_constant_schedule(0, rate, warmup_steps)
    return lambda count: rate(count) * jnp.minimum(1, count / warmup_steps)
