"""Steps in units of the curvature."""

from collections.abc import Mapping
from dataclasses import KW_ONLY
from types import MappingProxyType
from typing import ClassVar, final, Literal

import optax

from .._base import AbstractOptimizer, WeightDecay
from .._extra_args import ExtraArg
from .._fields import as_dtype, number, part, setting
from .._transformations.gradients import as_params, inexact_only, real_only
from .._types import (
    check_transformation,
    Count,
    DecayRate,
    FloatDtype,
    LearningRate,
    NonNegative,
    Positive,
    PositiveCount,
    Transformation,
    typed,
)
from .._where import Mask
from .factories import built
from .loss import LOSS


LOSS_FUNCTION = "the loss as a function of the parameters"


def _searches(optimizer: "LBFGS") -> bool:
    return optimizer.linesearch is not None


def _calls_loss(optimizer: "Sophia") -> bool:
    return optimizer.hessian_diagonal_fn is None


SEARCHED = MappingProxyType(
    {
        "value_fn": ExtraArg(
            LOSS_FUNCTION, "Set `LBFGS.linesearch` to None.", _searches
        ),
        "grad": ExtraArg("the gradient", when=_searches),
        "value": LOSS["value"]._replace(when=_searches),
    }
)
ESTIMATED = MappingProxyType(
    {
        "obj_fn": ExtraArg(
            LOSS_FUNCTION,
            "Set `Sophia.hessian_diagonal_fn` to an Optax transformation that "
            "estimates the diagonal of the Hessian from gradients and parameters "
            "alone.",
            _calls_loss,
        )
    }
)


@final
class LBFGS(AbstractOptimizer):
    """[L-BFGS](https://doi.org/10.1007/BF01589116) (Liu and Nocedal 1989).

    `optax.lbfgs`: the inverse Hessian times the gradient, as the last `memory_size`
    changes of the parameters and of the gradient show it (algorithms 7.4 and 7.5 of
    [Nocedal and Wright 2006](https://doi.org/10.1007/978-0-387-40065-5)), with a line
    search for the size of the step. The gradient should have no noise.

    ```python
    >>> import functional_opt as fo
    >>> import jax.numpy as jnp
    >>> transformation = fo.LBFGS(linesearch=None).build(0.1)
    >>> params = jnp.array([3.0, -4.0])
    >>> updates, _ = transformation.update(params, transformation.init(params), params)
    >>> [round(float(x), 3) for x in updates]
    [-0.06, 0.08]

    ```

    **Arguments:**

    - `memory_size`: the number of changes that are stored, at least 1.
    - `scale_init_precond`: whether the first Hessian is scaled by the newest change, or
        before that by the norm of the gradient.
    - `linesearch`: the line search after the learning rate, which is 1 then: "zoom" is
        that of Optax; any other of its line searches exists in Python only. It calls
        the loss, so that stages and `Groups` require None.
    """

    EXTRA_ARGS: ClassVar[Mapping[str, ExtraArg]] = SEARCHED

    _: KW_ONLY
    memory_size: PositiveCount = setting(default=10)
    scale_init_precond: bool = setting(default=True)
    linesearch: Literal["zoom"] | Transformation | None = setting(default="zoom")

    def _check(self) -> None:
        if isinstance(self.linesearch, str) and self.linesearch != "zoom":
            raise ValueError(
                f"`LBFGS.linesearch` must be 'zoom', None or an Optax transformation, "
                f"got {self.linesearch!r}."
            )

    def __check_init__(self) -> None:
        if self.linesearch not in ("zoom", None):
            check_transformation("LBFGS.linesearch", self.linesearch)

    @typed
    def build(self, schedule: LearningRate) -> optax.GradientTransformationExtraArgs:
        search = self.linesearch
        if search == "zoom":
            search = optax.scale_by_zoom_linesearch(
                max_linesearch_steps=20, initial_guess_strategy="one"
            )
        lbfgs = built(optax.lbfgs, self, schedule, linesearch=search)
        real = real_only(as_params(lbfgs), "`LBFGS`")
        return inexact_only(real, "`LBFGS`")


