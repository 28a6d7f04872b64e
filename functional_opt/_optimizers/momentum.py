"""Steps along the gradient or a moving sum of it."""

from dataclasses import KW_ONLY
from typing import final

import optax

from .._base import AbstractOptimizer
from .._fields import as_dtype, number, setting
from .._transformations.gradients import inexact_only, real_if, real_only
from .._types import (
    DecayRate,
    FloatDtype,
    LearningRate,
    NonNegative,
    Seed,
    typed,
)
from .factories import built


@final
class SGD(AbstractOptimizer):
    """Stochastic gradient descent, with momentum or without: `optax.sgd`.

    With momentum $\\mu$ and gradient $g$, the sum is $u \\leftarrow g + \\mu u$ and the
    step the learning rate times $u$, or times $g + \\mu u$ with `nesterov`: equations 1
    to 4 of [Sutskever et al. 2013](https://proceedings.mlr.press/v28/sutskever13.html),
    with the learning rate outside of the sum.

    ```python
    >>> import functional_opt as fo
    >>> import jax.numpy as jnp
    >>> transformation = fo.SGD(momentum=0.5).build(0.1)
    >>> params = jnp.array([1.0, -1.0])
    >>> updates, _ = transformation.update(params, transformation.init(params))
    >>> [round(float(x), 3) for x in updates]
    [-0.1, 0.1]

    ```

    **Arguments:**

    - `momentum`: decay rate of the momentum $u$, in [0, 1). If None, there is no
        momentum.
    - `nesterov`: whether to use Nesterov momentum. It has no effect without `momentum`.
    - `accumulator_dtype`: dtype of the momentum; if omitted, that of the parameters.
    """

    _: KW_ONLY
    momentum: DecayRate | None = number(default=None)
    nesterov: bool = setting(default=False)
    accumulator_dtype: FloatDtype | None = setting(default=None, convert=as_dtype)

    @typed
    def build(self, schedule: LearningRate) -> optax.GradientTransformationExtraArgs:
        sgd = optax.sgd(
            schedule,
            momentum=self.momentum,
            nesterov=self.nesterov,
            accumulator_dtype=self.accumulator_dtype,
        )
        has_dtype = self.accumulator_dtype is not None
        return real_if(has_dtype, sgd, "`SGD.accumulator_dtype`")


@final
class NoisySGD(AbstractOptimizer):
    """[SGD with gradient noise](https://arxiv.org/abs/1511.06807) (Neelakantan et al.
    2015): `optax.noisy_sgd`.

    Update $t$, from 1 on, adds normal noise of variance $\\eta / t^\\gamma$ to the
    gradient (equation 1). The noise of a parameter depends on its place in the whole
    tree, not on stages.

    ```python
    >>> import functional_opt as fo
    >>> import jax.numpy as jnp
    >>> transformation = fo.NoisySGD(eta=0.0).build(0.1)
    >>> params = jnp.array([1.0, -3.0])
    >>> updates, _ = transformation.update(params, transformation.init(params))
    >>> [round(float(x), 3) for x in updates]
    [-0.1, 0.3]

    ```

    **Arguments:**

    - `eta`: $\\eta$, in units of the squared gradient; at least 0.
    - `gamma`: $\\gamma$, at least 0. The authors take 0.55.
    - `key`: seed of the noise, in [0, $2^{32}$).
    """

    _: KW_ONLY
    eta: NonNegative = number(default=0.01)
    gamma: NonNegative = number(default=0.55)
    key: Seed = setting(default=0)

    @typed
    def build(self, schedule: LearningRate) -> optax.GradientTransformationExtraArgs:
        noisy = real_only(built(optax.noisy_sgd, self, schedule), "`NoisySGD`")
        return inexact_only(noisy, "`NoisySGD`")
