"""Weight decay over a tree of optimizers."""

import functools
from collections.abc import Callable
from dataclasses import KW_ONLY
from typing import Any, ClassVar, final, NamedTuple

import optax

from .._annotations import fits
from .._base import AbstractOptimizer, held_by, WeightDecay
from .._config import field_types
from .._fields import part, setting
from .._transformations.cautious import where_closer_to_zero
from .._transformations.dtypes import same_dtypes
from .._types import LearningRate, typed
from .._where import Mask
from .frozen import Frozen
from .held import AbstractPartitionedOptimizer, only_held, replace_held, with_fields
from .rates import scaled


class OwnDecay(NamedTuple):
    """The weight decay among an optimizer's own hyperparameters."""

    weight_decay: Any
    mask: Mask | None
    cautious: bool = False


NO_DECAY = OwnDecay(0.0, None)


@functools.singledispatch
def own_decay(optimizer: AbstractOptimizer) -> OwnDecay:
    """The weight decay of one optimizer, without those inside it; 0 if it has none."""
    return OwnDecay(
        _first_field(optimizer, "weight_decay", "weight_decay_rate") or 0.0,
        _first_field(optimizer, "mask", "weight_decay_mask"),
    )


@functools.singledispatch
def decayed(
    optimizer: AbstractOptimizer, weight_decay: WeightDecay, mask: Mask | None = None
) -> AbstractOptimizer:
    """The same optimizer with this weight decay in place of all that are inside it.

    The decay is decoupled: algorithm 2 of [Loshchilov and Hutter
    2019](https://arxiv.org/abs/1711.05101).

    **Arguments:**

    - `weight_decay`: per unit of learning rate, at least 0: a number or a schedule.
    - `mask`: which parameters decay. None is the optimizer's own mask if it has one,
        or else all.
    """
    inner = only_held(optimizer, "a weight decay")
    types = field_types(type(optimizer))
    if "weight_decay" not in types:
        if inner is None:
            return Decayed(optimizer=optimizer, weight_decay=weight_decay, mask=mask)
        return replace_held(optimizer, lambda x: decayed(x, weight_decay, mask))
    # The optimizers inside must not decay as well.
    own = replace_held(optimizer, lambda x: decayed(x, 0.0))
    mask_name = next((x for x in ("mask", "weight_decay_mask") if x in types), None)
    if mask_name is not None:
        mask = getattr(own, mask_name) if mask is None else mask
        own = with_fields(own, **{mask_name: mask})
    takes = not callable(weight_decay) or fits(weight_decay, types["weight_decay"])
    if takes and (mask_name is not None or mask is None):
        return with_fields(own, weight_decay=weight_decay)
    without = with_fields(own, weight_decay=0.0)
    return Decayed(optimizer=without, weight_decay=weight_decay, mask=mask)


@decayed.register
def _(
    optimizer: AbstractPartitionedOptimizer,
    weight_decay: WeightDecay,
    mask: Mask | None = None,
) -> AbstractOptimizer:
    return replace_held(optimizer, lambda inner: decayed(inner, weight_decay, mask))


@decayed.register
def _(
    optimizer: Frozen, weight_decay: WeightDecay, mask: Mask | None = None
) -> AbstractOptimizer:
    del weight_decay, mask
    return optimizer


@final
class WithDecay(AbstractOptimizer):
    """An optimizer with a weight decay that a recipe does not replace.

    **Arguments:**

    - `optimizer`: the optimizer.
    - `weight_decay`: in place of its own; per unit of learning rate.
    """

    UNDOES: ClassVar[str | None] = None

    _: KW_ONLY
    optimizer: AbstractOptimizer = part()
    weight_decay: WeightDecay = part()

    @typed
    def build(self, schedule: LearningRate) -> optax.GradientTransformationExtraArgs:
        return decayed(self.optimizer, self.weight_decay).build(schedule)


@decayed.register
def _(
    optimizer: WithDecay, weight_decay: WeightDecay, mask: Mask | None = None
) -> AbstractOptimizer:
    del weight_decay
    return decayed(optimizer.optimizer, optimizer.weight_decay, mask)


