"""Clips around one optimizer in a tree of them."""

from dataclasses import KW_ONLY
from typing import final

import optax
from jaxtyping import PyTree

from .._base import AbstractOptimizer, all_in
from .._clips import Clip, clipped
from .._fields import part
from .._types import LearningRate, typed
from .assignments import assigned
from .state_dtype import rounds_updates


@final
class Clipped(AbstractOptimizer):
    """An optimizer with its gradients, or its updates, clipped.

    **Arguments:**

    - `optimizer`: the optimizer.
    - `clip`: of the gradients, if any.
    - `clip_update`: of the updates, with their weight decay, if any.
    """

    _: KW_ONLY
    optimizer: AbstractOptimizer = part()
    clip: Clip | None = part(default=None)
    clip_update: Clip | None = part(default=None)

    @typed
    def build(self, schedule: LearningRate) -> optax.GradientTransformationExtraArgs:
        return clipped(self.optimizer.build(schedule), self.clip, self.clip_update)


def check_clip_update(
    kind: str, clip: Clip | None, optimizer: AbstractOptimizer
) -> None:
    """Refuses to clip updates that are rounded for their parameters."""
    rounding = [x for x in all_in(optimizer) if rounds_updates(x)]
    if clip is not None and rounding:
        name = type(rounding[0]).__name__
        raise ValueError(
            f"`{kind}.clip_update` = {clip} would change updates that `{name}` has "
            f"rounded. Clip inside: `{name}(Groups((Group(..., clip_update=...),)))`."
        )


@assigned.register
def _(optimizer: Clipped, params: PyTree) -> PyTree:
    return assigned(optimizer.optimizer, params)
