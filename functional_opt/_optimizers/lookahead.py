"""Slow parameters that follow those of another optimizer."""

from collections.abc import Mapping
from dataclasses import KW_ONLY
from types import MappingProxyType
from typing import Annotated, ClassVar, final

import optax
from annotated_types import Interval

from .._base import AbstractOptimizer
from .._fields import number, part, setting
from .._types import LearningRate, PositiveCount, Scalar, typed


PAIRS = (
    "its parameters are `optax.LookaheadParams`, pairs of fast and slow ones, and its "
    "gradients are not."
)


@final
class Lookahead(AbstractOptimizer):
    """[Lookahead](https://arxiv.org/abs/1907.08610) (Zhang et al. 2019).

    `optax.lookahead` around another optimizer: every `sync_period` updates of the fast
    parameters, the slow ones move a part of the way to them, and the fast ones begin
    there again (algorithm 1). The parameters are `optax.LookaheadParams`, so that it
    works alone, and in no `Recipe`; averages of parameters that do are
    `Recipe.ema_decay` and [`ScheduleFree`][].

    ```python
    >>> import functional_opt as fo
    >>> import jax.numpy as jnp, optax
    >>> optimizer = fo.Lookahead(
    ...     fast_optimizer=fo.SGD(), sync_period=1, slow_step_size=0.5
    ... )
    >>> transformation = optimizer.build(0.1)
    >>> params = optax.LookaheadParams.init_synced(jnp.array([1.0, -1.0]))
    >>> grads = jnp.array([2.0, 2.0])
    >>> updates, _ = transformation.update(grads, transformation.init(params), params)
    >>> [round(float(x), 3) for x in updates.slow]
    [-0.1, -0.1]

    ```

    **Arguments:**

    - `fast_optimizer`: the optimizer of the fast parameters.
    - `sync_period`: the number of updates between two steps of the slow ones; at least
        1.
    - `slow_step_size`: the part of the way that the slow ones move, in (0, 1].
    - `reset_state`: whether the state of the optimizer begins anew after such a step.
    """

    REFUSED_BY: ClassVar[Mapping[str, str]] = MappingProxyType(
        dict.fromkeys(("Recipe", "Groups"), f"{PAIRS} Use `Lookahead.build`.")
        | dict.fromkeys(("Hyperball", "QKClip"), PAIRS)
        | {"build_mpmd": PAIRS}
    )
    UNDOES: ClassVar[str | None] = "its way to the slow parameters"

    _: KW_ONLY
    fast_optimizer: AbstractOptimizer = part()
    sync_period: PositiveCount = setting()
    slow_step_size: Annotated[Scalar, Interval(gt=0, le=1)] = number()
    reset_state: bool = setting(default=False)

    @typed
    def build(self, schedule: LearningRate) -> optax.GradientTransformationExtraArgs:
        lookahead = optax.lookahead(
            self.fast_optimizer.build(schedule),
            self.sync_period,
            self.slow_step_size,
            self.reset_state,
        )
        return optax.with_extra_args_support(lookahead)
