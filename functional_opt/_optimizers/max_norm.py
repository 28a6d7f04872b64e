"""Steps in units of the largest recent gradient, or of the largest second moment."""

from dataclasses import KW_ONLY
from typing import final

import optax

from .._base import AbstractOptimizer, WeightDecay
from .._composition.decay import decayed
from .._fields import as_dtype, number, part, setting
from .._transformations.gradients import real_if
from .._types import DecayRate, FloatDtype, LearningRate, NonNegative, typed
from .._where import Mask
from .decay import decayed_as
from .factories import built


@final
class AdaMax(AbstractOptimizer):
    """[AdaMax](https://arxiv.org/abs/1412.6980) (Kingma and Ba 2015): `optax.adamax`.

    With $m$ the moving average of the gradient, corrected for its start at 0, and $u
    \\leftarrow \\max(\\beta_2 u, |g| + \\epsilon)$, a step is the learning rate times
    $m / u$ (algorithm 2).

    ```python
    >>> import functional_opt as fo
    >>> import jax.numpy as jnp
    >>> transformation = fo.AdaMax(b2=0.99).build(0.1)
    >>> params = jnp.array([1.0, -3.0])
    >>> updates, _ = transformation.update(params, transformation.init(params))
    >>> [round(float(x), 3) for x in updates]
    [-0.1, 0.1]

    ```

    **Arguments:**

    - `b1`: exponential decay rate of the first moment $m$, in [0, 1).
    - `b2`: exponential decay rate of the maximum $u$, in [0, 1).
    - `eps`: $\\epsilon$, in units of the gradient; at least 0.
    """

    _: KW_ONLY
    b1: DecayRate = number(default=0.9)
    b2: DecayRate = number(default=0.999)
    eps: NonNegative = number(default=1e-8)

    @typed
    def build(self, schedule: LearningRate) -> optax.GradientTransformationExtraArgs:
        return built(optax.adamax, self, schedule)


@final
class AdaMaxW(AbstractOptimizer):
    """[AdaMax](https://arxiv.org/abs/1412.6980) (Kingma and Ba 2015) with
    [decoupled weight decay](https://arxiv.org/abs/1711.05101): `optax.adamaxw`.

    ```python
    >>> import functional_opt as fo
    >>> import jax.numpy as jnp
    >>> transformation = fo.AdaMaxW(weight_decay=0.5).build(0.1)
    >>> params = jnp.array([1.0, -3.0])
    >>> updates, _ = transformation.update(params, transformation.init(params), params)
    >>> [round(float(x), 3) for x in updates]
    [-0.15, 0.25]

    ```

    **Arguments:**

    - `b1`, `b2`, `eps`: as in [`AdaMax`][].
    - `weight_decay`: decoupled weight decay per unit of learning rate, a number or a
        schedule; at least 0.
    - `mask`: mask function from the parameters to a tree of bools, true for those that
        decay, such as a [`Where`][]. If omitted, all decay.
    """

    _: KW_ONLY
    b1: DecayRate = number(default=0.9)
    b2: DecayRate = number(default=0.999)
    eps: NonNegative = number(default=1e-8)
    weight_decay: WeightDecay = part(default=1e-4)
    mask: Mask | None = setting(default=None)

    @typed
    def build(self, schedule: LearningRate) -> optax.GradientTransformationExtraArgs:
        return built(optax.adamaxw, self, schedule)


decayed.register(AdaMax, decayed_as(AdaMaxW))


@final
class AMSGrad(AbstractOptimizer):
    """[AMSGrad](https://openreview.net/forum?id=ryQu7f-RZ) (Reddi et al. 2018).

    `optax.amsgrad`: [`Adam`][] with the running maximum of the second moment $v$ in
    place of $v$ (algorithm 2).

    ```python
    >>> import functional_opt as fo
    >>> import jax.numpy as jnp
    >>> transformation = fo.AMSGrad(b2=0.99).build(0.1)
    >>> params = jnp.array([1.0, -3.0])
    >>> updates, _ = transformation.update(params, transformation.init(params))
    >>> [round(float(x), 3) for x in updates]
    [-0.1, 0.1]

    ```

    **Arguments:**

    - `b1`, `b2`, `eps`, `eps_root`, `mu_dtype`: as in [`Adam`][].
    - `bias_correction_mu`: whether the first moment is corrected for its start at 0.
    - `bias_correction_nu`: whether the second moment is corrected for its start at 0,
        before the maximum.
    """

    _: KW_ONLY
    b1: DecayRate = number(default=0.9)
    b2: DecayRate = number(default=0.999)
    eps: NonNegative = number(default=1e-8)
    eps_root: NonNegative = number(default=0.0)
    mu_dtype: FloatDtype | None = setting(default=None, convert=as_dtype)
    bias_correction_mu: bool = setting(default=True)
    bias_correction_nu: bool = setting(default=True)

    @typed
    def build(self, schedule: LearningRate) -> optax.GradientTransformationExtraArgs:
        amsgrad = built(optax.amsgrad, self, schedule)
        return real_if(self.mu_dtype is not None, amsgrad, "`AMSGrad.mu_dtype`")
