"""Adam with moments of low rank."""

from collections.abc import Callable
from dataclasses import KW_ONLY
from typing import ClassVar, final

import optax
from jaxtyping import PyTree
from optax.contrib import GaLoreDimensionNumbers

from .._base import AbstractOptimizer, WeightDecay
from .._fields import number, part, setting
from .._transformations.gradients import as_params, real_only
from .._types import LearningRate, Positive, PositiveCount, typed
from .._where import Mask
from .factories import built


@final
class GaLore(AbstractOptimizer):
    """[GaLore](https://arxiv.org/abs/2403.03507) (Zhao et al. 2024).

    `optax.contrib.galore`: an optimizer, by default Adam, on gradients of matrices that
    are projected to `rank` rows or columns, so that its state is small. The projection
    consists of the first singular vectors of a gradient, and is recomputed every
    `update_proj_gap` updates (algorithm 2). Parameters that are not of rank 2 are not
    projected.

    ```python
    >>> import functional_opt as fo
    >>> import jax, jax.numpy as jnp
    >>> transformation = fo.GaLore(rank=2).build(0.1)
    >>> state = transformation.init(jnp.ones((16, 8)))
    >>> sorted(leaf.shape for leaf in jax.tree.leaves(state) if leaf.ndim)
    [(2, 8), (2, 8), (16, 2)]

    ```

    **Arguments:**

    - `rank`: the number of singular vectors, at least 1.
    - `update_proj_gap`: the number of updates between two projections; at least 1.
    - `scale`: factor on the steps of projected parameters; greater than 0.
    - `base_optimizer`: the optimizer of the projected gradients, which has no weight
        decay. If omitted, it is Adam.
    - `weight_decay`: decoupled weight decay per unit of learning rate, a number or a
        schedule; at least 0.
    - `mask`: mask function from the parameters to a tree of bools, true for those that
        decay, such as a [`Where`][]. If omitted, all decay.
    - `weight_dimension_numbers`: which axes of a parameter are rows and columns: an
        `optax.contrib.GaLoreDimensionNumbers` for all parameters of rank 2 or more, or
        a function from the parameters to a tree of these, with None for those that are
        not projected.
    """

    UNDOES: ClassVar[str | None] = "its projection"

    _: KW_ONLY
    rank: PositiveCount = setting(default=128)
    update_proj_gap: PositiveCount = setting(default=200)
    scale: Positive = number(default=1.0)
    base_optimizer: AbstractOptimizer | None = part(default=None)
    weight_decay: WeightDecay = part(default=0.0)
    mask: Mask | None = setting(default=None)
    weight_dimension_numbers: (
        GaLoreDimensionNumbers | Callable[[PyTree], PyTree] | None
    ) = setting(default=None)

    @typed
    def build(self, schedule: LearningRate) -> optax.GradientTransformationExtraArgs:
        base = self.base_optimizer
        # GaLore negates and scales the updates of the inner optimizer by the rate.
        inner = None if base is None else base.build(-1.0)
        galore = built(optax.contrib.galore, self, schedule, base_optimizer=inner)
        return real_only(as_params(galore), "`GaLore`")
