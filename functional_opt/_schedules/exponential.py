"""The same factor in the same time."""

from dataclasses import KW_ONLY
from typing import Annotated, final

import optax
from annotated_types import Interval

from .._durations import Duration, known_steps, PositiveDuration
from .._fields import as_number, duration, number, setting
from .._types import Scalar
from .base import AbstractOptaxSchedule


# Optax looks at it in Python: below 1 the end value is a floor, above a ceiling.
Factor = Annotated[float, Interval(gt=0)]


@final
class ExponentialDecay(AbstractOptaxSchedule):
    """A factor in each `transition_steps`: `optax.exponential_decay`.

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

    - `init_value`: the value at the first update. Any finite number, in the unit of the
        hyperparameter, as `end_value`.
    - `transition_steps`: how long one factor takes: updates, at least 1, or a
        `Fraction`.
    - `decay_rate`: the factor, greater than 0. A change of it recompiles.
    - `transition_begin`: how long the value stays before all this.
    - `staircase`: whether the whole factor comes at once, at the end of its time.
    - `end_value`: where the decay stops: from below where the factor is above 1.
        `None` is nowhere.
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
    """A linear warmup before the factors: `warmup_exponential_decay_schedule`.

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

    - `init_value`: the value at the first update. Any finite number, in the unit of the
        hyperparameter, as `peak_value` and `end_value`.
    - `peak_value`: the value at the end of the warmup.
    - `warmup_steps`: how long the warmup takes: updates, or a `Fraction`.
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
