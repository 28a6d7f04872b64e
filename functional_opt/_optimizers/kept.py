import dataclasses
import functools
from dataclasses import KW_ONLY
from typing import Any, final

import numpy as np
import optax
from jaxtyping import PyTree

from .._base import AbstractOptimizer
from .._fields import part, setting
from .._transformations.dtypes import stored, widened
from .._types import LearningRate, Scalar, typed
from .._where import Mask


@final
class Kept(AbstractOptimizer):
    """An optimizer whose state has another dtype than the parameters.

    **Arguments:**

    - `optimizer`: the optimizer.
    - `dtype`: the dtype.
    - `is_stored`: whether the whole state is kept in it between updates.
    """

    _: KW_ONLY
    optimizer: AbstractOptimizer = part()
    dtype: np.dtype = setting()
    is_stored: bool = setting()

    @typed
    def build(self, schedule: LearningRate) -> optax.GradientTransformationExtraArgs:
        return self._wrapped(self.optimizer.build(schedule))

    @typed
    def build_decayed(
        self,
        schedule: LearningRate,
        weight_decay: Scalar,
        mask: Mask | None = None,
    ) -> optax.GradientTransformationExtraArgs:
        return self._wrapped(self.optimizer.build_decayed(schedule, weight_decay, mask))

    def assign(
        self,
        params: PyTree,
        weight_decay: Scalar | None = None,
        mask: Mask | None = None,
    ) -> PyTree:
        return self.optimizer.assign(params, weight_decay, mask)

    def frozen(self) -> Mask | None:
        return self.optimizer.frozen()

    def _wrapped(self, tx: Any) -> optax.GradientTransformationExtraArgs:
        tx = widened(tx, self.dtype)
        return stored(tx, self.dtype) if self.is_stored else tx


@functools.singledispatch
def with_state_dtype(
    optimizer: AbstractOptimizer, dtype: np.dtype
) -> AbstractOptimizer:
    """The same optimizer with its moments kept in a dtype.

    Where a field of the optimizer says the dtype of a moment, such as `mu_dtype`, this
    is what changes; otherwise all arrays of its state are kept so. Parameters of a
    narrower dtype are updated in this one.
    """
    names = {field.name for field in dataclasses.fields(optimizer)}
    own = names & {"mu_dtype", "accumulator_dtype", "dtype_momentum"}
    changed = dataclasses.replace(optimizer, **dict.fromkeys(own, dtype))
    return Kept(optimizer=changed, dtype=dtype, is_stored=not own)
