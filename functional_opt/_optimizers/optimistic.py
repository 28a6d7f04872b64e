"""Steps that extrapolate from the last one, for games and adversarial training."""

from dataclasses import KW_ONLY
from typing import final

import optax

from .._base import AbstractOptimizer, AbstractSchedule
from .._fields import as_dtype, number, part, setting
from .._transformations.gradients import real_if
from .._types import DecayRate, FloatDtype, LearningRate, NonNegative, typed
from .factories import built


@final
class OptimisticGradientDescent(AbstractOptimizer):
    """[Optimistic gradient descent](https://arxiv.org/abs/1901.08511) (Mokhtari et al.
    2019): `optax.optimistic_gradient_descent`.

    With $g'$ the last gradient, a step is the learning rate times $(\\alpha + \\beta) g
    - \\beta g'$. In the first, $g'$ is $g$.

    ```python
    >>> import functional_opt as fo
    >>> import jax.numpy as jnp
    >>> transformation = fo.OptimisticGradientDescent().build(0.1)
    >>> params = jnp.array([1.0, -3.0])
    >>> updates, _ = transformation.update(params, transformation.init(params))
    >>> [round(float(x), 3) for x in updates]
    [-0.1, 0.3]

    ```

    **Arguments:**

    - `alpha`: $\\alpha$, the weight of the gradient: a number of at least 0, or a
        schedule.
    - `beta`: $\\beta$, the weight of its change: a number of at least 0, or a schedule.
    """

    _: KW_ONLY
    alpha: AbstractSchedule | NonNegative = part(default=1.0)
    beta: AbstractSchedule | NonNegative = part(default=1.0)

    @typed
    def build(self, schedule: LearningRate) -> optax.GradientTransformationExtraArgs:
        return built(optax.optimistic_gradient_descent, self, schedule)


@final
class OptimisticAdam(AbstractOptimizer):
    """[Optimistic Adam](https://arxiv.org/abs/1711.00141) (Daskalakis et al. 2018).

    `optax.optimistic_adam_v2`: with $u$ and $u'$ the present and the last step of
    [`Adam`][], a step is $(\\alpha + \\beta) u - \\beta u'$ (algorithm 1).

    ```python
    >>> import functional_opt as fo
    >>> import jax.numpy as jnp
    >>> transformation = fo.OptimisticAdam(nesterov=False).build(0.1)
    >>> params = jnp.array([1.0, -3.0])
    >>> updates, _ = transformation.update(params, transformation.init(params))
    >>> [round(float(x), 3) for x in updates]
    [-0.1, 0.1]

    ```

    **Arguments:**

    - `alpha`: $\\alpha$, the weight of the step; at least 0.
    - `beta`: $\\beta$, the weight of its change; at least 0.
    - `b1`, `b2`, `eps`, `eps_root`, `mu_dtype`, `nesterov`: as in [`Adam`][].
    """

    _: KW_ONLY
    alpha: NonNegative = number(default=1.0)
    beta: NonNegative = number(default=1.0)
    b1: DecayRate = number(default=0.9)
    b2: DecayRate = number(default=0.999)
    eps: NonNegative = number(default=1e-8)
    eps_root: NonNegative = number(default=0.0)
    mu_dtype: FloatDtype | None = setting(default=None, convert=as_dtype)
    nesterov: bool = setting(default=True)

    @typed
    def build(self, schedule: LearningRate) -> optax.GradientTransformationExtraArgs:
        adam = built(optax.optimistic_adam_v2, self, schedule)
        return real_if(self.mu_dtype is not None, adam, "`OptimisticAdam.mu_dtype`")
