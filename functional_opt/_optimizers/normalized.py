"""Momentum of gradients in units of their own second moment."""

from collections.abc import Callable
from dataclasses import KW_ONLY
from typing import final

import jax
import optax

from .._base import AbstractOptimizer
from .._fields import as_dtype, number, setting
from .._transformations.gradients import real_only
from .._types import DecayRate, FloatDtype, LearningRate, NonNegative, typed
from .factories import built


@final
class ADOPT(AbstractOptimizer):
    """[ADOPT](https://arxiv.org/abs/2411.02853) (Taniguchi et al. 2024).

    `optax.contrib.adopt`: a gradient is divided by the second moment $v$ of those
    before it, at least $\\epsilon$, and clipped to at most $c_t = t^{1/4}$ at update
    $t$, from 0 on; a step is the learning rate times the moving average of these
    (algorithm 2). The first update only starts $v$.

    ```python
    >>> import functional_opt as fo
    >>> import jax.numpy as jnp
    >>> transformation = fo.ADOPT(b1=0.5).build(0.1)
    >>> params = jnp.array([1.0, -3.0])
    >>> updates, state = transformation.update(params, transformation.init(params))
    >>> updates, _ = transformation.update(params, state)
    >>> [round(float(x), 3) for x in updates]
    [-0.05, 0.05]

    ```

    **Arguments:**

    - `b1`: exponential decay rate of the momentum, in [0, 1).
    - `b2`: exponential decay rate of the second moment $v$, in [0, 1).
    - `eps`: $\\epsilon$, in units of the gradient; at least 0.
    - `mu_dtype`: dtype of the momentum; if omitted, that of the parameters.
    - `nesterov`: whether to use Nesterov momentum.
    - `use_clipping`: whether the divided gradient is clipped.
    - `clip_value_fn`: function from the number of completed updates to $c_t$. If
        omitted, it is $t^{1/4}$.
    """

    _: KW_ONLY
    b1: DecayRate = number(default=0.9)
    b2: DecayRate = number(default=0.9999)
    eps: NonNegative = number(default=1e-6)
    mu_dtype: FloatDtype | None = setting(default=None, convert=as_dtype)
    nesterov: bool = setting(default=False)
    use_clipping: bool = setting(default=True)
    clip_value_fn: Callable[[jax.Array], jax.Array] | None = setting(default=None)

    @typed
    def build(self, schedule: LearningRate) -> optax.GradientTransformationExtraArgs:
        clip_value = self.clip_value_fn or _fourth_root
        adopt = built(optax.contrib.adopt, self, schedule, clip_value_fn=clip_value)
        return real_only(adopt, "`ADOPT`")


def _fourth_root(count: jax.Array) -> jax.Array:
    return count**0.25
