"""Steps along a gradient corrected by the last one."""

import functools
from dataclasses import KW_ONLY
from typing import final

import jax
import optax
from jaxtyping import PyTree

from .._base import AbstractOptimizer, WeightDecay
from .._fields import as_dtype, number, part, setting
from .._transformations.gradients import real_if
from .._transformations.variance_reduction import reduce_variance
from .._types import (
    DecayRate,
    FloatDtype,
    LearningRate,
    NonNegative,
    Positive,
    typed,
)
from .._where import Mask
from .decay import descend


@final
class Mars(AbstractOptimizer):
    """[MARS](https://arxiv.org/abs/2411.10438) (Yuan et al. 2024): MARS-AdamW.

    AdamW on $c = g + \\gamma \\beta_1 / (1 - \\beta_1) (g - g')$, with $g'$ the
    gradient of the last update (algorithm 2). A $c$ of a norm above `max_norm` is
    scaled down to it, each parameter on its own. As in its authors' code, what is not
    of rank 2 is left to plain AdamW, unless `optimize_1d`.

    ```python
    >>> import functional_opt as fo
    >>> import jax.numpy as jnp
    >>> transformation = fo.Mars().build(3e-3)
    >>> params = {"weight": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    >>> updates, _ = transformation.update(params, transformation.init(params), params)
    >>> round(float(updates["weight"][0, 0]), 5), round(float(updates["bias"][0]), 5)
    (-0.003, -0.003)

    ```

    **Arguments:**

    - `b1`, `b2`, `eps`, `mu_dtype`: as in [`Adam`][].
    - `gamma`: $\\gamma$, the scale of the correction; at least 0.
    - `max_norm`: the largest norm of $c$, in units of the gradient; greater than 0. If
        None, $c$ is not clipped.
    - `weight_decay`: decoupled weight decay per unit of learning rate, a number or a
        schedule; at least 0.
    - `mask`: mask function from the parameters to a tree of bools, true for those that
        decay, such as a [`Where`][]. If omitted, all decay.
    - `optimize_1d`: whether all parameters are updated like matrices.
    - `b1_1d`, `b2_1d`: of plain AdamW, as `b1` and `b2` in [`AdamW`][].
    """

    _: KW_ONLY
    b1: DecayRate = number(default=0.95)
    b2: DecayRate = number(default=0.99)
    eps: NonNegative = number(default=1e-8)
    gamma: NonNegative = number(default=0.025)
    max_norm: Positive | None = number(default=1.0)
    mu_dtype: FloatDtype | None = setting(default=None, convert=as_dtype)
    weight_decay: WeightDecay = part(default=0.0)
    mask: Mask | None = setting(default=None)
    optimize_1d: bool = setting(default=False)
    b1_1d: DecayRate = number(default=0.9)
    b2_1d: DecayRate = number(default=0.95)

    @typed
    def build(self, schedule: LearningRate) -> optax.GradientTransformationExtraArgs:
        adam = functools.partial(
            optax.scale_by_adam, eps=self.eps, mu_dtype=self.mu_dtype
        )
        scaled = optax.chain(
            reduce_variance(self.gamma, self.b1, self.max_norm), adam(self.b1, self.b2)
        )
        if not self.optimize_1d:
            plain = adam(self.b1_1d, self.b2_1d)
            scaled = optax.partition({"matrix": scaled, "other": plain}, _kinds)
        scaled = real_if(self.mu_dtype is not None, scaled, "`Mars.mu_dtype`")
        return descend(scaled, schedule, self.weight_decay, self.mask)


def _kinds(params: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: "matrix" if leaf.ndim == 2 else "other", params)
