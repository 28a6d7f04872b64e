"""Steps along the sign of the gradient, or of a moving average of it."""

from dataclasses import KW_ONLY
from typing import Annotated, final

import optax
from annotated_types import Interval

from .._base import AbstractOptimizer, WeightDecay
from .._fields import as_dtype, number, part, setting
from .._transformations.gradients import real_if, real_only
from .._types import (
    DecayRate,
    FloatDtype,
    LearningRate,
    Positive,
    Scalar,
    typed,
)
from .._where import Mask
from .factories import built, first_rate


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


@final
class SignSGD(AbstractOptimizer):
    """[signSGD](https://arxiv.org/abs/1802.04434) (Bernstein et al. 2018).

    `optax.sign_sgd`: a step is the learning rate times the sign of the gradient
    (algorithm 1).

    ```python
    >>> import functional_opt as fo
    >>> import jax.numpy as jnp
    >>> transformation = fo.SignSGD().build(0.1)
    >>> params = jnp.array([1.0, -3.0])
    >>> updates, _ = transformation.update(params, transformation.init(params))
    >>> [round(float(x), 3) for x in updates]
    [-0.1, 0.1]

    ```
    """

    @typed
    def build(self, schedule: LearningRate) -> optax.GradientTransformationExtraArgs:
        return built(optax.sign_sgd, self, schedule)


@final
class Signum(AbstractOptimizer):
    """[Signum](https://arxiv.org/abs/1802.04434) (Bernstein et al. 2018).

    `optax.signum`: a step is the learning rate times the sign of the moving average of
    the gradient (algorithm 2).

    ```python
    >>> import functional_opt as fo
    >>> import jax.numpy as jnp
    >>> transformation = fo.Signum().build(0.1)
    >>> params = jnp.array([1.0, -3.0])
    >>> updates, _ = transformation.update(params, transformation.init(params))
    >>> [round(float(x), 3) for x in updates]
    [-0.1, 0.1]

    ```

    **Arguments:**

    - `beta`: exponential decay rate of the moving average, in [0, 1).
    - `accumulator_dtype`: dtype of the moving average; if omitted, that of the
        parameters.
    """

    _: KW_ONLY
    beta: DecayRate = number(default=0.9)
    accumulator_dtype: FloatDtype | None = setting(default=None, convert=as_dtype)

    @typed
    def build(self, schedule: LearningRate) -> optax.GradientTransformationExtraArgs:
        has_dtype = self.accumulator_dtype is not None
        signum = built(optax.signum, self, schedule)
        return real_if(has_dtype, signum, "`Signum.accumulator_dtype`")


@final
class Rprop(AbstractOptimizer):
    """[Rprop](https://ieeexplore.ieee.org/document/298623) (Riedmiller and Braun 1993).

    `optax.rprop`: every entry of a parameter has a step size of its own, which grows
    while the sign of its gradient stays, and shrinks where it changes. It suits
    gradients without noise. As Optax has it, a step is made one update late, and the
    first is 0.

    The learning rate is the first step size; of a schedule, the value at count 0.

    ```python
    >>> import functional_opt as fo
    >>> import jax.numpy as jnp
    >>> transformation = fo.Rprop().build(0.1)
    >>> params = jnp.array([1.0, -3.0])
    >>> updates, state = transformation.update(params, transformation.init(params))
    >>> updates, state = transformation.update(params, state)
    >>> [round(float(x), 3) for x in updates]
    [-0.1, 0.1]

    ```

    **Arguments:**

    - `eta_minus`: what a step size is multiplied by where the sign changes, in (0, 1).
    - `eta_plus`: what a step size is multiplied by where the sign stays, greater than
        1.
    - `min_step_size`, `max_step_size`: the range of the step sizes, in units of the
        parameters; greater than 0.
    """

    _: KW_ONLY
    eta_minus: Annotated[Scalar, Interval(gt=0, lt=1)] = number(default=0.5)
    eta_plus: Annotated[Scalar, Interval(gt=1)] = number(default=1.2)
    min_step_size: Positive = number(default=1e-6)
    max_step_size: Positive = number(default=50.0)

    @typed
    def build(self, schedule: LearningRate) -> optax.GradientTransformationExtraArgs:
        return real_only(built(optax.rprop, self, first_rate(schedule)), "`Rprop`")
