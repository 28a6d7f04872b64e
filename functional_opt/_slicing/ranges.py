"""The stages that can compute the results of a conditional as a whole."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from jax.extend.core import ClosedJaxpr, Jaxpr, Var
from jax.extend.core.primitives import cond_p

from .dimensions import Marks, marks_of_results
from .jaxprs import Atom, shape
from .stage_sets import StageSet


class Range(NamedTuple):
    """Where a value can be computed.

    **Attributes:**

    - `home`: the stages that can compute it if no value travels.
    - `reach`: the stages that can compute or receive it if all values travel that may.
    - `marks`: which of its dimensions are dimensions of a parameter.
    - `may_travel`: whether it may travel.
    """

    home: StageSet
    reach: StageSet
    marks: Marks
    may_travel: bool

    @property
    def is_settled(self) -> bool:
        """Whether no other stage could compute it if its operands travelled.

        A tied `x` of stages 0 and 1, scaled by the norm of a `y` on stage 0, is not:
        stage 0 has both operands, but stage 1 needs the result as well.
        """
        return self.may_travel or self.home == self.reach


@dataclass(frozen=True)
class Ranges:
    """Finds the ranges of the results of conditionals.

    **Attributes:**

    - `stages`: all stages.
    - `may_travel`: whether a variable with these marks may travel.
    """

    stages: StageSet
    may_travel: Callable[[Var, Marks], bool]

    def of_results(
        self, branches: Sequence[ClosedJaxpr], operands: Sequence[Range]
    ) -> list[Range]:
        """The range of each result, in all branches."""
        by_branch = [self._of_body(branch.jaxpr, operands) for branch in branches]
        return [
            Range(
                self.stages.intersection(*(each.home for each in cases)),
                self.stages.intersection(*(each.reach for each in cases)),
                tuple(map(any, zip(*(each.marks for each in cases), strict=True))),
                all(each.may_travel for each in cases),
            )
            for cases in zip(*by_branch, strict=True)
        ]

    def _of_body(self, body: Jaxpr, operands: Sequence[Range]) -> list[Range]:
        found = dict(zip(body.invars, operands, strict=True))

        def read(atom: Atom) -> Range:
            if isinstance(atom, Var) and atom in found:
                return found[atom]
            marks = (False,) * len(shape(atom))
            return Range(self.stages, self.stages, marks, True)

        for eqn in body.eqns:
            given = [read(atom) for atom in eqn.invars]
            marks = marks_of_results(eqn, [each.marks for each in given])
            if eqn.primitive is cond_p:
                index, *rest = given
                inner = self.of_results(eqn.params["branches"], rest)
                made = [(index.home & x.home, index.reach & x.reach) for x in inner]
            else:
                home = self.stages.intersection(*(each.home for each in given))
                reach = self.stages.intersection(*(each.reach for each in given))
                made = [(home, reach)] * len(eqn.outvars)
            for var, own, (home, reach) in zip(eqn.outvars, marks, made, strict=True):
                travels = self.may_travel(var, own)
                found[var] = Range(
                    home, self.stages if travels else reach, own, travels
                )
        return [read(atom) for atom in body.outvars]
