"""Cosine decay schedules, with and without restarts."""

from collections.abc import Mapping
from dataclasses import KW_ONLY
from itertools import accumulate
from typing import Any, final

import jax.numpy as jnp
import optax

from .._durations import Duration, is_resolved, known_steps, PositiveDuration
from .._fields import duration, number, part
from .._types import NonNegative, Scalar
from .base import AbstractOptaxSchedule


@final
class Cosine(AbstractOptaxSchedule):
    """Cosine decay after a linear warmup: `optax.warmup_cosine_decay_schedule`.

    With $W$ = `warmup_steps`, $T$ = `decay_steps`, $I$ = `init_value`, $P$ =
    `peak_value`, $E$ = `end_value` and $p$ = `exponent`, the value after $t$ updates is
    $I + (P - I) t / W$ where $t < W$, and from there
    $E + (P - E) (\\frac{1}{2} (1 + \\cos(\\pi \\min(\\frac{t - W}{T - W}, 1))))^p$:
    equation 5 of [SGDR](https://arxiv.org/abs/1608.03983) (Loshchilov and Hutter 2017)
    without restarts.

    ```python
    >>> import functional_opt as fo
    >>> schedule = fo.Cosine(peak_value=1.0, warmup_steps=2, decay_steps=10)
    >>> [round(float(schedule(count)), 3) for count in (0, 1, 2, 4, 6, 10)]
    [0.0, 0.5, 1.0, 0.854, 0.5, 0.0]

    ```

    **Arguments:**

    - `init_value`: the value at the first update, if there is a warmup; finite.
    - `peak_value`: the value at the end of the warmup; finite. If it is 0, all later
        values are 0, as in Optax.
    - `warmup_steps`: duration of the warmup, in updates or as a `Fraction`.
    - `decay_steps`: total duration of warmup and decay, in updates or as a `Fraction`;
        greater than `warmup_steps`.
    - `end_value`: the value from the end of the decay on; finite.
    - `exponent`: exponent of the cosine factor, at least 0. Above 1 the value decays
        earlier, below 1 later.
    """

    _: KW_ONLY
    init_value: Scalar = number(default=0.0)
    peak_value: Scalar = number()
    warmup_steps: Duration = duration(default=0)
    decay_steps: PositiveDuration = duration()
    end_value: Scalar = number(default=0.0)
    exponent: NonNegative = number(default=1.0)

    def _check(self) -> None:
        if not is_resolved(self):
            return
        warmup, both = self._known()
        if both <= warmup:
            raise ValueError(
                f"`Cosine.decay_steps` must be greater than `Cosine.warmup_steps`, got "
                f"{both} and {warmup}. It includes the warmup."
            )

    def _known(self) -> tuple[int, int]:
        return known_steps(self, "warmup_steps"), known_steps(self, "decay_steps")

    def phases(self) -> tuple[tuple[str, int | None], ...]:
        warmup, both = self._known()
        return (("warmup", warmup), ("decay", both - warmup))

    def build(self) -> optax.Schedule:
        warmup, both = self._known()
        # `optax.warmup_cosine_decay_schedule` would compare the peak, which may be
        # traced, with 0 in Python: `ratio` does this without a branch.
        return optax.join_schedules(
            [
                optax.linear_schedule(self.init_value, self.peak_value, warmup),
                optax.cosine_decay_schedule(
                    self.peak_value,
                    both - warmup,
                    alpha=ratio(self.end_value, self.peak_value),
                    exponent=self.exponent,
                ),
            ],
            [warmup],
        )


def ratio(end: Scalar, peak: Scalar) -> Scalar:
    """`end / peak`, or 0 if `peak` is 0."""
    if isinstance(peak, float):
        return end / peak if peak else 0.0
    # The derivative of `where` is NaN if that of the branch not taken is: both
    # quotients must be finite. See https://github.com/jax-ml/jax/issues/1052.
    is_zero = peak == 0
    return jnp.where(is_zero, 0.0, end / jnp.where(is_zero, 1.0, peak))


@final
class CosineDecay(AbstractOptaxSchedule):
    """Cosine decay: `optax.cosine_decay_schedule`.

    Equal to `Cosine` without a warmup, with the end value relative to the start value.

    ```python
    >>> import functional_opt as fo
    >>> schedule = fo.CosineDecay(init_value=1.0, decay_steps=8, alpha=0.5)
    >>> [round(float(schedule(count)), 3) for count in (0, 4, 8, 9)]
    [1.0, 0.75, 0.5, 0.5]

    ```

    **Arguments:**

    - `init_value`: the value at the first update; finite.
    - `decay_steps`: duration of the decay, in updates, at least 1, or as a `Fraction`.
    - `alpha`: ratio of the last to the first value; finite.
    - `exponent`: exponent of the cosine factor, at least 0. Above 1 the value decays
        earlier, below 1 later.
    """

    _: KW_ONLY
    init_value: Scalar = number()
    decay_steps: PositiveDuration = duration()
    alpha: Scalar = number(default=0.0)
    exponent: NonNegative = number(default=1.0)

    def phases(self) -> tuple[tuple[str, int | None], ...]:
        return (("decay", known_steps(self, "decay_steps")),)

    def build(self) -> optax.Schedule:
        return optax.cosine_decay_schedule(
            self.init_value,
            known_steps(self, "decay_steps"),
            alpha=self.alpha,
            exponent=self.exponent,
        )


def _as_cycles(value: Any) -> Any:
    """Converts the dictionaries that Optax accepts to schedules."""
    if not isinstance(value, list | tuple):
        return value
    return tuple(Cosine(**x) if isinstance(x, Mapping) else x for x in value)


@final
class SGDR(AbstractOptaxSchedule):
    """Cosine decay with warm restarts: `optax.sgdr_schedule`.

    [SGDR](https://arxiv.org/abs/1608.03983) (Loshchilov and Hutter 2017).

    ```python
    >>> import functional_opt as fo
    >>> cycle = fo.Cosine(peak_value=1.0, decay_steps=8)
    >>> schedule = fo.SGDR(cosine_kwargs=(cycle, cycle))
    >>> [round(float(schedule(count)), 3) for count in (0, 4, 8, 12, 16)]
    [1.0, 0.5, 1.0, 0.5, 0.0]

    ```

    **Arguments:**

    - `cosine_kwargs`: the cycles, at least one: a tuple of `Cosine`, each counted from
        the end of the previous one, or the dictionaries that Optax accepts.
    """

    _: KW_ONLY
    cosine_kwargs: tuple[Cosine, ...] = part(convert=_as_cycles)

    def _check(self) -> None:
        if not self.cosine_kwargs:
            raise ValueError(
                "`SGDR.cosine_kwargs` must have at least one `Cosine`, got ()."
            )

    def phases(self) -> tuple[tuple[str, int | None], ...]:
        return tuple(
            (f"cycle {number} {name}", steps)
            for number, cycle in enumerate(self.cosine_kwargs)
            for name, steps in cycle.phases()
        )

    def build(self) -> optax.Schedule:
        lengths = [known_steps(cycle, "decay_steps") for cycle in self.cosine_kwargs]
        schedules = [cycle.build() for cycle in self.cosine_kwargs]
        return optax.join_schedules(schedules, [*accumulate(lengths[:-1])])
