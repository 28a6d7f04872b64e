"""Steps of each parameter in units of its own norm, or of its gradient's."""

from dataclasses import KW_ONLY
from typing import final

import optax

from .._base import AbstractOptimizer
from .._composition.decay import decayed
from .._fields import number, setting
from .._transformations.gradients import as_params, inexact_only
from .._types import DecayRate, LearningRate, NonNegative, typed
from .._where import Mask
from .decay import decayed_beside
from .factories import built


@final
class Lamb(AbstractOptimizer):
    """[LAMB](https://arxiv.org/abs/1904.00962) (You et al. 2020): `optax.lamb`.

    With $r$ the step of [`AdamW`][] before the learning rate, its decay included, a
    step is the learning rate times $r \\|\\theta\\| / \\|r\\|$ (algorithm 2). The norms
    are those of one parameter.

    ```python
    >>> import functional_opt as fo
    >>> import jax.numpy as jnp
    >>> transformation = fo.Lamb().build(0.1)
    >>> params = jnp.array([3.0, -4.0])
    >>> updates, _ = transformation.update(params, transformation.init(params), params)
    >>> [round(float(x), 3) for x in updates]
    [-0.354, 0.354]

    ```

    **Arguments:**

    - `b1`, `b2`, `eps`, `eps_root`: as in [`Adam`][].
    - `weight_decay`: weight decay inside of $r$; at least 0. `Recipe.weight_decay`,
        which is not scaled by the norms, replaces it.
    - `mask`: mask function from the parameters to a tree of bools, true for those that
        decay, such as a [`Where`][]. If omitted, all decay.
    """

    _: KW_ONLY
    b1: DecayRate = number(default=0.9)
    b2: DecayRate = number(default=0.999)
    eps: NonNegative = number(default=1e-6)
    eps_root: NonNegative = number(default=0.0)
    weight_decay: NonNegative = number(default=0.0)
    mask: Mask | None = setting(default=None)

    @typed
    def build(self, schedule: LearningRate) -> optax.GradientTransformationExtraArgs:
        return built(optax.lamb, self, schedule)


decayed.register(Lamb, decayed_beside("weight_decay", 0.0, "mask"))


@final
class Lars(AbstractOptimizer):
    """[LARS](https://arxiv.org/abs/1708.03888) (You et al. 2017): `optax.lars`.

    Momentum of the learning rate times $\\eta (g + \\lambda \\theta) \\|\\theta\\| /
    (\\|g + \\lambda \\theta\\| + \\epsilon)$, with $\\eta$ = `trust_coefficient` and
    $\\lambda$ = `weight_decay` (algorithm 1). The norms are those of one parameter.

    ```python
    >>> import functional_opt as fo
    >>> import jax.numpy as jnp
    >>> transformation = fo.Lars().build(1.0)
    >>> params = jnp.array([3.0, -4.0])
    >>> updates, _ = transformation.update(params, transformation.init(params), params)
    >>> [round(float(x), 3) for x in updates]
    [-0.003, 0.004]

    ```

    **Arguments:**

    - `weight_decay`: $\\lambda$, at least 0. `Recipe.weight_decay`, which is decoupled,
        replaces it.
    - `weight_decay_mask`: mask function from the parameters to a tree of bools, true
        for those that decay, such as a [`Where`][]; or one bool for all.
    - `trust_coefficient`: $\\eta$, at least 0.
    - `eps`: $\\epsilon$, in units of the gradient's norm; at least 0.
    - `trust_ratio_mask`: mask function, true for the parameters that are scaled by
        their norms; or one bool for all. The others take the steps of SGD with
        momentum.
    - `momentum`: decay rate of the momentum, in [0, 1).
    - `nesterov`: whether to use Nesterov momentum.
    """

    _: KW_ONLY
    weight_decay: NonNegative = number(default=0.0)
    weight_decay_mask: Mask | bool = setting(default=True)
    trust_coefficient: NonNegative = number(default=0.001)
    eps: NonNegative = number(default=0.0)
    trust_ratio_mask: Mask | bool = setting(default=True)
    momentum: DecayRate = number(default=0.9)
    nesterov: bool = setting(default=False)

    @typed
    def build(self, schedule: LearningRate) -> optax.GradientTransformationExtraArgs:
        return built(optax.lars, self, schedule)


decayed.register(Lars, decayed_beside("weight_decay", 0.0, "weight_decay_mask"))


@final
class Fromage(AbstractOptimizer):
    """[Fromage](https://arxiv.org/abs/2002.03432) (Bernstein et al. 2020).

    `optax.fromage`: with the learning rate $\\eta$, $\\theta \\leftarrow (\\theta -
    \\eta g \\|\\theta\\| / \\|g\\|) / \\sqrt{1 + \\eta^2}$ (algorithm 1). The norms are
    those of one parameter.

    ```python
    >>> import functional_opt as fo
    >>> import jax.numpy as jnp
    >>> transformation = fo.Fromage().build(0.01)
    >>> params = jnp.array([3.0, -4.0])
    >>> updates, _ = transformation.update(params, transformation.init(params), params)
    >>> [round(float(x), 3) for x in updates]
    [-0.03, 0.04]

    ```

    **Arguments:**

    - `min_norm`: the least norm, in units of the parameters and of the gradient; at
        least 0.
    """

    _: KW_ONLY
    min_norm: NonNegative = number(default=1e-6)

    @typed
    def build(self, schedule: LearningRate) -> optax.GradientTransformationExtraArgs:
        return built(optax.fromage, self, schedule)


@final
class Novograd(AbstractOptimizer):
    """[NovoGrad](https://arxiv.org/abs/1905.11286) (Ginsburg et al. 2019).

    `optax.novograd`: with $v$ the moving average of the squared norm of a parameter's
    gradient, a step is the learning rate times the momentum $m \\leftarrow \\beta_1 m +
    g / (\\sqrt{v + \\bar\\epsilon} + \\epsilon) + \\lambda \\theta$ (algorithm 1).

    ```python
    >>> import functional_opt as fo
    >>> import jax.numpy as jnp
    >>> transformation = fo.Novograd().build(0.1)
    >>> params = jnp.array([3.0, -4.0])
    >>> updates, _ = transformation.update(params, transformation.init(params), params)
    >>> [round(float(x), 3) for x in updates]
    [-0.06, 0.08]

    ```

    **Arguments:**

    - `b1`: decay rate of the momentum $m$, in [0, 1).
    - `b2`: exponential decay rate of the squared norm $v$, in [0, 1).
    - `eps`: $\\epsilon$, in units of the gradient's norm; at least 0.
    - `eps_root`: $\\bar\\epsilon$, in units of the squared norm; at least 0.
    - `weight_decay`: $\\lambda$, at least 0. `Recipe.weight_decay`, which is not part
        of the momentum, replaces it.
    """

    _: KW_ONLY
    b1: DecayRate = number(default=0.9)
    b2: DecayRate = number(default=0.25)
    eps: NonNegative = number(default=1e-6)
    eps_root: NonNegative = number(default=0.0)
    weight_decay: NonNegative = number(default=0.0)

    @typed
    def build(self, schedule: LearningRate) -> optax.GradientTransformationExtraArgs:
        novograd = as_params(built(optax.novograd, self, schedule))
        return inexact_only(novograd, "`Novograd`")


decayed.register(Novograd, decayed_beside("weight_decay", 0.0))
