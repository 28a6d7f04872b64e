"""Puts the branches of a split `cond` back, so that only the taken branch runs.

A `cond` that mixes stages is split into the equations of all of its branches, so that
planning can find the values that travel. In each program the remaining equations go
back into a `cond`, provided that the program knows which branch is taken. A message
that is sent before the index is known is computed either way.

Example: `r = cond(i, f, g, x, y)` with `f(x, y) = sum(x) * x`, `g(x, y) = sum(y) * x`,
`x` on stage 0 and `y` on stage 1. Split, with the positions of the equations:

    0   s = sum(x)             branch 0, positions 0:2
    1   a = mul(s, x)
    2   t = sum(y)             branch 1, positions 2:4
    3   b = mul(t, x)
    4   r = select_n(i, a, b)  selects, positions 4:5

`t` travels from stage 1 to stage 0. Suppose that every stage knows `i`. The program of
stage 1 has only equation 2, and `t` *leaves* its branch, since the stage sends it. It
becomes a result of the cond, with zeros in the other branch:

    t = cond(i, {zeros}, {sum(y)}, y)

Stage 0 receives `t`, and its program has equations 0, 1, 3 and 4:

    r = cond(i, {s = sum(x); a = mul(s, x) in a}, {b = mul(t, x) in b}, x, t)
"""

import bisect
from collections.abc import Iterable, Sequence, Set as AbstractSet
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Var
from jax.extend.core.primitives import while_p

from .fidelity import keep_bits, Readers
from .jaxprs import Atom, inner_jaxprs, rebuild, shape_of, used, variables


Numbered = list[tuple[int, JaxprEqn]]


class Branch(NamedTuple):
    """The positions of the equations of a branch, and the readers of its values."""

    positions: range
    readers: Readers


@dataclass(frozen=True, eq=False)
class Choice:
    """A `cond` that was split into its branches.

    **Attributes:**

    - `cond`: the original equation.
    - `index`: the operand that selects the branch.
    - `branches`: the equations of each branch.
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
        """Whether any of these positions is in a branch."""
        first = bisect.bisect_left(positions, self.start)
        return first < len(positions) and positions[first] < self.selects.start

    def put_back(self, inside: Numbered, read_later: AbstractSet[Var]) -> JaxprEqn:
        """The equations of the branches that a program has left, as one `cond`.

        **Arguments:**

        - `inside`: these equations, with their positions.
        - `read_later`: the variables that the rest of the program reads.
        """
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
    """Puts the branches in a program back into conds, where it knows the index.

    **Arguments:**

    - `equations`: the equations of the program, with their positions among all
        equations.
    - `choices`: the split conds, inner ones before those that contain them.
    - `wanted`: the results of the program.
    - `known`: the index operands that the program computes or receives.
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
    """An equation of a branch as a `cond` of its own, with zeros in other branches."""
    branches = [
        _fill([eqn] if k == taken else [], [], eqn.outvars)
        for k in range(len(cond.params["branches"]))
    ]
    return _cond(cond, index, branches, eqn.outvars)


def may_not_end(eqn: JaxprEqn) -> bool:
    """Whether an equation is or contains a `while` loop.

    A loop whose condition depends on values may never end if it runs on the operands of
    a branch that is not taken.
    """
    if eqn.primitive is while_p:
        return True
    return any(
        may_not_end(inner) for jaxpr in inner_jaxprs(eqn) for inner in jaxpr.eqns
    )


def _position(numbered: tuple[int, JaxprEqn]) -> int:
    return numbered[0]


def _fill(
    equations: Sequence[JaxprEqn],
    cases: Sequence[Atom],
    leaving: Sequence[Var],
) -> tuple[list[JaxprEqn], list[Atom]]:
    """A branch that returns its cases, and zeros for values that leave others."""
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
    """A `cond` between branches; its operands are the variables that they read."""
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
