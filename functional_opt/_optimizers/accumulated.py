"""Steps in units of sums over all gradients so far."""

from collections.abc import Mapping
from dataclasses import KW_ONLY
from types import MappingProxyType
from typing import ClassVar, final

import optax

from .._base import AbstractOptimizer
from .._composition.decay import decayed
from .._fields import number, setting
from .._transformations.gradients import filled_only, real_only
from .._transformations.shapes import scalars_as_vectors
from .._types import DecayRate, LearningRate, NonNegative, Positive, typed
from .._where import Mask
from .decay import decayed_beside
from .factories import built


@final
class AdaGrad(AbstractOptimizer):
    """[AdaGrad](https://jmlr.org/papers/v12/duchi11a.html) (Duchi et al. 2011).

    `optax.adagrad`: with $v$ the sum of the squares of all gradients, a step is the
    learning rate times $g / \\sqrt{v + \\epsilon}$, or 0 where $v$ is 0: the diagonal
    form of figure 1.

    ```python
    >>> import functional_opt as fo
    >>> import jax.numpy as jnp
    >>> transformation = fo.AdaGrad(initial_accumulator_value=0.0).build(0.1)
    >>> params = jnp.array([1.0, -3.0])
    >>> updates, _ = transformation.update(params, transformation.init(params))
    >>> [round(float(x), 3) for x in updates]
    [-0.1, 0.1]

    ```

    **Arguments:**

    - `initial_accumulator_value`: initial value of $v$, in units of the squared
        gradient; at least 0.
    - `eps`: $\\epsilon$, in units of the squared gradient; at least 0.
    """

    _: KW_ONLY
    initial_accumulator_value: NonNegative = number(default=0.1)
    eps: NonNegative = number(default=1e-7)

    @typed
    def build(self, schedule: LearningRate) -> optax.GradientTransformationExtraArgs:
        return built(optax.adagrad, self, schedule)


@final
class AdaDelta(AbstractOptimizer):
    """[AdaDelta](https://arxiv.org/abs/1212.5701) (Zeiler 2012): `optax.adadelta`.

    With $v$ and $u$ the moving averages of the squares of the gradients and of the
    steps, before the learning rate, a step is the learning rate times $g \\sqrt{u +
    \\epsilon} / \\sqrt{v + \\epsilon}$ (algorithm 1). The paper has no learning rate:
    it is 1.

    ```python
    >>> import functional_opt as fo
    >>> import jax.numpy as jnp
    >>> transformation = fo.AdaDelta(eps=1e-4).build(1.0)
    >>> params = jnp.array([1.0, -3.0])
    >>> updates, _ = transformation.update(params, transformation.init(params), params)
    >>> [round(float(x), 3) for x in updates]
    [-0.032, 0.032]

    ```

    **Arguments:**

    - `rho`: exponential decay rate of $v$ and $u$, in [0, 1).
    - `eps`: $\\epsilon$, in units of the squared gradient in one root and of the
        squared parameter in the other; at least 0.
    - `weight_decay`: L2 regularization: this times the parameter is added to the
        gradient; at least 0. `Recipe.weight_decay`, which is decoupled, replaces it.
    - `weight_decay_mask`: mask function from the parameters to a tree of bools, true
        for those that decay, such as a [`Where`][]. If omitted, all decay.
    """

    _: KW_ONLY
    rho: DecayRate = number(default=0.9)
    eps: NonNegative = number(default=1e-6)
    weight_decay: NonNegative = number(default=0.0)
    weight_decay_mask: Mask | None = setting(default=None)

    @typed
    def build(self, schedule: LearningRate) -> optax.GradientTransformationExtraArgs:
        return real_only(built(optax.adadelta, self, schedule), "`AdaDelta`")


decayed.register(AdaDelta, decayed_beside("weight_decay", 0.0, "weight_decay_mask"))


@final
class SM3(AbstractOptimizer):
    """[SM3](https://arxiv.org/abs/1901.11150) (Anil et al. 2019): `optax.sm3`.

    AdaGrad with one accumulator per row, column and so on, in place of one per entry:
    $v$ is the squared gradient plus the least accumulator of an entry, and each
    accumulator becomes the largest $v$ along it. A step is the learning rate times a
    momentum of $g / \\sqrt{v}$ (algorithm SM3-II).

    ```python
    >>> import functional_opt as fo
    >>> import jax, jax.numpy as jnp
    >>> transformation = fo.SM3().build(0.1)
    >>> state = transformation.init(jnp.ones((16, 8)))
    >>> sorted(leaf.shape for leaf in jax.tree.leaves(state))
    [(8,), (16,), (16, 8)]

    ```

    **Arguments:**

    - `momentum`: exponential decay rate of the momentum, in [0, 1).
    """

    _: KW_ONLY
    momentum: DecayRate = number(default=0.9)

    @typed
    def build(self, schedule: LearningRate) -> optax.GradientTransformationExtraArgs:
        # `optax.sm3` takes no schedule.
        sm3 = optax.chain(
            optax.scale_by_sm3(self.momentum), optax.scale_by_learning_rate(schedule)
        )
        real = real_only(scalars_as_vectors(sm3), "`SM3`")
        return filled_only(real, "`SM3`")


@final
class MADGRAD(AbstractOptimizer):
    """[MADGRAD](https://arxiv.org/abs/2101.11075) (Defazio and Jelassi 2021).

    `optax.contrib.madgrad`: with $\\lambda_t = \\eta \\sqrt{t + 1}$ for the learning
    rate $\\eta$, and $s$ and $v$ the sums of $\\lambda_t g$ and $\\lambda_t g^2$, the
    parameters move by a fraction $1 - \\mu$ of the way to $x_0 - s / (\\sqrt[3]{v} +
    \\epsilon)$, where $x_0$ are the first parameters and $\\mu$ is `momentum`
    (algorithm 1).

    ```python
    >>> import functional_opt as fo
    >>> import jax.numpy as jnp
    >>> transformation = fo.MADGRAD(momentum=0.0).build(0.001)
    >>> params = jnp.array([1.0, -1.0])
    >>> updates, _ = transformation.update(params, transformation.init(params), params)
    >>> [round(float(x), 3) for x in updates]
    [-0.01, 0.01]

    ```

    **Arguments:**

    - `momentum`: $\\mu$, in [0, 1).
    - `weight_decay`: L2 regularization: this times the parameter is added to the
        gradient; at least 0. `Recipe.weight_decay`, which is decoupled, replaces it.
    - `eps`: $\\epsilon$, greater than 0; it is added to the learning rate, too.
    """

    REFUSED_BY: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            "QKClip": "its parameters follow from sums over all gradients, which would "
            "undo earlier changes. Use another optimizer for these weights."
        }
    )

    _: KW_ONLY
    momentum: DecayRate = number(default=0.9)
    weight_decay: NonNegative = number(default=0.0)
    eps: Positive = number(default=1e-6)

    @typed
    def build(self, schedule: LearningRate) -> optax.GradientTransformationExtraArgs:
        return real_only(built(optax.contrib.madgrad, self, schedule), "`MADGRAD`")


decayed.register(MADGRAD, decayed_beside("weight_decay", 0.0))
