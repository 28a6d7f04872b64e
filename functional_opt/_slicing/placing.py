"""Where each equation of a jaxpr can run, when its inputs are on different stages.

An equation runs on the stages that hold all of its operands. If no stage holds them
all, the equation *crosses*. Calls that cross are inlined, conditionals are split into
their branches and short loops are unrolled. The operands of any other crossing equation
travel if they may; if those that may not travel have no stage in common, its results
cannot be computed.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal, Var
from jax.extend.core.primitives import cond_p, scan_p, select_n_p

from .conds import Branch, Choice, may_not_end, only_if_taken
from .dimensions import CALLS, Marks, marks_of_results
from .fidelity import count_readers, Readers
from .jaxprs import Atom, body_of_call, nbytes, shape, unroll
from .placed import Placed, Value
from .ranges import Range, Ranges
from .stage_sets import NOWHERE, StageSet
from .times import Clock, NEVER
from .trimming import keep_cond_results, keep_results


LONGEST_UNROLL = 128  # iterations of a scan, or the product over nested scans


def place_equations(
    closed: ClosedJaxpr,
    stage_sets: Sequence[StageSet],
    num_stages: int,
    *,
    marks: Sequence[Marks] | None = None,
    travel_limit: int = 0,
) -> Placed:
    """Walks a jaxpr once and finds the stages that can compute each of its values.

    **Arguments:**

    - `closed`: the function.
    - `stage_sets`: for each input the stages that hold it.
    - `num_stages`: the number of stages.
    - `marks`: for each input which of its dimensions are dimensions of a parameter. If
        omitted, all of them are.
    - `travel_limit`: values of at most this many bytes travel whatever their
        dimensions.
    """
    placer = _Placer(num_stages, travel_limit)
    inputs = closed.jaxpr.invars
    if marks is None:
        marks = [(True,) * len(shape(var)) for var in inputs]
    for i, var in enumerate(inputs):
        placer.give(var, stage_sets[i], marks[i])
    results = placer.inline(closed, inputs)
    return Placed(
        placer.values,
        placer.equations,
        placer.choices,
        placer.consts,
        results,
        placer.everywhere,
    )


class _Within(NamedTuple):
    """A branch being placed: the cond, its index operand, the number of the branch."""

    cond: JaxprEqn
    index_of_cond: Var
    number: int


@dataclass
class _Placer:
    num_stages: int
    travel_limit: int
    values: dict[Var, Value] = field(default_factory=dict)
    equations: list[JaxprEqn] = field(default_factory=list)
    choices: list[Choice] = field(default_factory=list)
    consts: dict[Var, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.clock = Clock(self.num_stages)
        self.stages = frozenset(range(self.num_stages))
        always = self.clock.always
        self.everywhere = Value(always, always, self.stages, NOWHERE, (), False)

    def value(self, atom: Atom) -> Value:
        return self.everywhere if isinstance(atom, Literal) else self.values[atom]

    def give(self, var: Var, holders: StageSet, marks: Marks) -> None:
        """Adds an input that these stages hold."""
        made = self.clock.given(holders)
        owners = NOWHERE if holders == self.stages else holders
        may_travel = self._may_travel(var, marks)
        times = self.clock.spread(made) if may_travel else made
        self.values[var] = Value(made, times, holders, owners, marks, may_travel)

    def _may_travel(self, var: Var, marks: Marks) -> bool:
        size = nbytes(var)
        return size < math.inf and (not any(marks) or size <= self.travel_limit)

    def inline(
        self,
        body: ClosedJaxpr,
        operands: Sequence[Atom],
        within: tuple[_Within, ...] = (),
        steps: int = 1,
    ) -> list[Atom]:
        """Places the equations of `body` under fresh names and returns its results.

        **Arguments:**

        - `within`: the branches that contain `body`, outermost first.
        - `steps`: the product of the lengths of the unrolled loops that contain it.
        """
        name = dict(zip(body.jaxpr.invars, operands, strict=True))
        for var, const in zip(body.jaxpr.constvars, body.consts, strict=True):
            name[var] = self._constant(var, const)

        def read(atom: Atom) -> Atom:
            return atom if isinstance(atom, Literal) else name[atom]

        for eqn in body.jaxpr.eqns:
            given = [read(atom) for atom in eqn.invars]
            results = self._place(eqn, given, within, steps)
            name.update(zip(eqn.outvars, results, strict=True))
        return [read(atom) for atom in body.jaxpr.outvars]

    def _constant(self, var: Var, const: Any) -> Var:
        fresh = Var(var.aval)
        self.consts[fresh] = const
        marks = (False,) * len(shape(var))
        self.values[fresh] = self.everywhere._replace(marks=marks)
        return fresh

    def _place(
        self,
        eqn: JaxprEqn,
        operands: list[Atom],
        within: tuple[_Within, ...],
        steps: int,
    ) -> list[Atom]:
        if eqn.primitive is cond_p:
            return self._place_cond(eqn, operands, within, steps)
        if eqn.primitive.name in CALLS and self._are_apart(operands):
            return self.inline(body_of_call(eqn), operands, within, steps)
        if eqn.primitive is scan_p and not self._home(operands):
            unrolled = steps * eqn.params["length"]
            if unrolled <= LONGEST_UNROLL:
                return self.inline(unroll(eqn), operands, within, unrolled)
        return self._emit(eqn, operands, within)

    def _are_apart(self, operands: Iterable[Atom]) -> bool:
        return len({self.value(atom).home for atom in operands}) > 1

    def _emit(
        self, eqn: JaxprEqn, operands: Sequence[Atom], within: tuple[_Within, ...]
    ) -> list[Atom]:
        results = [Var(var.aval) for var in eqn.outvars]
        eqn = eqn.replace(invars=list(operands), outvars=list(results))
        if within and may_not_end(eqn):
            for branch in reversed(within):
                eqn = only_if_taken(eqn, *branch)
        given = [self.value(atom) for atom in eqn.invars]
        marks = marks_of_results(eqn, [value.marks for value in given])
        made = self.clock.meet(value.times for value in given)
        if made.first == NEVER:
            culprit = next((v.culprit for v in given if v.culprit), eqn)
            nowhere = Value(made, made, NOWHERE, NOWHERE, (), False, culprit)
            self.values.update(
                (var, nowhere._replace(marks=m))
                for var, m in zip(results, marks, strict=True)
            )
            return list(results)
        self.equations.append(eqn)
        home, owners = self._home(eqn.invars), NOWHERE.union(*(v.owners for v in given))
        for var, mine in zip(results, marks, strict=True):
            may_travel = self._may_travel(var, mine)
            times = self.clock.spread(made) if may_travel else made
            self.values[var] = Value(made, times, home, owners, mine, may_travel)
        return list(results)

    def _home(self, operands: Iterable[Atom]) -> StageSet:
        """The stages that hold the local operands, or else those that cannot travel.

        An operand is local if some stage has it before the bystander. If the local
        operands have no stage in common, those that can travel do.
        """
        given = [self.value(atom) for atom in operands]
        local = [v for v in given if v.times.first < v.times.everywhere] or given
        together = self.stages.intersection(*(value.home for value in local))
        if together:
            return together
        staying = [v.home for v in local if v.times.everywhere == NEVER]
        return self.stages.intersection(*staying)

    def _place_cond(
        self,
        eqn: JaxprEqn,
        operands: list[Atom],
        within: tuple[_Within, ...],
        steps: int,
    ) -> list[Atom]:
        """One cond for the results of each home; a choice for results without one.

        With `x` on stage 0 and `y` on stage 1, `a, b = cond(i, f, g, x, y)` becomes

            a = cond(i, f, g, x)          all branches compute `a` from `x`: on stage 0
            b0 = f(y); b1 = g(x, y)       `b1` mixes stages: both branches are inlined,
            b = select_n(i, b0, b1)       and `b` is chosen between their results
        """
        index, *operands = operands
        branches = eqn.params["branches"]
        if isinstance(index, Literal):
            return self.inline(branches[int(index.val)], operands, within, steps)
        held = [self._range(atom) for atom in operands]
        ranges = Ranges(self.stages, self._may_travel).of_results(branches, held)
        homes = [each.home if each.is_settled else NOWHERE for each in ranges]
        given = eqn.replace(invars=[index, *operands])
        results: dict[int, Atom] = {}
        for home in dict.fromkeys(homes):
            chosen = [i for i, other in enumerate(homes) if other == home]
            if home:
                part = keep_cond_results(given, chosen)
                parts = self._emit(part, part.invars, within)
            else:
                parts = self._choose(eqn, index, operands, chosen, within, steps)
            results.update(zip(chosen, parts, strict=True))
        return [results[i] for i in range(len(homes))]

    def _range(self, atom: Atom) -> Range:
        value = self.value(atom)
        reach = self.stages if value.may_travel else value.home
        return Range(value.home, reach, value.marks, value.may_travel)

    def _choose(
        self,
        eqn: JaxprEqn,
        index: Var,
        operands: Sequence[Atom],
        chosen: Sequence[int],
        within: tuple[_Within, ...],
        steps: int,
    ) -> list[Atom]:
        """Places every branch, and a choice between their results.

        Inner conds add their choices first, so `choices` lists them before outer ones.
        """
        cases, branches = [], []
        for number, branch in enumerate(eqn.params["branches"]):
            start, inside = len(self.equations), _Within(eqn, index, number)
            part = keep_results(branch, chosen)
            cases.append(self.inline(part, operands, (*within, inside), steps))
            readers = Readers(count_readers(self.equations[start:], cases[number]))
            branches.append(Branch(range(start, len(self.equations)), readers))
        start, results = len(self.equations), []
        for i, values in zip(chosen, zip(*cases, strict=True), strict=True):
            select = eqn.replace(
                primitive=select_n_p, params={}, outvars=[eqn.outvars[i]]
            )
            results += self._emit(select, [index, *values], within)
        selects = range(start, len(self.equations))
        self.choices.append(Choice(eqn, index, tuple(branches), selects))
        return results
