"""Steps in units of a root mean square that rows and columns share."""

from dataclasses import KW_ONLY
from typing import Annotated, final

import jax.numpy as jnp
import optax
from annotated_types import Interval

from .._base import AbstractOptimizer, AbstractSchedule
from .._composition.decay import Decayed, decayed
from .._composition.held import with_fields
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


@final
class Adafactor(AbstractOptimizer):
    """[Adafactor](https://arxiv.org/abs/1804.04235) (Shazeer and Stern 2018).

    `optax.adafactor`: algorithms 4 and 5 with the decay of section 7.2. A matrix keeps
    the moving averages of its gradient's squares along rows and along columns, and no
    more. The share that stays at update $t$ is $1 - t^{-c}$, with $c$ = `decay_rate`.

    ```python
    >>> import functional_opt as fo
    >>> import jax, jax.numpy as jnp
    >>> transformation = fo.Adafactor(min_dim_size_to_factor=8).build(1e-2)
    >>> state = transformation.init(jnp.ones((16, 8)))
    >>> sorted(leaf.shape for leaf in jax.tree.leaves(state) if leaf.size > 1)
    [(8,), (16,)]

    ```

    **Arguments:**

    - `min_dim_size_to_factor`: of how many rows and columns a parameter must be to be
        factored; at least 1.
    - `decay_rate`: $c$, in (0, 1].
    - `decay_offset`: how many updates the decay starts late, for fine-tuning; at
        least 0.
    - `multiply_by_parameter_scale`: whether the step is in units of the parameter's
        root mean square: the learning rate is relative.
    - `clipping_threshold`: the root mean square that the step of a parameter is scaled
        down to where it is larger, before the learning rate; greater than 0. None
        clips nothing.
    - `momentum`: how much of the moving average of the steps stays at each update, in
        [0, 1). None keeps none.
    - `dtype_momentum`: the dtype that this average is kept in.
    - `weight_decay_rate`: how much of a parameter each update takes off, whatever the
        learning rate: a number of at least 0, or a schedule. None takes off nothing.
        `build_decayed` puts a decay in units of the learning rate in its place.
    - `eps`: added to the gradient's square, in its units; at least 0.
    - `factored`: whether to factor at all.
    - `weight_decay_mask`: from the parameters to a tree of bools: which of them decay,
        such as a [`Where`][]. All, if left out.
    """

    _: KW_ONLY
    min_dim_size_to_factor: PositiveCount = setting(default=128)
    decay_rate: Annotated[Scalar, Interval(gt=0, le=1)] = number(default=0.8)
    decay_offset: Count = setting(default=0)
    multiply_by_parameter_scale: bool = setting(default=True)
    clipping_threshold: Positive | None = number(default=1.0)
    momentum: DecayRate | None = number(default=None)
    dtype_momentum: FloatDtype = setting(default=jnp.float32, converter=as_dtype)
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


@decayed.register
def _(
    optimizer: Adafactor, weight_decay: Scalar, mask: Mask | None = None
) -> AbstractOptimizer:
    # Its own decay is not in units of the learning rate.
    without = with_fields(optimizer, weight_decay_rate=None)
    return Decayed(
        optimizer=without,
        weight_decay=weight_decay,
        mask=mask or optimizer.weight_decay_mask,
    )
