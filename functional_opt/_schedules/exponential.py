"""Exponential decay schedules, with and without a warmup."""

from dataclasses import KW_ONLY
from typing import Annotated, final

import optax
from annotated_types import Interval

from .._durations import Duration, known_steps, PositiveDuration
from .._fields import as_number, duration, number, setting
from .._types import Scalar
from .base import AbstractOptaxSchedule


# Not traced: Optax uses the end value as a lower bound if this is below 1, and else as
# an upper bound.
Factor = Annotated[float, Interval(gt=0)]


@final
class ExponentialDecay(AbstractOptaxSchedule):
    """Decays by a factor per `transition_steps`: `optax.exponential_decay`.

    With $B$ = `transition_begin`, $T$ = `transition_steps`, $I$ = `init_value` and $r$
    = `decay_rate`, the value after $t$ updates is $I$ up to $t = B$, and from there
    $I r^{(t - B) / T}$.

    ```python
    >>> import functional_opt as fo
    >>> schedule = fo.ExponentialDecay(
    ...     init_value=1.0, transition_steps=10, decay_rate=0.25
    ... )
    >>> [float(schedule(count)) for count in (0, 5, 10)]
    [1.0, 0.5, 0.25]

    ```

    **Arguments:**

    - `init_value`: the value at the first update; finite.
    - `transition_steps`: number of updates per factor, at least 1, or a `Fraction`.
    - `decay_rate`: the factor, greater than 0. Changing it recompiles.
    - `transition_begin`: number of updates before the decay starts, or a `Fraction`.
    - `staircase`: whether the factor is applied at once every `transition_steps`,
        instead of continuously.
    - `end_value`: lower bound on the value, or upper bound if `decay_rate` is greater
        than 1. If None, there is no bound.
    """

    _: KW_ONLY
    init_value: Scalar = number()
    transition_steps: PositiveDuration = duration()
    decay_rate: Factor = setting(convert=as_number)
    transition_begin: Duration = duration(default=0)
    staircase: bool = setting(default=False)
    end_value: Scalar | None = number(default=None)

    def phases(self) -> tuple[tuple[str, int | None], ...]:
        return (("constant", known_steps(self, "transition_begin")), ("decay", None))

    def build(self) -> optax.Schedule:
        return optax.exponential_decay(
            init_value=self.init_value,
            transition_steps=known_steps(self, "transition_steps"),
            decay_rate=self.decay_rate,
            transition_begin=known_steps(self, "transition_begin"),
            staircase=self.staircase,
            end_value=self.end_value,
        )


@final
class WarmupExponentialDecay(AbstractOptaxSchedule):
    """A linear warmup before the decay: `warmup_exponential_decay_schedule`.

    ```python
    >>> import functional_opt as fo
    >>> schedule = fo.WarmupExponentialDecay(
    ...     init_value=0.0,
    ...     peak_value=1.0,
    ...     warmup_steps=2,
    ...     transition_steps=10,
    ...     decay_rate=0.25,
    ... )
    >>> [float(schedule(count)) for count in (0, 1, 2, 7, 12)]
    [0.0, 0.5, 1.0, 0.5, 0.25]

    ```

    **Arguments:**

    - `init_value`: the value at the first update; finite.
    - `peak_value`: the value at the end of the warmup; finite.
    - `warmup_steps`: duration of the warmup, in updates or as a `Fraction`.
    - `transition_steps`, `decay_rate`, `transition_begin`, `staircase`, `end_value`: as
        in `ExponentialDecay`, counted from the end of the warmup.
    """

    _: KW_ONLY
    init_value: Scalar = number()
    peak_value: Scalar = number()
    warmup_steps: Duration = duration()
    transition_steps: PositiveDuration = duration()
    decay_rate: Factor = setting(convert=as_number)
    transition_begin: Duration = duration(default=0)
    staircase: bool = setting(default=False)
    end_value: Scalar | None = number(default=None)

    def phases(self) -> tuple[tuple[str, int | None], ...]:
        return (
            ("warmup", known_steps(self, "warmup_steps")),
            ("constant", known_steps(self, "transition_begin")),
            ("decay", None),
        )

    def build(self) -> optax.Schedule:
        return optax.warmup_exponential_decay_schedule(
            init_value=self.init_value,
            peak_value=self.peak_value,
            warmup_steps=known_steps(self, "warmup_steps"),
            transition_steps=known_steps(self, "transition_steps"),
            decay_rate=self.decay_rate,
            transition_begin=known_steps(self, "transition_begin"),
            staircase=self.staircase,
            end_value=self.end_value,
        )
