"""Linear and polynomial transitions between two values."""

from dataclasses import KW_ONLY
from typing import final

import optax

from .._durations import Duration, known_steps, PositiveDuration
from .._fields import duration, number
from .._types import NonNegative, Scalar
from .base import AbstractOptaxSchedule


@final
class Linear(AbstractOptaxSchedule):
    """A linear transition between two values: `optax.linear_schedule`.

    With $W$ = `warmup_steps`, $B$ = `transition_begin`, $T$ = `transition_steps`, $I$ =
    `init_value` and $E$ = `end_value`, the value after $t$ updates is $I t / W$ where
    $t < W$, and from there $I + (E - I) \\min(\\max(t - W - B, 0), T) / T$.

    ```python
    >>> import functional_opt as fo
    >>> schedule = fo.Linear(init_value=1.0, end_value=0.0, transition_steps=8)
    >>> [float(schedule(count)) for count in (0, 2, 8, 9)]
    [1.0, 0.75, 0.0, 0.0]

    ```

    **Arguments:**

    - `init_value`: the value before the transition; finite.
    - `end_value`: the value from the end of the transition on; finite.
    - `transition_steps`: duration of the transition, in updates, at least 1, or as a
        `Fraction`.
    - `transition_begin`: number of updates between warmup and transition, or a
        `Fraction`.
    - `warmup_steps`: duration of a linear warmup from 0 to `init_value`, in updates or
        as a `Fraction`. Optax has no such argument; with 0 the schedule is that of
        Optax.
    """

    _: KW_ONLY
    init_value: Scalar = number()
    end_value: Scalar = number()
    transition_steps: PositiveDuration = duration()
    transition_begin: Duration = duration(default=0)
    warmup_steps: Duration = duration(default=0)

    def phases(self) -> tuple[tuple[str, int | None], ...]:
        return (
            ("warmup", known_steps(self, "warmup_steps")),
            ("constant", known_steps(self, "transition_begin")),
            ("transition", known_steps(self, "transition_steps")),
        )

    def build(self) -> optax.Schedule:
        schedule = optax.linear_schedule(
            init_value=self.init_value,
            end_value=self.end_value,
            transition_steps=known_steps(self, "transition_steps"),
            transition_begin=known_steps(self, "transition_begin"),
        )
        if warmup_steps := known_steps(self, "warmup_steps"):
            warmup = optax.linear_schedule(0.0, self.init_value, warmup_steps)
            schedule = optax.join_schedules([warmup, schedule], [warmup_steps])
        return schedule


@final
class Polynomial(AbstractOptaxSchedule):
    """A polynomial transition between two values: `optax.polynomial_schedule`.

    With $B$ = `transition_begin`, $T$ = `transition_steps`, $I$ = `init_value`, $E$ =
    `end_value` and $p$ = `power`, the value after $t$ updates is
    $E + (I - E) (1 - \\min(\\max(t - B, 0), T) / T)^p$.

    ```python
    >>> import functional_opt as fo
    >>> schedule = fo.Polynomial(
    ...     init_value=1.0, end_value=0.0, power=2, transition_steps=8
    ... )
    >>> [float(schedule(count)) for count in (0, 4, 8, 9)]
    [1.0, 0.25, 0.0, 0.0]

    ```

    **Arguments:**

    - `init_value`: the value before the transition; finite.
    - `end_value`: the value from the end of the transition on; finite.
    - `power`: the exponent, at least 0. Above 1 the value changes earlier, below 1
        later.
    - `transition_steps`: duration of the transition, in updates, at least 1, or as a
        `Fraction`.
    - `transition_begin`: number of updates before the transition, or a `Fraction`.
    """

    _: KW_ONLY
    init_value: Scalar = number()
    end_value: Scalar = number()
    power: NonNegative = number()
    transition_steps: PositiveDuration = duration()
    transition_begin: Duration = duration(default=0)

    def phases(self) -> tuple[tuple[str, int | None], ...]:
        return (
            ("constant", known_steps(self, "transition_begin")),
            ("transition", known_steps(self, "transition_steps")),
        )

    def build(self) -> optax.Schedule:
        return optax.polynomial_schedule(
            init_value=self.init_value,
            end_value=self.end_value,
            power=self.power,
            transition_steps=known_steps(self, "transition_steps"),
            transition_begin=known_steps(self, "transition_begin"),
        )
