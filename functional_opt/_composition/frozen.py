"""Frozen parameters, which never change."""

from typing import final

import jax
import optax
from jaxtyping import PyTree

from .._base import AbstractOptimizer, all_in
from .._types import LearningRate, typed
from .._where import Mask
from .held import AbstractPartitionedOptimizer, by_part, only_held


@final
class Frozen(AbstractOptimizer):
    """Freezes parameters: no update, no weight decay and no state.

    It is `optax.set_to_zero`. A `Recipe` also excludes frozen parameters from all
    other transformations: their gradients, which may be `None`, do not count in the
    global norm, and never cause a step to be skipped.

    ```python
    >>> import functional_opt as fo
    >>> import jax
    >>> jax.tree.leaves(fo.Frozen().build(0.1).init(1.0))
    []

    ```
    """

    @typed
    def build(self, schedule: LearningRate) -> optax.GradientTransformationExtraArgs:
        del schedule
        return optax.with_extra_args_support(optax.set_to_zero())


def frozen_mask(optimizer: AbstractOptimizer) -> Mask | None:
    """Returns a mask function of the frozen parameters, or None if there are none."""
    if not any(isinstance(inner, Frozen) for inner in all_in(optimizer)):
        return None
    return lambda params: _are_frozen(optimizer, params)


def _are_frozen(optimizer: AbstractOptimizer, params: PyTree) -> PyTree:
    if isinstance(optimizer, Frozen):
        return jax.tree.map(lambda _: True, params)
    if frozen_mask(optimizer) is None:
        return jax.tree.map(lambda _: False, params)
    if isinstance(optimizer, AbstractPartitionedOptimizer):
        return by_part(optimizer, params, lambda _, part, own: _are_frozen(part, own))
    inner = only_held(optimizer, "`Frozen` inside it")
    return _are_frozen(inner or optimizer, params)


def without_frozen(
    optimizer: AbstractOptimizer, tx: optax.GradientTransformation
) -> optax.GradientTransformationExtraArgs:
    """A transformation that updates only the parameters that are not frozen."""
    mask = frozen_mask(optimizer)
    if mask is None:
        return optax.with_extra_args_support(tx)

    def labels(params: PyTree) -> PyTree:
        return jax.tree.map(
            lambda is_frozen: "frozen" if is_frozen else "trained", mask(params)
        )

    return optax.partition({"trained": tx, "frozen": optax.set_to_zero()}, labels)
