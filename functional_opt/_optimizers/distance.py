"""Steps in units of the distance from the first parameters."""

from collections.abc import Mapping
from dataclasses import KW_ONLY
from types import MappingProxyType
from typing import Annotated, ClassVar, final, Literal

import optax
from annotated_types import Interval

from .._base import AbstractOptimizer
from .._composition.decay import decayed
from .._fields import number, setting
from .._transformations.gradients import real_only
from .._types import LearningRate, NonNegative, Positive, typed
from .._where import Mask
from .decay import decayed_beside
from .factories import built


InitStep = tuple[
    Literal["distance", "learning_rate", "heuristic"],
    Annotated[float, Interval(gt=0)],
]


@final
class DoG(AbstractOptimizer):
    """[DoG](https://arxiv.org/abs/2302.12022) (Ivgi et al. 2023): `optax.contrib.dog`.

    SGD with the step size $\\eta \\bar r / \\sqrt{G + \\epsilon}$. The given learning
    rate $\\eta$ is 1, $\\bar r$ is the largest distance so far from the first
    parameters, and $G$ is the sum of the squared norms of all gradients, both over the
    whole model (equation 1). The method includes an average of the parameters, such as
    that of `Recipe.ema_decay`.

    ```python
    >>> import functional_opt as fo
    >>> import jax.numpy as jnp
    >>> transformation = fo.DoG(init_step=("distance", 0.1)).build(1.0)
    >>> params = jnp.array([3.0, -4.0])
    >>> updates, _ = transformation.update(params, transformation.init(params), params)
    >>> [round(float(x), 3) for x in updates]
    [-0.06, 0.08]

    ```

    **Arguments:**

    - `init_step`: a rule for the first step, and a number greater than 0. With
        "distance" the number is the first $\\bar r$; with "heuristic" it is multiplied
        by 1 plus the norm of the parameters; with "learning_rate" it is the first step
        size.
    - `eps`: $\\epsilon$, in units of the squared norm; at least 0.
    - `weight_decay`: L2 regularization: this times the parameter is added to the
        gradient; at least 0. If None, there is none. `Recipe.weight_decay`, which is
        decoupled and per unit of the given learning rate, replaces it.
    - `mask`: mask function from the parameters to a tree of bools, true for those that
        decay, such as a [`Where`][]. If omitted, all decay.
    """

    _: KW_ONLY
    init_step: InitStep = setting(default=("heuristic", 1e-6))
    eps: NonNegative = number(default=1e-8)
    weight_decay: NonNegative | None = number(default=None)
    mask: Mask | None = setting(default=None)

    @typed
    def build(self, schedule: LearningRate) -> optax.GradientTransformationExtraArgs:
        return real_only(built(optax.contrib.dog, self, schedule), "`DoG`")


decayed.register(DoG, decayed_beside("weight_decay", None, "mask"))


@final
class DoWG(AbstractOptimizer):
    """[DoWG](https://arxiv.org/abs/2305.16284) (Khaled et al. 2023).

    `optax.contrib.dowg`: SGD with the step size $\\eta \\bar r^2 / (\\sqrt{v} +
    \\epsilon)$. The given learning rate $\\eta$ is 1, $\\bar r^2$ is the largest
    squared distance so far from the first parameters, and $v$ is the sum of $\\bar r^2
    \\|g\\|^2$ over all updates, both over the whole model (algorithm 1).

    ```python
    >>> import functional_opt as fo
    >>> import jax.numpy as jnp
    >>> transformation = fo.DoWG(init_estim_sq_dist=0.01).build(1.0)
    >>> params = jnp.array([3.0, -4.0])
    >>> updates, _ = transformation.update(params, transformation.init(params), params)
    >>> [round(float(x), 3) for x in updates]
    [-0.06, 0.08]

    ```

    **Arguments:**

    - `init_estim_sq_dist`: the first $\\bar r^2$; greater than 0. If None, it is `eps`.
    - `eps`: $\\epsilon$, greater than 0.
    - `weight_decay`, `mask`: as in [`DoG`][].
    """

    _: KW_ONLY
    init_estim_sq_dist: Positive | None = number(default=None)
    eps: Positive = number(default=1e-4)
    weight_decay: NonNegative | None = number(default=None)
    mask: Mask | None = setting(default=None)

    @typed
    def build(self, schedule: LearningRate) -> optax.GradientTransformationExtraArgs:
        return real_only(built(optax.contrib.dowg, self, schedule), "`DoWG`")


decayed.register(DoWG, decayed_beside("weight_decay", None, "mask"))


@final
class COCOB(AbstractOptimizer):
    """[COCOB](https://arxiv.org/abs/1705.07795) (Orabona and Tommasi 2017).

    `optax.contrib.cocob`: every entry of a parameter bets on its next gradient, with
    what it has won so far: its distance from the first value follows from sums over the
    gradients alone (algorithm 2). The learning rate scales the gradient, and is 1.

    ```python
    >>> import functional_opt as fo
    >>> import jax.numpy as jnp
    >>> transformation = fo.COCOB().build(1.0)
    >>> params = jnp.array([1.0, -3.0])
    >>> updates, _ = transformation.update(params, transformation.init(params), params)
    >>> [round(float(x), 3) for x in updates]
    [-0.01, 0.01]

    ```

    **Arguments:**

    - `alpha`: limits the first bets to 1 part in `alpha`; greater than 0.
    - `eps`: initial value of the largest gradient, in its units; greater than 0.
    - `weight_decay`: L2 regularization: this times the parameter is added to the
        gradient; at least 0. `Recipe.weight_decay`, which is decoupled, replaces it.
    - `mask`: mask function from the parameters to a tree of bools, true for those that
        decay, such as a [`Where`][]. If omitted, all decay.
    """

    REFUSED_BY: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            "QKClip": "its parameters follow from sums over all gradients, which would "
            "undo earlier changes. Use another optimizer for these weights."
        }
    )

    _: KW_ONLY
    alpha: Positive = number(default=100.0)
    eps: Positive = number(default=1e-8)
    weight_decay: NonNegative = number(default=0.0)
    mask: Mask | None = setting(default=None)

    @typed
    def build(self, schedule: LearningRate) -> optax.GradientTransformationExtraArgs:
        return real_only(built(optax.contrib.cocob, self, schedule), "`COCOB`")


decayed.register(COCOB, decayed_beside("weight_decay", 0.0, "mask"))
