"""Predicts the rounds that a step can skip, from the counters in its state.

A message that is computed inside a branch is used by this branch alone. If another
branch is taken, no result depends on its value. A round is *idle* if this holds for all
of its messages. Example, with `x` on stage 0, `y` on stage 1 and a counter `n` that is
replicated on every stage:

    i = (n == 7)
    s = sum(x) + sum(y)        in the branch that is taken if `i`: one round
    n = where(i, 0, n + 1)

`i` and the next `n` depend on `n` alone, through integer arithmetic, which is exact on
every device. Hence `n` before one step determines the idle rounds of all later steps.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, jaxpr_as_fun, Var

from .jaxprs import Atom, inner_jaxprs, shape
from .planning import Message
from .slicing import Slices


# The number of steps predicted at once, and the number of predictions kept.
_STEPS_AHEAD = 256
_MOST_REMEMBERED = 16 * _STEPS_AHEAD

Counts = tuple[int | bool, ...]


class IdleRounds:
    """Predicts the idle rounds of each step from the counters before it.

    **Arguments:**

    - `step`: from the counters to the index operands of conds, and then the next
        counters.
    - `counters`: the indices of the counters among the inputs of the function.
    - `rounds`: for each round, for each message the branches that contain it: positions
        of index operands, and the number of the branch.
    """

    def __init__(
        self,
        step: ClosedJaxpr,
        counters: Sequence[int],
        rounds: Sequence[Sequence[Mapping[int, int]]],
    ) -> None:
        self.counters, self._step, self._rounds = counters, step, rounds
        self._known: dict[Counts, tuple[frozenset[int], Counts]] = {}

    def after(self, counts: Counts) -> tuple[frozenset[int], Counts]:
        """The idle rounds of a step, and the counters after it."""
        if counts not in self._known:
            if len(self._known) > _MOST_REMEMBERED:
                self._known.clear()
            self._look_ahead(counts)
        return self._known[counts]

    def _look_ahead(self, counts: Counts) -> None:
        avals = self._step.in_avals
        given = [np.asarray(n, a.dtype) for n, a in zip(counts, avals, strict=True)]
        with _on_cpu():
            indices_of_steps, counts_of_steps = map(_rows, self._steps(given))
        for indices, after in zip(indices_of_steps, counts_of_steps, strict=True):
            if counts in self._known:
                return
            self._known[counts] = self._idle(indices), after
            counts = after

    @functools.cached_property
    def _steps(self) -> Callable[[Sequence[Any]], tuple[list[Any], list[Any]]]:
        """Index operands of many steps, and the counters after each."""
        function, count = jaxpr_as_fun(self._step), len(self._step.in_avals)

        def step(counts: list[Any], _: None) -> tuple[list[Any], Any]:
            results = function(*counts)
            indices, after = results[:-count], results[-count:]
            return after, (indices, after)

        return jax.jit(lambda n: jax.lax.scan(step, n, None, length=_STEPS_AHEAD)[1])

    def _idle(self, indices: Counts) -> frozenset[int]:
        return frozenset(
            number
            for number, messages in enumerate(self._rounds)
            if all(_is_idle(branches, indices) for branches in messages)
        )


def _rows(columns: Sequence[Any]) -> list[Counts]:
    columns = [np.asarray(column).tolist() for column in columns]
    return list(zip(*columns, strict=True))


def _is_idle(branches: Mapping[int, int], indices: Counts) -> bool:
    return any(indices[position] != number for position, number in branches.items())


def idle_rounds(slices: Slices, next_of: Mapping[int, int]) -> IdleRounds | None:
    """Predicts the idle rounds of a function; None if no round is ever idle.

    **Arguments:**

    - `slices`: the function.
    - `next_of`: for each input that is a leaf of the state, the result that replaces it
        in the next step.
    """
    branches = [[_branches(slices, m) for m in messages] for messages in slices.rounds]
    pairs = [pair for messages in branches for each in messages for pair in each]
    counters = {var: _counters(slices, var, next_of) for var, _ in pairs}
    predicted = [var for var, read in counters.items() if read is not None]
    number_of = {var: number for number, var in enumerate(predicted)}
    rounds = [
        [{number_of[v]: k for v, k in each if v in number_of} for each in messages]
        for messages in branches
    ]
    if not any(all(messages) for messages in rounds):
        return None
    read = sorted(frozenset().union(*(counters[var] or () for var in predicted)))
    after = [slices.placed.results[next_of[i]] for i in read]
    program = slices.program_of_inputs([*predicted, *after], read)
    return IdleRounds(program.closed, read, rounds)


def _branches(slices: Slices, message: Message) -> list[tuple[Var, int]]:
    """The branches that contain a message: the index operand and number of each."""
    position = slices.producers.get(message.var, -1)
    return [
        (choice.index, number)
        for choice in slices.placed.choices
        for number, branch in enumerate(choice.branches)
        if position in branch.positions
    ]


def _counters(
    slices: Slices, index: Var, next_of: Mapping[int, int]
) -> frozenset[int] | None:
    """The counters that determine `index` in every step; None if other inputs do."""
    if slices.placed.values[index].owners:
        return None
    inputs, found = slices.source.jaxpr.invars, set[int]()
    wanted: list[Atom] = [index]
    while wanted:
        program = slices.program_of_inputs([wanted.pop()])
        if not _is_of_integers(program.closed.jaxpr):
            return None
        for i in set(program.inputs) - found:
            if i not in next_of or slices.placed.values[inputs[i]].owners:
                return None
            found.add(i)
            wanted.append(slices.placed.results[next_of[i]])
    return frozenset(found)


def _is_of_integers(jaxpr: Jaxpr) -> bool:
    """Whether all values are single integers or bools."""
    atoms: list[Atom] = [*jaxpr.invars, *jaxpr.constvars, *jaxpr.outvars]
    for eqn in jaxpr.eqns:
        atoms += [*eqn.invars, *eqn.outvars]
    return all(map(_is_integer, atoms)) and all(
        _is_of_integers(inner) for eqn in jaxpr.eqns for inner in inner_jaxprs(eqn)
    )


def _is_integer(atom: Atom) -> bool:
    dtype = getattr(atom.aval, "dtype", np.float32)
    kinds = jnp.integer, np.bool_
    return shape(atom) == () and any(jnp.issubdtype(dtype, kind) for kind in kinds)


@contextlib.contextmanager
def _on_cpu() -> Iterator[None]:
    """Runs computations on the CPU if possible, even while a function is traced."""
    try:
        device = jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        device = None
    with (
        jax.ensure_compile_time_eval(),
        jax.default_device(device),
        jax.transfer_guard("allow"),
    ):
        yield
