"""Steps in units of a root mean square that rows and columns share."""

from dataclasses import KW_ONLY
from typing import Annotated, final

import jax.numpy as jnp
import optax
from annotated_types import Interval

from .._base import AbstractOptimizer, AbstractSchedule
from .._composition.decay import decayed
from .._fields import as_dtype, number, part, setting
from .._transformations.gradients import real_if
from .._types import (
    Count,
    DecayRate,
    FloatDtype,
    LearningRate,
    NonNegative,
    Positive,
    PositiveCount,
    Scalar,
    typed,
)
from .._where import Mask
from .decay import decayed_beside


@final
class Adafactor(AbstractOptimizer):
    """[Adafactor](https://arxiv.org/abs/1804.04235) (Shazeer and Stern 2018).

    `optax.adafactor`: algorithms 4 and 5 with the decay of section 7.2. A matrix keeps
    the moving averages of its gradient's squares along rows and along columns, and no
    more. The decay rate at update $t$ is $1 - t^{-c}$, with $c$ = `decay_rate`.

    ```python
    >>> import functional_opt as fo
    >>> import jax, jax.numpy as jnp
    >>> transformation = fo.Adafactor(min_dim_size_to_factor=8).build(1e-2)
    >>> state = transformation.init(jnp.ones((16, 8)))
    >>> sorted(leaf.shape for leaf in jax.tree.leaves(state) if leaf.size > 1)
    [(8,), (16,)]

    ```

    **Arguments:**

    - `min_dim_size_to_factor`: factor the second moment of a parameter only if both of
        its largest dimensions are at least this size; at least 1.
    - `decay_rate`: $c$, in (0, 1].
    - `decay_offset`: the number of updates by which the decay is delayed, for
        fine-tuning; at least 0.
    - `multiply_by_parameter_scale`: whether the update is scaled by the root mean
        square of the parameter, which makes the learning rate relative.
    - `clipping_threshold`: the largest root mean square of the update of a parameter,
        before the learning rate; greater than 0. If None, updates are not clipped.
    - `momentum`: decay rate of the moving average of the updates, in [0, 1). If None,
        there is no moving average.
    - `dtype_momentum`: dtype of this moving average.
    - `weight_decay_rate`: the fraction of each parameter that is subtracted at each
        update, independent of the learning rate: a number of at least 0, or a schedule.
        If None, nothing is subtracted. `Recipe.weight_decay`, which is per unit of
        learning rate, replaces it.
    - `eps`: added to the squared gradient, in its units; at least 0.
    - `factored`: whether to factor the second moments at all.
    - `weight_decay_mask`: mask function from the parameters to a tree of bools, true
        for those that decay, such as a [`Where`][]. If omitted, all decay.
    """

    _: KW_ONLY
    min_dim_size_to_factor: PositiveCount = setting(default=128)
    decay_rate: Annotated[Scalar, Interval(gt=0, le=1)] = number(default=0.8)
    decay_offset: Count = setting(default=0)
    multiply_by_parameter_scale: bool = setting(default=True)
    clipping_threshold: Positive | None = number(default=1.0)
    momentum: DecayRate | None = number(default=None)
    dtype_momentum: FloatDtype = setting(default=jnp.float32, convert=as_dtype)
    weight_decay_rate: AbstractSchedule | NonNegative | None = part(default=None)
    eps: NonNegative = number(default=1e-30)
    factored: bool = setting(default=True)
    weight_decay_mask: Mask | None = setting(default=None)

    @typed
    def build(self, schedule: LearningRate) -> optax.GradientTransformationExtraArgs:
        adafactor = optax.adafactor(
            schedule,
            min_dim_size_to_factor=self.min_dim_size_to_factor,
            decay_rate=self.decay_rate,
            decay_offset=self.decay_offset,
            multiply_by_parameter_scale=self.multiply_by_parameter_scale,
            clipping_threshold=self.clipping_threshold,
            momentum=self.momentum,
            dtype_momentum=self.dtype_momentum,
            weight_decay_rate=self.weight_decay_rate,
            eps=self.eps,
            factored=self.factored,
            weight_decay_mask=self.weight_decay_mask,
        )
        has_momentum = self.momentum is not None
        return real_if(has_momentum, adafactor, "`Adafactor.momentum`")


# Its own decay is not in units of the learning rate.
decayed.register(
    Adafactor, decayed_beside("weight_decay_rate", None, "weight_decay_mask")
)
