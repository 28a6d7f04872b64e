"""When a value can be where: the number of rounds of exchange that this takes.

Beside the stages there is a bystander, which owns nothing and knows only what every
stage is given and what has travelled. What it has after so many rounds, every stage
has. For `norm = sum(x) + sum(y)` with `x` on stage 0 and `y` on stage 1:

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
    """After how many rounds each stage, and last the bystander, can have a value."""

    after: tuple[Time, ...]

    @property
    def first(self) -> Time:
        """When the first stage can have it."""
        return min(self.after)

    @property
    def everywhere(self) -> Time:
        """When the bystander can have it, and so every stage."""
        return self.after[-1]


class Clock:
    """Makes the times of values, and the same object for the same times."""

    def __init__(self, num_stages: int) -> None:
        self._num_stages = num_stages
        self._times: dict[tuple[Time, ...], Times] = {}
        self._met: dict[frozenset[Times], Times] = {}
        self._spread: dict[Times, Times] = {}
        self.always = self._of((0,) * (num_stages + 1))

    def _of(self, after: tuple[Time, ...]) -> Times:
        return self._times.setdefault(after, Times(after))

    def given(self, stages: StageSet) -> Times:
        """Those of an input that these stages are given."""
        if len(stages) == self._num_stages:
            return self.always
        mine = [0 if stage in stages else NEVER for stage in range(self._num_stages)]
        return self._of((*mine, NEVER))

    def meet(self, operands: Iterable[Times]) -> Times:
        """Those of what is computed where all of its operands are."""
        together = frozenset(operands) or frozenset({self.always})
        if together not in self._met:
            columns = zip(*(times.after for times in together), strict=True)
            self._met[together] = self._of(tuple(map(max, columns)))
        return self._met[together]

    def spread(self, made: Times) -> Times:
        """Those of what may also travel, one round after it is there."""
        if made not in self._spread:
            travelled = made.first + 1
            after = tuple(min(time, travelled) for time in made.after)
            self._spread[made] = self._of(after)
        return self._spread[made]
