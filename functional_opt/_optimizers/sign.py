"""Steps of the same size for every parameter."""

from dataclasses import KW_ONLY
from typing import final

import optax

from .._base import AbstractOptimizer, WeightDecay
from .._fields import as_dtype, number, part, setting
from .._transformations.gradients import real_if
from .._types import DecayRate, FloatDtype, LearningRate, typed
from .._where import Mask


@final
class Lion(AbstractOptimizer):
    """[Lion](https://arxiv.org/abs/2302.06675) (Chen et al. 2023): `optax.lion`.

    The step is the learning rate times $sign(\\beta_1 m + (1 - \\beta_1) g) + \\lambda
    \\theta$, with $m$ a moving average of the gradient $g$ (algorithm 2). Its authors
    take a learning rate 3 to 10 times smaller than AdamW's, and a decay as much larger.

    ```python
    >>> import functional_opt as fo
    >>> import jax.numpy as jnp
    >>> transformation = fo.Lion(weight_decay=0.0).build(0.1)
    >>> params = jnp.array([1.0, -3.0])
    >>> updates, _ = transformation.update(params, transformation.init(params), params)
    >>> [round(float(x), 3) for x in updates]
    [-0.1, 0.1]

    ```

    **Arguments:**

    - `b1`: weight of $m$ in the update, in [0, 1).
    - `b2`: exponential decay rate of $m$, in [0, 1).
    - `mu_dtype`: dtype of $m$; if omitted, that of the parameters.
    - `weight_decay`: $\\lambda$, per unit of learning rate, a number or a
        schedule; at least 0.
    - `mask`: mask function from the parameters to a tree of bools, true for those that
        decay, such as a [`Where`][]. If omitted, all decay.
    """

    _: KW_ONLY
    b1: DecayRate = number(default=0.9)
    b2: DecayRate = number(default=0.99)
    mu_dtype: FloatDtype | None = setting(default=None, convert=as_dtype)
    weight_decay: WeightDecay = part(default=1e-3)
    mask: Mask | None = setting(default=None)

    @typed
    def build(self, schedule: LearningRate) -> optax.GradientTransformationExtraArgs:
        lion = optax.lion(
            schedule,
            b1=self.b1,
            b2=self.b2,
            mu_dtype=self.mu_dtype,
            weight_decay=self.weight_decay,
            mask=self.mask,
        )
        return real_if(self.mu_dtype is not None, lion, "`Lion.mu_dtype`")