@final
class Decayed(AbstractOptimizer):
    """An optimizer without weight decay of its own, and a decoupled weight decay.

    **Arguments:**

    - `optimizer`: the optimizer.
    - `weight_decay`: per unit of learning rate.
    - `mask`: which parameters decay; all, if omitted.
    - `cautious`: whether entries decay only where the update brings them closer to 0.
    """

    UNDOES: ClassVar[str | None] = None

    _: KW_ONLY
    optimizer: AbstractOptimizer = part()
    weight_decay: WeightDecay = part()
    mask: Mask | None = setting(default=None)
    cautious: bool = setting(default=False)

    @typed
    def build(self, schedule: LearningRate) -> optax.GradientTransformationExtraArgs:
        # Optax omits a constant weight decay of 0, and -0.0 equals 0.
        rate: Any = scaled(scaled(schedule, self.weight_decay), -1.0)
        decay = optax.add_decayed_weights(rate, self.mask)
        if self.cautious:
            decay = where_closer_to_zero(decay)
        return optax.chain(self.optimizer.build(schedule), same_dtypes(decay))


@functools.singledispatch
def without_decay(
    optimizer: AbstractOptimizer,
) -> tuple[AbstractOptimizer, OwnDecay]:
    """One optimizer without its decoupled weight decay, and this decay."""
    is_field = "weight_decay" in field_types(type(optimizer))
    # A class that is registered treats its own weight decay in another way.
    is_registered = decayed.dispatch(type(optimizer)) is not decayed.dispatch(object)
    if is_registered or not is_field:
        return optimizer, NO_DECAY
    return with_fields(optimizer, weight_decay=0.0), own_decay(optimizer)


@without_decay.register
def _(optimizer: Decayed) -> tuple[AbstractOptimizer, OwnDecay]:
    own = OwnDecay(optimizer.weight_decay, optimizer.mask, optimizer.cautious)
    return optimizer.optimizer, own


@without_decay.register
def _(optimizer: WithDecay) -> tuple[AbstractOptimizer, OwnDecay]:
    return without_decay(decayed(optimizer.optimizer, optimizer.weight_decay))


def keep_decay(optimizer: AbstractOptimizer) -> tuple[AbstractOptimizer, OwnDecay]:
    """A case of `without_decay`: the weight decay depends on the step."""
    return optimizer, NO_DECAY


def with_decay(optimizer: AbstractOptimizer, decay: OwnDecay) -> AbstractOptimizer:
    """An optimizer with a decoupled weight decay beside it, if there is any."""
    if isinstance(decay.weight_decay, float) and decay.weight_decay == 0:
        return optimizer
    return Decayed(optimizer=optimizer, **decay._asdict())


def change_steps(
    optimizer: AbstractOptimizer,
    change: Callable[[AbstractOptimizer], AbstractOptimizer],
    attach: Callable[[AbstractOptimizer, OwnDecay], AbstractOptimizer] = with_decay,
    is_whole: Callable[[AbstractOptimizer], bool] = lambda _: False,
) -> AbstractOptimizer:
    """Changes every optimizer in a tree that holds no other, but not its weight decay.

    **Arguments:**

    - `change`: of an optimizer without its decoupled weight decay.
    - `attach`: of the result and the weight decay.
    - `is_whole`: whether an optimizer is changed as a whole although it holds others.
    """
    if isinstance(optimizer, Frozen):
        return optimizer
    bare, decay = without_decay(optimizer)
    is_changed = is_whole(bare) or not list(held_by(bare))
    inner_change = _unchanged if is_changed else change
    inside = replace_held(
        bare, lambda inner: change_steps(inner, inner_change, attach, is_whole)
    )
    return attach(change(inside) if is_changed else inside, decay)


def _unchanged(optimizer: AbstractOptimizer) -> AbstractOptimizer:
    return optimizer


def _first_field(optimizer: AbstractOptimizer, *names: str) -> Any:
    found = (getattr(optimizer, name, None) for name in names)
    return next((value for value in found if value is not None), None)
