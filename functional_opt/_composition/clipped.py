"""Clips around one optimizer in a tree of them."""

from collections.abc import Mapping
from dataclasses import KW_ONLY
from types import MappingProxyType
from typing import ClassVar, final

import optax
from jaxtyping import PyTree

from .._base import AbstractOptimizer
from .._clips import Clip, clipped
from .._fields import part
from .._types import LearningRate, typed
from .assignments import assigned


@final
class Clipped(AbstractOptimizer):
    """An optimizer with its gradients clipped.

    **Arguments:**

    - `optimizer`: the optimizer.
    - `clip`: of the gradients.
    """

    UNDOES: ClassVar[str | None] = None

    _: KW_ONLY
    optimizer: AbstractOptimizer = part()
    clip: Clip = part()

    @typed
    def build(self, schedule: LearningRate) -> optax.GradientTransformationExtraArgs:
        return clipped(self.optimizer.build(schedule), self.clip, None)


@final
class UpdateClipped(AbstractOptimizer):
    """An optimizer with its updates clipped, with their weight decay.

    **Arguments:**

    - `optimizer`: the optimizer.
    - `clip_update`: of the updates.
    """

    REFUSED_BY: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            "Hyperball": "a `Group.clip_update` would change the norms of parameters, "
            "and the size of the steps inside does not matter. Omit it."
        }
    )

    UNDOES: ClassVar[str | None] = None

    _: KW_ONLY
    optimizer: AbstractOptimizer = part()
    clip_update: Clip = part()

    @typed
    def build(self, schedule: LearningRate) -> optax.GradientTransformationExtraArgs:
        return clipped(self.optimizer.build(schedule), None, self.clip_update)


@assigned.register(Clipped)
@assigned.register(UpdateClipped)
def _(optimizer: Clipped | UpdateClipped, params: PyTree) -> PyTree:
    return assigned(optimizer.optimizer, params)
