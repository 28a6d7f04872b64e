"""The state of a tree of optimizers in another dtype."""

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import KW_ONLY
from typing import ClassVar, final

import numpy as np
import optax

from .._base import AbstractOptimizer, all_in, held_by
from .._fields import part, setting
from .._transformations.dtypes import stored, widened
from .._types import LearningRate, typed
from .frozen import Frozen
from .held import replace_held, with_fields


def with_state_dtype(
    optimizer: AbstractOptimizer, dtype: np.dtype
) -> AbstractOptimizer:
    """The same optimizer with its moments in this dtype.

    If an optimizer has a field for the dtype of a moment, such as `mu_dtype`, that
    field is set; otherwise all arrays of its state are stored in this dtype. Parameters
    of a narrower dtype are updated in this one, inside optimizers that round the result
    themselves.
    """
    return inside_rounding(
        optimizer,
        lambda inner: Widened(optimizer=_with_moments(inner, dtype), dtype=dtype),
    )


ROUNDING = "the rounding of new parameters"


def inside_rounding(
    optimizer: AbstractOptimizer,
    change: Callable[[AbstractOptimizer], AbstractOptimizer],
) -> AbstractOptimizer:
    """Changes an optimizer, or what is inside those in it that round parameters."""
    if any(inner.DETERMINES == ROUNDING for inner in all_in(optimizer)):
        return replace_held(optimizer, lambda inner: inside_rounding(inner, change))
    return change(optimizer)


@functools.singledispatch
def _with_moments(optimizer: AbstractOptimizer, dtype: np.dtype) -> AbstractOptimizer:
    names = {field.name for field in dataclasses.fields(optimizer)}
    own = names & {"mu_dtype", "accumulator_dtype", "dtype_momentum"}
    other = [name for name in own if getattr(optimizer, name) != dtype]
    optimizer = with_fields(optimizer, **dict.fromkeys(other, dtype))
    if own or list(held_by(optimizer)):
        return replace_held(optimizer, lambda inner: _with_moments(inner, dtype))
    return Stored(optimizer=optimizer, dtype=dtype)


@_with_moments.register
def _(optimizer: Frozen, dtype: np.dtype) -> AbstractOptimizer:
    del dtype
    return optimizer


@final
class Widened(AbstractOptimizer):
    """An optimizer that updates narrower parameters in a wider dtype.

    **Arguments:**

    - `optimizer`: the optimizer.
    - `dtype`: the dtype.
    """

    UNDOES: ClassVar[str | None] = None

    _: KW_ONLY
    optimizer: AbstractOptimizer = part()
    dtype: np.dtype = setting()

    @typed
    def build(self, schedule: LearningRate) -> optax.GradientTransformationExtraArgs:
        return widened(self.optimizer.build(schedule), self.dtype)


@final
class Stored(AbstractOptimizer):
    """An optimizer whose state is stored in a dtype between updates.

    **Arguments:**

    - `optimizer`: the optimizer.
    - `dtype`: the dtype.
    """

    UNDOES: ClassVar[str | None] = None

    _: KW_ONLY
    optimizer: AbstractOptimizer = part()
    dtype: np.dtype = setting()

    @typed
    def build(self, schedule: LearningRate) -> optax.GradientTransformationExtraArgs:
        return stored(self.optimizer.build(schedule), self.dtype)
