"""Adam with other second moments."""

from dataclasses import KW_ONLY
from typing import final

import optax

from .._base import AbstractOptimizer, WeightDecay
from .._fields import number, part, setting
from .._types import DecayRate, LearningRate, NonNegative, typed
from .._where import Mask
from .factories import built


@final
class AdaBelief(AbstractOptimizer):
    """[AdaBelief](https://arxiv.org/abs/2010.07468) (Zhuang et al. 2020).

    `optax.adabelief`: Adam with $s$ in place of the second moment, the moving average
    of $(g - m)^2$, where $m$ is that of the gradient $g$; both corrected for their
    start at 0. A step is the learning rate times $m / (\\sqrt{s} + \\epsilon)$
    (algorithm 2).

    ```python
    >>> import functional_opt as fo
    >>> import jax.numpy as jnp
    >>> transformation = fo.AdaBelief(b1=0.5).build(0.1)
    >>> params = jnp.array([1.0, -3.0])
    >>> updates, _ = transformation.update(params, transformation.init(params))
    >>> [round(float(x), 3) for x in updates]
    [-0.2, 0.2]

    ```

    **Arguments:**

    - `b1`: exponential decay rate of the first moment $m$, in [0, 1).
    - `b2`: exponential decay rate of $s$, in [0, 1).
    - `eps`: $\\epsilon$, in units of the gradient; at least 0.
    - `eps_root`: added to $s$ at each update, in units of the squared gradient; at
        least 0.
    - `nesterov`: whether to use Nesterov momentum.
    """

    _: KW_ONLY
    b1: DecayRate = number(default=0.9)
    b2: DecayRate = number(default=0.999)
    eps: NonNegative = number(default=1e-16)
    eps_root: NonNegative = number(default=1e-16)
    nesterov: bool = setting(default=False)

    @typed
    def build(self, schedule: LearningRate) -> optax.GradientTransformationExtraArgs:
        return built(optax.adabelief, self, schedule)


@final
class ACProp(AbstractOptimizer):
    """[ACProp](https://arxiv.org/abs/2110.05454) (Zhuang et al. 2021).

    `optax.contrib.acprop`: with $s'$ the moving average of $(g - m)^2$ of the last
    update, as in [`AdaBelief`][], a step is the learning rate times $g / (\\sqrt{s'} +
    \\epsilon)$. The first step is the gradient itself.

    ```python
    >>> import functional_opt as fo
    >>> import jax.numpy as jnp
    >>> transformation = fo.ACProp().build(0.1)
    >>> params = jnp.array([1.0, -3.0])
    >>> updates, _ = transformation.update(params, transformation.init(params), params)
    >>> [round(float(x), 3) for x in updates]
    [-0.1, 0.3]

    ```

    **Arguments:**

    - `b1`, `b2`, `eps`, `eps_root`: as in [`AdaBelief`][].
    - `weight_decay`: decoupled weight decay per unit of learning rate, a number or a
        schedule; at least 0.
    - `mask`: mask function from the parameters to a tree of bools, true for those that
        decay, such as a [`Where`][]. If omitted, all decay.
    """

    _: KW_ONLY
    b1: DecayRate = number(default=0.9)
    b2: DecayRate = number(default=0.999)
    eps: NonNegative = number(default=1e-16)
    eps_root: NonNegative = number(default=1e-16)
    weight_decay: WeightDecay = part(default=0.0)
    mask: Mask | None = setting(default=None)

    @typed
    def build(self, schedule: LearningRate) -> optax.GradientTransformationExtraArgs:
        return built(optax.contrib.acprop, self, schedule)


@final
class RAdam(AbstractOptimizer):
    """[RAdam](https://arxiv.org/abs/1908.03265) (Liu et al. 2020): `optax.radam`.

    Adam whose steps are scaled by $\\sqrt{\\frac{(\\rho - 4) (\\rho - 2)
    \\rho_\\infty}{(\\rho_\\infty - 4) (\\rho_\\infty - 2) \\rho}}$, with $\\rho_\\infty
    = 2 / (1 - \\beta_2) - 1$ and $\\rho = \\rho_\\infty - 2 t \\beta_2^t / (1 -
    \\beta_2^t)$ at update $t$. While $\\rho$ is below `threshold`, they are not divided
    by the second moment at all (algorithm 2).

    ```python
    >>> import functional_opt as fo
    >>> import jax.numpy as jnp
    >>> transformation = fo.RAdam().build(0.1)
    >>> params = jnp.array([1.0, -3.0])
    >>> updates, _ = transformation.update(params, transformation.init(params))
    >>> [round(float(x), 3) for x in updates]
    [-0.1, 0.3]

    ```

    **Arguments:**

    - `b1`, `b2`, `eps`, `eps_root`, `nesterov`: as in [`Adam`][].
    - `threshold`: the least $\\rho$ at which the second moment is used; at least 0. The
        authors take 5: below 4, the scale is not a number.
    """

    _: KW_ONLY
    b1: DecayRate = number(default=0.9)
    b2: DecayRate = number(default=0.999)
    eps: NonNegative = number(default=1e-8)
    eps_root: NonNegative = number(default=0.0)
    threshold: NonNegative = number(default=5.0)
    nesterov: bool = setting(default=False)

    @typed
    def build(self, schedule: LearningRate) -> optax.GradientTransformationExtraArgs:
        return built(optax.radam, self, schedule)


@final
class Yogi(AbstractOptimizer):
    """[Yogi](https://proceedings.neurips.cc/paper/2018/hash/90365351ccc7437a1309dc64e4db32a3-Abstract.html)
    (Zaheer et al. 2018): `optax.yogi`.

    Adam with a second moment that moves by the gradient's square at most: $v
    \\leftarrow v - (1 - \\beta_2) sign(v - g^2) g^2$ (algorithm 2).

    ```python
    >>> import functional_opt as fo
    >>> import jax.numpy as jnp
    >>> transformation = fo.Yogi(b2=0.99).build(0.1)
    >>> params = jnp.array([1.0, -3.0])
    >>> updates, _ = transformation.update(params, transformation.init(params))
    >>> [round(float(x), 3) for x in updates]
    [-0.1, 0.1]

    ```

    **Arguments:**

    - `b1`: exponential decay rate of the first moment, in [0, 1).
    - `b2`: one minus it is the step size of the second moment $v$; in [0, 1).
    - `eps`: added to the square root, in units of the gradient; at least 0.
    """

    _: KW_ONLY
    b1: DecayRate = number(default=0.9)
    b2: DecayRate = number(default=0.999)
    eps: NonNegative = number(default=1e-3)

    @typed
    def build(self, schedule: LearningRate) -> optax.GradientTransformationExtraArgs:
        return built(optax.yogi, self, schedule)
