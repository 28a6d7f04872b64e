"""Where each equation of a jaxpr runs, when its inputs live on different stages.

A *place* is the set of stages on which a value exists. An equation runs where all its
operands are. One whose operands are nowhere together *crosses*: calls and conds that
cross are taken apart, and of what is left the small operands travel.

A value has two *levels*: how many rounds of exchange it takes until it can be at its
place, and until it can be on every stage. It gets to every stage by travelling, one
round later, or by being computed there from operands that are there earlier.
"""

import functools
import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var
from jax.extend.core.primitives import cond_p, scan_p, select_n_p

from .conds import Branch, Choice, may_not_end, only_if_taken
from .divisions import count_readers, keep_branch
from .jaxprs import Atom, inputs_read, keep_inputs, keep_results, nbytes, size, unroll


Place = frozenset[int]

NOWHERE: Place = frozenset()
LARGEST_MESSAGE = 4096  # bytes a value
LONGEST_UNROLL = 128  # steps of a scan

_CALLS = frozenset(
    {"checkpoint", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call"}
    | {"jit", "pjit", "remat2"}
)


class Value(NamedTuple):
    """Where a value is, and after how many rounds: there, and on every stage.

    A value that is `NOWHERE` cannot be computed, as `culprit` mixes whole tensors of
    different stages. One that is never everywhere has an infinite `level_everywhere`.
    A `partial` value is one summand, each from one of the stages that need the sum.
    The `price` is the size of the largest value that travels for it to be everywhere.
    """

    place: Place
    level: int | float
    level_everywhere: int | float
    price: int = 0
    culprit: JaxprEqn | None = None
    partial: bool = False


@dataclass(frozen=True)
class Placed:
    """A jaxpr without crossing calls and conds, and where each of its values is.

    `within` has the cond, its index and the number of each branch that is being placed.
    """

    everywhere: Place
    values: dict[Var, Value] = field(default_factory=dict)
    equations: list[JaxprEqn] = field(default_factory=list)
    choices: list[Choice] = field(default_factory=list)
    within: list[tuple[JaxprEqn, Var, int]] = field(default_factory=list)
    consts: dict[Var, Any] = field(default_factory=dict)
    results: list[Atom] = field(default_factory=list)

    def value(self, atom: Atom) -> Value:
        if isinstance(atom, Literal):
            return Value(self.everywhere, 0, 0)
        return self.values[atom]

    def meet(self, atoms: Iterable[Atom]) -> Place:
        places = (self.value(atom).place for atom in atoms)
        return functools.reduce(frozenset.intersection, places, self.everywhere)

    def level_at(self, atom: Atom, here: Place) -> int | float:
        value = self.value(atom)
        return value.level if here <= value.place else value.level_everywhere

    def may_travel(self, var: Var) -> bool:
        return self.values[var].partial or nbytes(var) <= LARGEST_MESSAGE


def place_equations(
    closed: ClosedJaxpr,
    places: Sequence[Place],
    num_stages: int,
    partial: Collection[int] = (),
) -> Placed:
    """Walks a jaxpr once and gives every equation a place.

    **Arguments:**

    - `closed`: the function.
    - `places`: the place of each of its inputs.
    - `num_stages`: how many stages there are.
    - `partial`: the indices of inputs that are summands of a sum over stages. They may
        travel however large they are, and where they meet is on all of their stages.
    """
    placed = Placed(everywhere=frozenset(range(num_stages)))
    for i, (var, place) in enumerate(zip(closed.jaxpr.invars, places, strict=True)):
        value = _value_at(placed, place, [], var)
        if i in partial:
            value = Value(place, 0, 1, size(var), partial=True)
        placed.values[var] = value
    placed.results.extend(_inline(placed, closed, closed.jaxpr.invars))
    return placed


def _value_at(placed: Placed, here: Place, operands: Sequence[Atom], var: Var) -> Value:
    level = max((placed.level_at(atom, here) for atom in operands), default=0)
    if here == placed.everywhere:
        return Value(here, level, level)
    travelled = level + 1 if nbytes(var) <= LARGEST_MESSAGE else math.inf
    values = [placed.value(atom) for atom in operands]
    computed = max((value.level_everywhere for value in values), default=math.inf)
    price = max((value.price for value in values), default=0)
    # A round is saved, but not by sending what is larger than the value itself.
    if computed < travelled and price <= size(var):
        return Value(here, level, computed, price)
    return Value(here, level, travelled, size(var))


def _inline(placed: Placed, body: ClosedJaxpr, operands: Sequence[Atom]) -> list[Atom]:
    """Places the equations of `body`, under fresh names, and returns its results."""
    name = dict(zip(body.jaxpr.invars, operands, strict=True))
    for var, const in zip(body.jaxpr.constvars, body.consts, strict=True):
        name[var] = _constant(placed, var, const)

    def read(atom: Atom) -> Atom:
        return atom if isinstance(atom, Literal) else name[atom]

    for eqn in body.jaxpr.eqns:
        results = _place(placed, eqn, [read(atom) for atom in eqn.invars])
        name.update(zip(eqn.outvars, results, strict=True))
    return [read(atom) for atom in body.jaxpr.outvars]


def _constant(placed: Placed, var: Var, const: Any) -> Var:
    fresh = Var(var.aval)
    placed.consts[fresh] = const
    placed.values[fresh] = Value(placed.everywhere, 0, 0)
    return fresh


def _place(placed: Placed, eqn: JaxprEqn, operands: list[Atom]) -> list[Atom]:
    if eqn.primitive is cond_p:
        return _place_cond(placed, eqn, operands)
    together = len({placed.value(atom).place for atom in operands}) <= 1
    if eqn.primitive.name in _CALLS and not together:
        return _inline(placed, _body(eqn), operands)
    if eqn.primitive is scan_p and not placed.meet(operands) and _is_short(eqn):
        return _inline(placed, unroll(eqn), operands)
    return _emit(placed, eqn, operands)


def _is_short(eqn: JaxprEqn) -> bool:
    return eqn.params["length"] <= LONGEST_UNROLL


def _body(eqn: JaxprEqn) -> ClosedJaxpr:
    params = eqn.params
    body = params["jaxpr"] if "jaxpr" in params else params["call_jaxpr"]
    return ClosedJaxpr(body, ()) if isinstance(body, Jaxpr) else body


def _emit(placed: Placed, eqn: JaxprEqn, operands: Sequence[Atom]) -> list[Atom]:
    results = [Var(var.aval) for var in eqn.outvars]
    eqn = eqn.replace(invars=list(operands), outvars=list(results))
    if placed.within and may_not_end(eqn):
        for branch in reversed(placed.within):
            eqn = only_if_taken(eqn, *branch)
        operands = eqn.invars
    here = _place_of(placed, operands)
    if here:
        placed.equations.append(eqn)
        for var in results:
            placed.values[var] = _value_at(placed, here, operands, var)
    else:
        culprits = [placed.value(atom).culprit for atom in operands]
        culprit = next(filter(None, culprits), eqn)
        nowhere = Value(NOWHERE, math.inf, math.inf, culprit=culprit)
        placed.values.update(dict.fromkeys(results, nowhere))
    return list(results)


def _place_of(placed: Placed, operands: Sequence[Atom]) -> Place:
    """Where the operands are that would take another round to be everywhere.

    If these are apart, it is where those are that cannot travel, or else the largest;
    if even these are apart, on every stage. Summands meet on all of their stages.
    """
    values = {atom: placed.value(atom) for atom in operands if isinstance(atom, Var)}
    moving = [x for x, value in values.items() if value.level < value.level_everywhere]
    if any(value.partial for value in values.values()):
        return frozenset().union(*(value.place for value in values.values()))
    together = placed.meet(moving or operands)
    if together:
        return together
    fixed = [x for x in moving if values[x].level_everywhere == math.inf]
    if fixed:
        return placed.meet(fixed)
    most = max(map(nbytes, moving), default=0)
    largest = [x for x in moving if nbytes(x) == most]
    return placed.meet(largest) or placed.everywhere


def _place_cond(placed: Placed, eqn: JaxprEqn, operands: list[Atom]) -> list[Atom]:
    index, *operands = operands
    branches = eqn.params["branches"]
    if isinstance(index, Literal):
        return _inline(placed, branches[int(index.val)], operands)
    places = [placed.value(atom).place for atom in operands]
    owners = _owners_of_results(branches, places, placed.everywhere)
    results: dict[int, Atom] = {}
    for owner in dict.fromkeys(owners):
        chosen = [i for i, place in enumerate(owners) if place == owner]
        place_part = _place_cond_of_owner if owner else _place_choice
        parts = place_part(placed, eqn, index, operands, chosen)
        results.update(zip(chosen, parts, strict=True))
    return [results[i] for i in range(len(owners))]


def _owners_of_results(
    branches: Sequence[ClosedJaxpr], places: Sequence[Place], everywhere: Place
) -> list[Place]:
    """Where each result of a cond can be computed without anything travelling."""

    def owners(branch: ClosedJaxpr) -> list[Place]:
        place = dict(zip(branch.jaxpr.invars, places, strict=True))

        def meet(atoms: Iterable[Atom]) -> Place:
            known = (place.get(x, everywhere) for x in atoms if isinstance(x, Var))
            return functools.reduce(frozenset.intersection, known, everywhere)

        for eqn in branch.jaxpr.eqns:
            place.update(dict.fromkeys(eqn.outvars, meet(eqn.invars)))
        return [meet([atom]) for atom in branch.jaxpr.outvars]

    by_branch = zip(*map(owners, branches), strict=True)
    return [frozenset.intersection(*where) for where in by_branch]


def _place_cond_of_owner(
    placed: Placed,
    eqn: JaxprEqn,
    index: Var,
    operands: Sequence[Atom],
    chosen: Sequence[int],
) -> list[Atom]:
    """The same cond with only the chosen results, and the operands these need."""
    branches = [keep_branch(branch, chosen) for branch in eqn.params["branches"]]
    kept = sorted(set().union(*map(inputs_read, branches)))
    branches = tuple(keep_inputs(branch, kept) for branch in branches)
    part = eqn.replace(
        outvars=[eqn.outvars[i] for i in chosen],
        params={**eqn.params, "branches": branches},
    )
    return _emit(placed, part, [index, *(operands[i] for i in kept)])


def _place_choice(
    placed: Placed,
    eqn: JaxprEqn,
    index: Var,
    operands: Sequence[Atom],
    chosen: Sequence[int],
) -> list[Atom]:
    """Every branch, and a choice between their results."""
    cases, branches = [], []
    for number, branch in enumerate(eqn.params["branches"]):
        start = len(placed.equations)
        placed.within.append((eqn, index, number))
        cases.append(_inline(placed, keep_results(branch, chosen), operands))
        placed.within.pop()
        readers = count_readers(placed.equations[start:], cases[number])
        branches.append(Branch(range(start, len(placed.equations)), readers))
    start, results = len(placed.equations), []
    for i, values in zip(chosen, zip(*cases, strict=True), strict=True):
        select = eqn.replace(primitive=select_n_p, params={}, outvars=[eqn.outvars[i]])
        results += _emit(placed, select, [index, *values])
    selects = range(start, len(placed.equations))
    placed.choices.append(Choice(eqn, index, tuple(branches), selects))
    return results
