"""Optimizers for parameters in narrow floating point."""

from dataclasses import KW_ONLY
from typing import ClassVar, final

import optax

from .._base import AbstractOptimizer
from .._composition.state_dtype import ROUNDING
from .._fields import part, setting
from .._transformations.rounding import round_stochastically, sum_with_compensation
from .._types import LearningRate, Seed, typed


@final
class StochasticRounding(AbstractOptimizer):
    """Rounds updated bfloat16 parameters at random, so that small updates add up.

    A bfloat16 parameter does not change when an update is below 1/512 of it. Here, the
    sum of both is rounded up or down with probabilities that make it right on average
    ([Gupta et al. 2015](https://arxiv.org/abs/1502.02551), section 3). Random numbers
    follow from `seed`, the path of a parameter and the number of completed updates:
    they do not depend on how the parameters are split into stages. The state is that
    number. Parameters of other dtypes are updated as without this wrapper.

    The updates that it returns are differences of bfloat16 numbers: what would change
    them, such as `Recipe.clip_update` or [`ScheduleFree`][], is refused around it. In
    bfloat16 a difference is itself rounded to nearest if it is larger than the
    parameter. What the optimizer inside stores in bfloat16, such as the iterates of
    `ScheduleFree`, is rounded to nearest: set its `state_dtype`.

    ```python
    >>> import functional_opt as fo
    >>> import jax
    >>> import jax.numpy as jnp
    >>> params = jnp.ones(1000, "bfloat16")
    >>> grads = jnp.full_like(params, 2**-12)
    >>> def mean_after_a_step(optimizer):
    ...     transformation = optimizer.build(1.0)
    ...     state = transformation.init(params)
    ...     updates, _ = transformation.update(grads, state, params)
    ...     return float(jnp.mean(params + updates, dtype="float32"))
    >>> mean_after_a_step(fo.SGD())
    1.0
    >>> abs(mean_after_a_step(fo.StochasticRounding(fo.SGD())) - (1 - 2**-12)) < 1e-4
    True

    ```

    **Arguments:**

    - `optimizer`: the optimizer. `Recipe.state_dtype` applies to it.
    - `seed`: the seed of the random numbers, in [0, $2^{32}$).
    """

    DETERMINES: ClassVar[str | None] = ROUNDING

    UNDOES: ClassVar[str | None] = None

    optimizer: AbstractOptimizer = part()
    _: KW_ONLY
    seed: Seed = setting(default=0)

    @typed
    def build(self, schedule: LearningRate) -> optax.GradientTransformationExtraArgs:
        return round_stochastically(self.optimizer.build(schedule), self.seed)


@final
class KahanSummation(AbstractOptimizer):
    """Keeps what rounding takes from narrow parameters, and adds it to later updates.

    Compensated summation ([Kahan 1965](https://doi.org/10.1145/363707.363723)) of the
    updates of bfloat16 and float16 parameters, as in algorithm 1 of [Zamirai et al.
    2020](https://arxiv.org/abs/2010.06192). The state has one compensation for each of
    these parameters, of its shape and dtype. Parameters of other dtypes are updated as
    without this wrapper.

    The compensation belongs to the updates as they are returned: what would change
    them, such as `Recipe.clip_update` or [`ScheduleFree`][], is refused around it. What
    the optimizer inside stores in a narrow dtype, such as the iterates of
    `ScheduleFree`, is not compensated: set its `state_dtype`.

    ```python
    >>> import functional_opt as fo
    >>> import jax.numpy as jnp
    >>> transformation = fo.KahanSummation(fo.SGD()).build(1.0)
    >>> params = jnp.ones((), "bfloat16")
    >>> state = transformation.init(params)
    >>> for _ in range(64):
    ...     grads = jnp.full_like(params, 2**-12)
    ...     updates, state = transformation.update(grads, state, params)
    ...     params = params + updates
    >>> float(params) == 1 - 64 * 2**-12
    True

    ```

    **Arguments:**

    - `optimizer`: the optimizer. `Recipe.state_dtype` applies to it.
    """

    DETERMINES: ClassVar[str | None] = ROUNDING

    UNDOES: ClassVar[str | None] = None

    optimizer: AbstractOptimizer = part()

    @typed
    def build(self, schedule: LearningRate) -> optax.GradientTransformationExtraArgs:
        return sum_with_compensation(self.optimizer.build(schedule))