@final
class Sophia(AbstractOptimizer):
    """[Sophia](https://arxiv.org/abs/2305.14342) (Liu et al. 2023).

    `optax.contrib.sophia`: with $m$ the moving average of the gradient, corrected for
    its start at 0, and $h$ that of an estimate of the diagonal of the Hessian, which is
    made every `update_interval` updates, a step is the learning rate times
    $clip(m / \\max(\\gamma h, \\epsilon), \\rho) + \\lambda \\theta$, with $\\rho$ =
    `clip_threshold` (algorithm 3). The correction of $m$ is that of Optax; the authors'
    code has none.

    ```python
    >>> import functional_opt as fo
    >>> import jax.numpy as jnp
    >>> transformation = fo.Sophia(weight_decay=0.0).build(0.1)
    >>> params = jnp.array([1.0, -3.0])
    >>> updates, _ = transformation.update(
    ...     2 * params,
    ...     transformation.init(params),
    ...     params,
    ...     obj_fn=lambda params: jnp.sum(params**2),
    ... )
    >>> [round(float(x), 3) for x in updates]
    [-0.1, 0.1]

    ```

    **Arguments:**

    - `b1`: exponential decay rate of $m$, in [0, 1).
    - `b2`: exponential decay rate of $h$, in [0, 1).
    - `eps`: $\\epsilon$, in units of the curvature; at least 0.
    - `weight_decay`: decoupled weight decay per unit of learning rate, a number or a
        schedule; at least 0.
    - `weight_decay_mask`: mask function from the parameters to a tree of bools, true
        for those that decay, such as a [`Where`][]. If omitted, all decay.
    - `gamma`: $\\gamma$, greater than 0.
    - `clip_threshold`: $\\rho$, greater than 0. If None, steps are not clipped.
    - `update_interval`: the number of updates between two estimates of the Hessian; at
        least 1.
    - `hessian_diagonal_fn`: an Optax transformation whose updates are the estimate. If
        omitted, it is Hutchinson's, `optax.contrib.hutchinson_estimator_diag_hessian`,
        which calls the loss, so that stages and `Groups` require another one.
    - `mu_dtype`: dtype of $m$; if omitted, that of the parameters.
    - `verbose`: whether the fraction of entries that are not clipped is printed, once
        in `print_win_rate_every_n_steps` updates.
    - `print_win_rate_every_n_steps`: the number of updates between two prints.
    """

    EXTRA_ARGS: ClassVar[Mapping[str, ExtraArg]] = ESTIMATED

    _: KW_ONLY
    b1: DecayRate = number(default=0.965)
    b2: DecayRate = number(default=0.99)
    eps: NonNegative = number(default=1e-8)
    weight_decay: WeightDecay = part(default=1e-4)
    weight_decay_mask: Mask | None = setting(default=None)
    gamma: Positive = number(default=0.01)
    clip_threshold: Positive | None = number(default=1.0)
    update_interval: PositiveCount = setting(default=10)
    hessian_diagonal_fn: Transformation | None = setting(default=None)
    mu_dtype: FloatDtype | None = setting(default=None, convert=as_dtype)
    verbose: bool = setting(default=False)
    print_win_rate_every_n_steps: Count = setting(default=0)

    def _check(self) -> None:
        if self.verbose and self.print_win_rate_every_n_steps == 0:
            raise ValueError(
                "`Sophia.verbose` requires `Sophia.print_win_rate_every_n_steps` of at "
                "least 1, got 0."
            )

    def __check_init__(self) -> None:
        if self.hessian_diagonal_fn is not None:
            name = "Sophia.hessian_diagonal_fn"
            check_transformation(name, self.hessian_diagonal_fn)

    @typed
    def build(self, schedule: LearningRate) -> optax.GradientTransformationExtraArgs:
        estimate = self.hessian_diagonal_fn
        if estimate is None:
            estimate = optax.contrib.hutchinson_estimator_diag_hessian()
        sophia = built(
            optax.contrib.sophia, self, schedule, hessian_diagonal_fn=estimate
        )
        real = real_only(as_params(sophia), "`Sophia`")
        return inexact_only(real, "`Sophia`")
