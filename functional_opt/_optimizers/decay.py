import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import optax

from .._base import AbstractOptimizer, WeightDecay
from .._composition.decay import Decayed
from .._composition.held import with_fields
from .._types import LearningRate
from .._where import Mask


def descend(
    scaled: optax.GradientTransformation,
    schedule: LearningRate,
    weight_decay: WeightDecay,
    mask: Mask | None,
) -> optax.GradientTransformationExtraArgs:
    """Steps of the learning rate along an update, with decoupled weight decay."""
    return optax.chain(
        scaled,
        optax.add_decayed_weights(weight_decay, mask),
        optax.scale_by_learning_rate(schedule),
    )


def decayed_as(kind: type[Any]) -> Callable[..., AbstractOptimizer]:
    """A case of `decayed`: another class with the same fields and a weight decay."""

    def decayed(
        optimizer: AbstractOptimizer,
        weight_decay: WeightDecay,
        mask: Mask | None = None,
    ) -> AbstractOptimizer:
        names = [field.name for field in dataclasses.fields(optimizer)]
        fields = {name: getattr(optimizer, name) for name in names}
        return kind(**fields, weight_decay=weight_decay, mask=mask)

    return decayed


def decayed_beside(
    own: str, without: float | None, mask_name: str = ""
) -> Callable[..., AbstractOptimizer]:
    """A case of `decayed`, for a weight decay that is not decoupled or not per rate.

    **Arguments:**

    - `own`: the field of the optimizer's weight decay.
    - `without`: its value without one.
    - `mask_name`: the field of the mask of the parameters that decay, if any.
    """

    def decayed(
        optimizer: AbstractOptimizer,
        weight_decay: WeightDecay,
        mask: Mask | None = None,
    ) -> AbstractOptimizer:
        plain = with_fields(optimizer, **{own: without})
        if mask is None and mask_name:
            mask = _as_function(getattr(optimizer, mask_name))
        return Decayed(optimizer=plain, weight_decay=weight_decay, mask=mask)

    return decayed


def _as_function(mask: Mask | bool | None) -> Mask | None:
    """A mask of Optax that may be one bool for all parameters."""
    if isinstance(mask, bool):
        return lambda params: jax.tree.map(lambda _: mask, params)
    return mask
