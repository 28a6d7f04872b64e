"""An estimated learning rate for another optimizer."""

from collections.abc import Mapping
from dataclasses import KW_ONLY
from types import MappingProxyType
from typing import ClassVar, final

import optax

from .._base import AbstractOptimizer, WeightDecay
from .._composition.decay import decayed, own_decay, OwnDecay
from .._composition.frozen import without_frozen
from .._composition.held import replace_held
from .._fields import number, part, setting
from .._transformations.gradients import as_params, inexact_only, real_only
from .._types import (
    LearningRate,
    NonNegative,
    Positive,
    PositiveCount,
    typed,
)
from .._where import Mask


@final
class Mechanize(AbstractOptimizer):
    """[Mechanic](https://arxiv.org/abs/2306.00144) (Cutkosky et al. 2023).

    `optax.contrib.mechanize` around another optimizer: the parameters are the first
    ones plus $s$ times the sum of its steps. The factor $s$ is learned: it is a sum of
    bets, one for each of $n$ decay rates, on whether the next gradient agrees with the
    sum of the steps (algorithm 1). The sums are over the whole model.

    ```python
    >>> import functional_opt as fo
    >>> optimizer = fo.Mechanize(base_optimizer=fo.AdamW())
    >>> schedule = fo.Cosine(peak_value=1.0, warmup_steps=100, decay_steps=10_000)
    >>> transformation = optimizer.build(schedule)

    ```

    **Arguments:**

    - `base_optimizer`: the optimizer of the steps to scale.
    - `weight_decay`: $\\lambda$ of Mechanic, a part of the bets and not of the steps;
        at least 0. `Recipe.weight_decay` is that of the optimizer inside.
    - `eps`: added to denominators; greater than 0.
    - `s_init`: initial value of each bet; greater than 0.
    - `num_betas`: $n$: the decay rates are $1 - 10^{-1}$ to $1 - 10^{-n}$; at least 1.
    """

    REFUSED_BY: ClassVar[Mapping[str, str]] = MappingProxyType(
        dict.fromkeys(
            ("Hyperball", "QKClip"),
            "its parameters follow from the sum of all its steps, which would undo "
            "earlier changes. Omit one of them.",
        )
    )
    UNDOES: ClassVar[str | None] = "its factor on the sum of all steps"

    _: KW_ONLY
    base_optimizer: AbstractOptimizer = part()
    weight_decay: NonNegative = number(default=1e-2)
    eps: Positive = number(default=1e-8)
    s_init: Positive = number(default=1e-6)
    num_betas: PositiveCount = setting(default=6)

    @typed
    def build(self, schedule: LearningRate) -> optax.GradientTransformationExtraArgs:
        mechanic = optax.contrib.mechanize(
            self.base_optimizer.build(schedule),
            weight_decay=self.weight_decay,
            eps=self.eps,
            s_init=self.s_init,
            num_betas=self.num_betas,
        )
        real = real_only(as_params(mechanic), "`Mechanize`")
        # The norms are those of the trainable parameters.
        return without_frozen(self.base_optimizer, inexact_only(real, "`Mechanize`"))


@own_decay.register
def _(optimizer: Mechanize) -> OwnDecay:
    del optimizer
    return OwnDecay(0.0, None)


@decayed.register
def _(
    optimizer: Mechanize, weight_decay: WeightDecay, mask: Mask | None = None
) -> AbstractOptimizer:
    return replace_held(optimizer, lambda inner: decayed(inner, weight_decay, mask))
