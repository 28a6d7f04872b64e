"""Branches of a `cond` that mixes stages: computed only if they are taken.

Such a `cond` is taken apart to find out what travels. In each program, what is left of
its branches is put back into a `cond`, as soon as the program knows which one is taken.
A message that is sent before that is computed either way.
"""

import bisect
from collections.abc import Iterable, Sequence, Set as AbstractSet
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Var
from jax.extend.core.primitives import while_p

from .fidelity import keep_bits, Readers
from .jaxprs import Atom, rebuild, shape_of, used, variables


Numbered = list[tuple[int, JaxprEqn]]


class Branch(NamedTuple):
    """Where a branch's equations are among all, and what reads its values."""

    positions: range
    readers: Readers


@dataclass(frozen=True, eq=False)
class Choice:
    """A `cond` that was taken apart.

    **Attributes:**

    - `cond`: the equation that it was.
    - `index`: says which branch is taken.
    - `branches`: what became of its branches.
    - `selects`: the positions of the equations that choose between the results.
    """

    cond: JaxprEqn
    index: Var
    branches: tuple[Branch, ...]
    selects: range

    @property
    def start(self) -> int:
        return self.branches[0].positions.start

    def is_begun(self, positions: Sequence[int]) -> bool:
        """Whether any of these equations is in a branch."""
        first = bisect.bisect_left(positions, self.start)
        return first < len(positions) and positions[first] < self.selects.start

    def put_back(self, inside: Numbered, read_later: AbstractSet[Var]) -> JaxprEqn:
        """The equations that a program has of the branches, as a `cond` again."""
        selects = [eqn for i, eqn in inside if i in self.selects]
        made = [v for i, eqn in inside if i < self.selects.start for v in eqn.outvars]
        leaving = [var for var in made if var in read_later]
        branches = []
        for k, (positions, readers) in enumerate(self.branches):
            part = [eqn for i, eqn in inside if i in positions]
            cases = [eqn.invars[1 + k] for eqn in selects]
            part = keep_bits(part, cases, readers)
            branches.append(_fill(part, cases, leaving))
        outvars = [*(eqn.outvars[0] for eqn in selects), *leaving]
        return _cond(self.cond, self.index, branches, outvars)


def put_branches_back(
    equations: Numbered,
    choices: Iterable[Choice],
    wanted: Sequence[Atom],
    known: AbstractSet[Var],
) -> list[JaxprEqn]:
    """Puts what a program has of branches into conds, where it knows the index.

    **Arguments:**

    - `equations`: of the program, with their positions among all.
    - `choices`: inner ones before those that they are in.
    - `wanted`: the program's results.
    - `known`: the indices that the program computes or is given.
    """
    for choice in choices:
        first = bisect.bisect_left(equations, choice.start, key=_position)
        last = bisect.bisect_left(equations, choice.selects.stop, key=_position)
        before, after = equations[:first], equations[last:]
        inside = equations[first:last]
        begun = choice.is_begun([i for i, _ in inside])
        if begun and choice.index in known:
            read_later = used((eqn for _, eqn in after), wanted)
            cond = choice.put_back(inside, read_later)
            equations = [*before, (choice.selects.start, cond), *after]
    return [eqn for _, eqn in equations]


def only_if_taken(eqn: JaxprEqn, cond: JaxprEqn, index: Var, taken: int) -> JaxprEqn:
    """An equation of a branch, computed only if that branch is taken."""
    branches = [
        _fill([eqn] if k == taken else [], [], eqn.outvars)
        for k in range(len(cond.params["branches"]))
    ]
    return _cond(cond, index, branches, eqn.outvars)


def may_not_end(eqn: JaxprEqn) -> bool:
    """Whether an equation is, or has in it, a loop that ends when a value says so."""
    if eqn.primitive is while_p:
        return True
    return any(
        may_not_end(inner)
        for param in eqn.params.values()
        for jaxpr in _jaxprs_in(param)
        for inner in jaxpr.eqns
    )


def _jaxprs_in(param: Any) -> list[Jaxpr]:
    if isinstance(param, tuple | list):
        return [jaxpr for part in param for jaxpr in _jaxprs_in(part)]
    if isinstance(param, ClosedJaxpr):
        return [param.jaxpr]
    return [param] if isinstance(param, Jaxpr) else []


def _position(numbered: tuple[int, JaxprEqn]) -> int:
    return numbered[0]


def _fill(
    equations: Sequence[JaxprEqn],
    cases: Sequence[Atom],
    leaving: Sequence[Var],
) -> tuple[list[JaxprEqn], list[Atom]]:
    """A branch that returns its cases, and zeros for what leaves other branches."""
    made = {var for eqn in equations for var in eqn.outvars}
    filled, results = list(equations), list(cases)
    for var in leaving:
        if var in made:
            results.append(var)
        else:
            zeros = _zeros_like(var)
            filled += zeros.eqns
            results += zeros.outvars
    return filled, results


def _zeros_like(var: Var) -> Jaxpr:
    shape = shape_of(var)
    return jax.make_jaxpr(lambda: jnp.zeros(shape.shape, shape.dtype))().jaxpr


def _cond(
    like: JaxprEqn,
    index: Var,
    branches: Sequence[tuple[Sequence[JaxprEqn], Sequence[Atom]]],
    outvars: Sequence[Var],
) -> JaxprEqn:
    """A `cond` between branches whose operands are all that they read."""
    read: dict[Var, None] = {}
    for equations, results in branches:
        made = {var for eqn in equations for var in eqn.outvars}
        atoms = [atom for eqn in equations for atom in eqn.invars]
        read.update((v, None) for v in variables([*atoms, *results]) if v not in made)
    jaxprs = tuple(
        ClosedJaxpr(rebuild(given.jaxpr, (), list(read), equations, results), ())
        for given, (equations, results) in zip(
            like.params["branches"], branches, strict=True
        )
    )
    return like.replace(
        invars=[index, *read],
        outvars=list(outvars),
        params={**like.params, "branches": jaxprs},
    )
