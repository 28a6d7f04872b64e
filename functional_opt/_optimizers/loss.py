"""Step sizes computed from the loss, which is passed to each update as `value`."""

from collections.abc import Mapping
from dataclasses import KW_ONLY
from types import MappingProxyType
from typing import ClassVar, final, Literal

import optax

from .._base import AbstractOptimizer, AbstractSchedule
from .._composition.decay import keep_decay, without_decay
from .._extra_args import ExtraArg
from .._fields import number, part, setting
from .._transformations.gradients import real_only
from .._types import DecayRate, LearningRate, NonNegative, Scalar, typed
from .factories import at_rate, built


LOSS = MappingProxyType({"value": ExtraArg("the loss whose gradient is given")})


@final
class PolyakSGD(AbstractOptimizer):
    """[SGD with Polyak's step size](https://arxiv.org/abs/2002.10542) (Loizou et al.
    2021): `optax.polyak_sgd`.

    A step is $s \\min(\\eta, (f - f^*) / (\\|g\\|^2 + \\epsilon)) g$, with the loss
    $f$, the norm of the gradient over the whole model, and the learning rate $\\eta$ as
    the largest step size (equation 3).

    ```python
    >>> import functional_opt as fo
    >>> import jax.numpy as jnp
    >>> transformation = fo.PolyakSGD().build(1.0)
    >>> params = jnp.array([1.0, -3.0])
    >>> loss, grads = jnp.sum(params**2), 2 * params
    >>> updates, _ = transformation.update(
    ...     grads, transformation.init(params), params, value=loss
    ... )
    >>> [round(float(x), 3) for x in updates]
    [-0.5, 1.5]

    ```

    **Arguments:**

    - `scaling`: $s$: a number of at least 0, or a schedule.
    - `f_min`: $f^*$, the minimum of the loss.
    - `eps`: $\\epsilon$, in units of the squared norm; at least 0.
    - `variant`: "sps+" takes 0 for a negative $f - f^*$
        ([Garrigos et al. 2023](https://arxiv.org/abs/2307.14528)), "sps" does not.
    """

    EXTRA_ARGS: ClassVar[Mapping[str, ExtraArg]] = LOSS

    _: KW_ONLY
    scaling: AbstractSchedule | NonNegative = part(default=1.0)
    f_min: Scalar = number(default=0.0)
    eps: NonNegative = number(default=0.0)
    variant: Literal["sps", "sps+"] = setting(default="sps")

    @typed
    def build(self, schedule: LearningRate) -> optax.GradientTransformationExtraArgs:
        return at_rate(lambda largest: built(optax.polyak_sgd, self, largest), schedule)


@final
class Momo(AbstractOptimizer):
    """[MoMo](https://arxiv.org/abs/2305.07583) (Schaipp et al. 2024).

    `optax.contrib.momo`: SGD with momentum. The step size is the minimum of the
    learning rate and of the optimal step size for a model of the loss, which is built
    from past losses and gradients (algorithm 1).

    ```python
    >>> import functional_opt as fo
    >>> import jax.numpy as jnp
    >>> transformation = fo.Momo().build(1.0)
    >>> params = jnp.array([1.0, -3.0])
    >>> loss, grads = jnp.sum(params**2), 2 * params
    >>> updates, _ = transformation.update(
    ...     grads, transformation.init(params), params, value=loss
    ... )
    >>> [round(float(x), 3) for x in updates]
    [-0.5, 1.5]

    ```

    **Arguments:**

    - `beta`: exponential decay rate of the momentum, in [0, 1).
    - `lower_bound`: a lower bound of the loss.
    - `weight_decay`: weight decay $\\lambda$, at least 0: with the learning rate
        $\\eta$, a parameter is divided by $1 + \\eta \\lambda$.
    - `adapt_lower_bound`: whether to estimate the lower bound, starting from
        `lower_bound`.
    """

    EXTRA_ARGS: ClassVar[Mapping[str, ExtraArg]] = LOSS

    _: KW_ONLY
    beta: DecayRate = number(default=0.9)
    lower_bound: Scalar = number(default=0.0)
    weight_decay: NonNegative = number(default=0.0)
    adapt_lower_bound: bool = setting(default=False)

    @typed
    def build(self, schedule: LearningRate) -> optax.GradientTransformationExtraArgs:
        return real_only(built(optax.contrib.momo, self, schedule), "`Momo`")


@final
class MomoAdam(AbstractOptimizer):
    """[MoMo-Adam](https://arxiv.org/abs/2305.07583) (Schaipp et al. 2024).

    `optax.contrib.momo_adam`: [`Momo`][] for the steps of Adam (algorithm 2).

    ```python
    >>> import functional_opt as fo
    >>> import jax.numpy as jnp
    >>> transformation = fo.MomoAdam().build(0.01)
    >>> params = jnp.array([1.0, -3.0])
    >>> loss, grads = jnp.sum(params**2), 2 * params
    >>> updates, _ = transformation.update(
    ...     grads, transformation.init(params), params, value=loss
    ... )
    >>> [round(float(x), 3) for x in updates]
    [-0.01, 0.01]

    ```

    **Arguments:**

    - `b1`, `b2`: exponential decay rates of the moments, in [0, 1).
    - `eps`: added to the square root, in units of the gradient; at least 0.
    - `lower_bound`, `weight_decay`, `adapt_lower_bound`: as in [`Momo`][].
    """

    EXTRA_ARGS: ClassVar[Mapping[str, ExtraArg]] = LOSS

    _: KW_ONLY
    b1: DecayRate = number(default=0.9)
    b2: DecayRate = number(default=0.999)
    eps: NonNegative = number(default=1e-8)
    lower_bound: Scalar = number(default=0.0)
    weight_decay: NonNegative = number(default=0.0)
    adapt_lower_bound: bool = setting(default=False)

    @typed
    def build(self, schedule: LearningRate) -> optax.GradientTransformationExtraArgs:
        return real_only(built(optax.contrib.momo_adam, self, schedule), "`MomoAdam`")


without_decay.register(Momo, keep_decay)
without_decay.register(MomoAdam, keep_decay)
