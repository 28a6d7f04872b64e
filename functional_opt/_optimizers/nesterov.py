"""Adam with Nesterov momentum."""

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
class NAdam(AbstractOptimizer):
    """[NAdam](https://openreview.net/forum?id=OM0jvwB8jIp57ZJjtNEZ) (Dozat 2016).

    `optax.nadam`: [`Adam`][] with Nesterov momentum. In place of the corrected first
    moment, the step has $\\beta_1 m / (1 - \\beta_1^{t+1}) + (1 - \\beta_1) g / (1 -
    \\beta_1^t)$.

    ```python
    >>> import functional_opt as fo
    >>> import jax.numpy as jnp
    >>> transformation = fo.NAdam().build(0.1)
    >>> params = jnp.array([1.0, -1.0])
    >>> updates, _ = transformation.update(params, transformation.init(params))
    >>> [round(float(x), 3) for x in updates]
    [-0.147, 0.147]

    ```

    **Arguments:**

    - `b1`, `b2`, `eps`, `eps_root`, `mu_dtype`: as in [`Adam`][].
    - `nesterov`: whether to use Nesterov momentum; without it, this is Adam.
    """

    _: KW_ONLY
    b1: DecayRate = number(default=0.9)
    b2: DecayRate = number(default=0.999)
    eps: NonNegative = number(default=1e-8)
    eps_root: NonNegative = number(default=0.0)
    mu_dtype: FloatDtype | None = setting(default=None, convert=as_dtype)
    nesterov: bool = setting(default=True)

    @typed
    def build(self, schedule: LearningRate) -> optax.GradientTransformationExtraArgs:
        nadam = built(optax.nadam, self, schedule)
        return real_if(self.mu_dtype is not None, nadam, "`NAdam.mu_dtype`")


@final
class NAdamW(AbstractOptimizer):
    """[NAdam](https://openreview.net/forum?id=OM0jvwB8jIp57ZJjtNEZ) (Dozat 2016) with
    [decoupled weight decay](https://arxiv.org/abs/1711.05101): `optax.nadamw`.

    ```python
    >>> import functional_opt as fo
    >>> import jax.numpy as jnp
    >>> transformation = fo.NAdamW(weight_decay=0.5).build(0.1)
    >>> params = jnp.array([1.0, -1.0])
    >>> updates, _ = transformation.update(params, transformation.init(params), params)
    >>> [round(float(x), 3) for x in updates]
    [-0.197, 0.197]

    ```

    **Arguments:**

    - `b1`, `b2`, `eps`, `eps_root`, `mu_dtype`: as in [`Adam`][].
    - `weight_decay`: decoupled weight decay per unit of learning rate, a number or a
        schedule; at least 0.
    - `mask`: mask function from the parameters to a tree of bools, true for those that
        decay, such as a [`Where`][]. If omitted, all decay.
    - `nesterov`: whether to use Nesterov momentum; without it, this is AdamW.
    """

    _: KW_ONLY
    b1: DecayRate = number(default=0.9)
    b2: DecayRate = number(default=0.999)
    eps: NonNegative = number(default=1e-8)
    eps_root: NonNegative = number(default=0.0)
    mu_dtype: FloatDtype | None = setting(default=None, convert=as_dtype)
    weight_decay: WeightDecay = part(default=1e-4)
    mask: Mask | None = setting(default=None)
    nesterov: bool = setting(default=True)

    @typed
    def build(self, schedule: LearningRate) -> optax.GradientTransformationExtraArgs:
        nadamw = built(optax.nadamw, self, schedule)
        return real_if(self.mu_dtype is not None, nadamw, "`NAdamW.mu_dtype`")


decayed.register(NAdam, decayed_as(NAdamW))


@final
class Adan(AbstractOptimizer):
    """[Adan](https://arxiv.org/abs/2208.06677) (Xie et al. 2022): `optax.adan`.

    With $d = g - g'$ the difference to the last gradient, and $m$, $v$ and $n$ the
    moving averages of $g$, of $d$ and of $(g + (1 - \\beta_2) d)^2$, corrected for
    their start at 0, a step is the learning rate times $(m + (1 - \\beta_2) v) /
    (\\sqrt{n + \\bar\\epsilon} + \\epsilon)$ (algorithm 1).

    ```python
    >>> import functional_opt as fo
    >>> import jax.numpy as jnp
    >>> transformation = fo.Adan().build(0.1)
    >>> params = jnp.array([1.0, -1.0])
    >>> updates, _ = transformation.update(params, transformation.init(params), params)
    >>> [round(float(x), 3) for x in updates]
    [-0.1, 0.1]

    ```

    **Arguments:**

    - `b1`: exponential decay rate of $m$, in [0, 1).
    - `b2`: exponential decay rate of $v$, in [0, 1).
    - `b3`: exponential decay rate of $n$, in [0, 1).
    - `eps`: $\\epsilon$, in units of the gradient; at least 0.
    - `eps_root`: $\\bar\\epsilon$, in units of the squared gradient; at least 0.
    - `weight_decay`: decoupled weight decay per unit of learning rate, a number or a
        schedule; at least 0.
    - `mask`: mask function from the parameters to a tree of bools, true for those that
        decay, such as a [`Where`][]. If omitted, all decay.
    """

    _: KW_ONLY
    b1: DecayRate = number(default=0.98)
    b2: DecayRate = number(default=0.92)
    b3: DecayRate = number(default=0.99)
    eps: NonNegative = number(default=1e-8)
    eps_root: NonNegative = number(default=1e-8)
    weight_decay: WeightDecay = part(default=0.0)
    mask: Mask | None = setting(default=None)

    @typed
    def build(self, schedule: LearningRate) -> optax.GradientTransformationExtraArgs:
        return built(optax.adan, self, schedule)
