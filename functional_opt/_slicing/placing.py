"""Where each equation of a jaxpr can run, when its inputs are on different stages.

An equation runs where all its operands are. One whose operands are nowhere together
*crosses*: calls and conds that cross are taken apart, and short loops unrolled. Of what
is left, the operands that may travel do; if the others are apart, its results cannot be
computed.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var
from jax.extend.core.primitives import cond_p, scan_p, select_n_p

from .conds import Branch, Choice, may_not_end, only_if_taken
from .dimensions import CALLS, Marks, marks_of_results
from .fidelity import count_readers, Readers
from .jaxprs import Atom, body_of_call, nbytes, shape, unroll
from .stage_sets import NOWHERE, StageSet
from .times import Clock, NEVER, Times
from .trimming import keep_cond_results, keep_results


LONGEST_UNROLL = 128  # steps of a scan, or of nested scans together


class Value(NamedTuple):
    """Where a value can be, and after how many rounds of exchange.

    **Attributes:**

    - `made`: after how many rounds each stage can compute it.
    - `times`: after how many rounds each stage can have it: computed or received.
    - `home`: the stages that can compute it without what other stages own; all, if it
        mixes what several own; none, if it can nowhere be computed.
    - `owners`: the stages that own inputs it is computed from. What every stage is
        given has none.
    - `marks`: which of its dimensions are dimensions of a parameter.
    - `may_travel`: whether it may be sent.
    - `culprit`: if it can nowhere be computed, the equation because of which.
    """

    made: Times
    times: Times
    home: StageSet
    owners: StageSet
    marks: Marks
    may_travel: bool
    culprit: JaxprEqn | None = None


@dataclass(frozen=True)
class Placed:
    """A jaxpr without crossing calls and conds, and where each of its values can be."""

    values: dict[Var, Value]
    equations: list[JaxprEqn]
    choices: list[Choice]
    consts: dict[Var, Any]
    results: list[Atom]
    everywhere: Value

    def value(self, atom: Atom) -> Value:
        return self.everywhere if isinstance(atom, Literal) else self.values[atom]


def place_equations(
    closed: ClosedJaxpr,
    places: Sequence[StageSet],
    num_stages: int,
    *,
    marks: Sequence[Marks] | None = None,
    travel_limit: int = 0,
) -> Placed:
    """Walks a jaxpr once, and says where each of its values can be.

    **Arguments:**

    - `closed`: the function.
    - `places`: for each input the stages that are given it.
    - `num_stages`: how many stages there are.
    - `marks`: for each input which of its dimensions are dimensions of a parameter. If
        omitted, all of them are.
    - `travel_limit`: values of at most so many bytes travel whatever they are.
    """
    placer = _Placer(num_stages, travel_limit)
    inputs = closed.jaxpr.invars
    if marks is None:
        marks = [(True,) * len(shape(var)) for var in inputs]
    for i, var in enumerate(inputs):
        placer.give(var, places[i], marks[i])
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
    """A branch that is being placed: the cond, its index, the number of the branch."""

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

    def give(self, var: Var, place: StageSet, marks: Marks) -> None:
        """An input, which these stages are given."""
        made = self.clock.given(place)
        owners = NOWHERE if place == self.stages else place
        may_travel = self._may_travel(var, marks)
        times = self.clock.spread(made) if may_travel else made
        self.values[var] = Value(made, times, place, owners, marks, may_travel)

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
        """Places the equations of `body`, under fresh names, and returns its results.

        They are in the branches `within`, and in loops unrolled to so many `steps`.
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
        """Where the operands are that are not everywhere as soon as there.

        If they are apart, it is where those are that stay.
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
        """One cond for the results of each home, and a choice where branches mix."""
        index, *operands = operands
        branches = eqn.params["branches"]
        if isinstance(index, Literal):
            return self.inline(branches[int(index.val)], operands, within, steps)
        homes = self._homes_of_results(
            branches, [self.value(atom).home for atom in operands]
        )
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

    def _homes_of_results(
        self, branches: Sequence[ClosedJaxpr], operands: Sequence[StageSet]
    ) -> list[StageSet]:
        """Where each result of a cond can be computed without anything travelling."""
        by_branch = [self._homes(branch.jaxpr, operands) for branch in branches]
        return [frozenset.intersection(*each) for each in zip(*by_branch, strict=True)]

    def _homes(self, body: Jaxpr, operands: Sequence[StageSet]) -> list[StageSet]:
        home = dict(zip(body.invars, operands, strict=True))

        def read(atom: Atom) -> StageSet:
            return home.get(atom, self.stages) if isinstance(atom, Var) else self.stages

        for eqn in body.eqns:
            index, *given = [read(atom) for atom in eqn.invars] or [self.stages]
            if eqn.primitive is cond_p:
                inner = self._homes_of_results(eqn.params["branches"], given)
                home.update(
                    (v, index & one) for v, one in zip(eqn.outvars, inner, strict=True)
                )
            else:
                home.update(dict.fromkeys(eqn.outvars, index.intersection(*given)))
        return [read(atom) for atom in body.outvars]

    def _choose(
        self,
        eqn: JaxprEqn,
        index: Var,
        operands: Sequence[Atom],
        chosen: Sequence[int],
        within: tuple[_Within, ...],
        steps: int,
    ) -> list[Atom]:
        """Places every branch, and a choice between their results."""
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
