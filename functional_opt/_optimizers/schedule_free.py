from dataclasses import KW_ONLY
from typing import Annotated, final

import optax
from annotated_types import Interval

from .._base import AbstractOptimizer
from .._composition.frozen import without_frozen
from .._fields import as_dtype, number, part, setting
from .._types import FloatDtype, LearningRate, NonNegative, Scalar, typed


@final
class ScheduleFree(AbstractOptimizer):
    """[Schedule-free](https://arxiv.org/abs/2405.15682) (Defazio et al. 2024).

    `optax.contrib.schedule_free` around another optimizer, whose own momentum should be
    off: an average of its iterates takes the place of a decay of the learning rate. The
    parameters of the run are where gradients are taken; those to evaluate with are
    `Recipe.eval_params`.

    ```python
    >>> import functional_opt as fo
    >>> optimizer = fo.ScheduleFree(optimizer=fo.AdamW(b1=0.0))
    >>> schedule = fo.WarmupConstant(init_value=0.0, peak_value=2e-3, warmup_steps=100)
    >>> transformation = optimizer.build(schedule)

    ```

    **Arguments:**

    - `optimizer`: the optimizer whose iterates are averaged.
    - `b1`: interpolation weight of the average in the parameters of the run, in (0, 1).
    - `weight_lr_power`: the weight of an iterate is the largest learning rate so far to
        this power; at least 0.
    - `state_dtype`: dtype of the iterates; if omitted, that of the parameters.
    """

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
