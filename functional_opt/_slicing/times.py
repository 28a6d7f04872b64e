"""After how many rounds of exchange each stage can have a value.

In addition to the stages there is a *bystander*. It owns nothing, and knows only the
inputs given to every stage and the values that have travelled. Whatever the bystander
has after some number of rounds is therefore available on every stage by then. For
`norm = sum(x) + sum(y)` with `x` on stage 0 and `y` on stage 1:

    value     stage 0   stage 1   bystander
    x            0        never     never      too large to travel
    sum(x)       0          1         1        travels in round 0
    norm         1          1         1
    x / norm     1        never     never
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from .stage_sets import StageSet


Time = int | float
NEVER = math.inf


@dataclass(frozen=True, eq=False)
class Times:
    """For each stage, and last for the bystander, the rounds until it has a value."""

    after: tuple[Time, ...]

    @property
    def first(self) -> Time:
        """The number of rounds until the first stage has it."""
        return min(self.after)

    @property
    def everywhere(self) -> Time:
        """The number of rounds until the bystander, and so every stage, has it."""
        return self.after[-1]


class Clock:
    """Creates the times of values. Equal times are the same object."""

    def __init__(self, num_stages: int) -> None:
        self._num_stages = num_stages
        self._times: dict[tuple[Time, ...], Times] = {}
        self._met: dict[frozenset[Times], Times] = {}
        self._spread: dict[Times, Times] = {}
        self.always = self._of((0,) * (num_stages + 1))

    def _of(self, after: tuple[Time, ...]) -> Times:
        return self._times.setdefault(after, Times(after))

    def given(self, stages: StageSet) -> Times:
        """The times of an input that is given to these stages."""
        if len(stages) == self._num_stages:
            return self.always
        mine = [0 if stage in stages else NEVER for stage in range(self._num_stages)]
        return self._of((*mine, NEVER))

    def meet(self, operands: Iterable[Times]) -> Times:
        """The times of a result, which is computed where all of its operands are."""
        together = frozenset(operands) or frozenset({self.always})
        if together not in self._met:
            columns = zip(*(times.after for times in together), strict=True)
            self._met[together] = self._of(tuple(map(max, columns)))
        return self._met[together]

    def spread(self, made: Times) -> Times:
        """The times of a value that can also travel, one round after it is computed."""
        if made not in self._spread:
            travelled = made.first + 1
            after = tuple(min(time, travelled) for time in made.after)
            self._spread[made] = self._of(after)
        return self._spread[made]
