"""Schedules that follow one another."""

from dataclasses import KW_ONLY
from itertools import accumulate
from typing import final

import optax

from .._base import AbstractSchedule
from .._config import AbstractConfig
from .._durations import is_resolved, known_steps, PositiveDuration
from .._fields import duration, part
from .._previews import length, spans_text
from .base import AbstractOptaxSchedule


@final
class Phase(AbstractConfig):
    """A schedule with a duration, as a part of a `Sequence`.

    ```python
    >>> import functional_opt as fo
    >>> fo.Phase(fo.Constant(0.1), steps=100).steps
    100

    ```

    **Arguments:**

    - `schedule`: the schedule.
    - `steps`: duration of the phase, in updates, at least 1, or as a `Fraction`. It
        must not be shorter than the schedule; if it is longer, the last value is kept.
    """

    schedule: AbstractSchedule = part()
    _: KW_ONLY
    steps: PositiveDuration = duration()

    def _check(self) -> None:
        if not is_resolved(self):
            return
        own, steps = length(self.schedule), known_steps(self, "steps")
        if own is not None and own > steps:
            raise ValueError(
                f"`Phase.steps` = {steps} is shorter than "
                f"`{type(self.schedule).__name__}`, which takes {own} updates: "
                f"{spans_text(self.schedule)}. Shorten the schedule, or increase "
                "`steps`."
            )


@final
class Sequence(AbstractOptaxSchedule):
    """Schedules that follow one another: `optax.join_schedules`.

    Each schedule has the duration of its phases, and counts updates from its own start.
    The last one may have no end.

    ```python
    >>> import functional_opt as fo
    >>> schedule = fo.Sequence((
    ...     fo.Linear(init_value=0.0, end_value=1.0, transition_steps=2),
    ...     fo.Phase(fo.Constant(1.0), steps=6),
    ...     fo.Cosine(peak_value=1.0, decay_steps=4),
    ... ))
    >>> [round(float(schedule(count)), 3) for count in (0, 1, 2, 8, 10, 12)]
    [0.0, 0.5, 1.0, 1.0, 0.5, 0.0]

    ```

    **Arguments:**

    - `schedules`: a tuple of schedules, at least one. Except for the last, a schedule
        without an end, such as `Constant`, must be wrapped in a `Phase`.
    """

    schedules: tuple[AbstractSchedule | Phase, ...] = part()

    def _check(self) -> None:
        if not self.schedules:
            raise ValueError(
                "`Sequence.schedules` must have at least one schedule, got ()."
            )
        if is_resolved(self):
            self._boundaries()

    def phases(self) -> tuple[tuple[str, int | None], ...]:
        return tuple(
            phase
            for index, schedule in enumerate(self.schedules)
            for phase in _phases(index, schedule)
        )

    def build(self) -> optax.Schedule:
        schedules = [x.schedule if isinstance(x, Phase) else x for x in self.schedules]
        return optax.join_schedules(schedules, self._boundaries())

    def _boundaries(self) -> list[int]:
        lengths = [_length(x) for x in self.schedules[:-1]]
        for index, steps in enumerate(lengths):
            if steps is None:
                name = type(self.schedules[index]).__name__
                raise ValueError(
                    f"`Sequence.schedules[{index}]` must have an end, got "
                    f"{self.schedules[index]}. Set its duration: "
                    f"`Phase({name}(...), steps=...)`."
                )
        return [*accumulate(steps or 0 for steps in lengths)]


def _length(schedule: AbstractSchedule | Phase) -> int | None:
    if isinstance(schedule, Phase):
        return known_steps(schedule, "steps")
    return length(schedule)


def _phases(
    index: int, schedule: AbstractSchedule | Phase
) -> list[tuple[str, int | None]]:
    inner = schedule.schedule if isinstance(schedule, Phase) else schedule
    steps = _length(schedule)
    named = [(f"{index} {name}", taken) for name, taken in inner.phases() if taken != 0]
    if steps is None or not isinstance(schedule, Phase):
        return named
    *before, (last, taken) = named
    known = sum(x or 0 for _, x in before)
    if taken is None:
        return [*before, (last, steps - known)]
    return [*named, (f"{index} constant", steps - known - taken)]
