"""A jaxpr and places in, one program a stage out.

A value that is needed where it is not travels: in round 0 what can be computed from the
inputs alone, in round 1 what needs also what travelled in round 0, and so on. Every
program is a pure function of its stage's inputs and of what has been received, so
nothing large is kept from one round to the next.
"""

import functools
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jax.extend.core import ClosedJaxpr, jaxpr_as_fun, JaxprEqn, Literal, Var

from .conds import put_branches_back
from .divisions import count_readers, keep_divisions
from .errors import CrossStageError, effect_text, mixture_text, result_text
from .jaxprs import Atom, backward_slice, computable, rebuild, used
from .placing import Place, place_equations, Placed


@dataclass(frozen=True, eq=False)
class Message:
    """A value that travels in `round` from `sender`, as late as it may.

    `needed_by` is the first equation that reads it elsewhere; None for a result.
    """

    var: Var
    round: int
    sender: int
    needed_by: JaxprEqn | None


@dataclass(frozen=True, eq=False)
class Program:
    """A pure function of some inputs, by index, and of some messages received."""

    closed: ClosedJaxpr
    inputs: tuple[int, ...]
    received: tuple[Message, ...]

    def __call__(self, inputs: Sequence[Any], received: Sequence[Any]) -> list[Any]:
        return jaxpr_as_fun(self.closed)(*inputs, *received)


@dataclass(frozen=True, eq=False)
class Slices:
    """A function cut into programs: rounds of messages, then each stage's results."""

    source: ClosedJaxpr
    placed: Placed
    rounds: tuple[tuple[Message, ...], ...]
    equations: Sequence[Sequence[JaxprEqn]] = field(repr=False)

    @functools.cached_property
    def _sent(self) -> dict[tuple[int, int], list[Message]]:
        sent: dict[tuple[int, int], list[Message]] = {}
        for message in (message for messages in self.rounds for message in messages):
            sent.setdefault((message.sender, message.round), []).append(message)
        return sent

    def sent(self, stage: int, round: int) -> list[Message]:
        """What the stage sends in the round, in the order in which it is packed."""
        return self._sent.get((stage, round), [])

    @functools.cached_property
    def position(self) -> dict[Message, int]:
        """Where each message is among those that are packed with it."""
        return {m: k for sent in self._sent.values() for k, m in enumerate(sent)}

    def message_program(self, stage: int, round: int) -> Program:
        """Computes what `stage` sends in `round`, in the order of `sent`."""
        wanted = [message.var for message in self.sent(stage, round)]
        return self._program(stage, wanted, self.rounds[:round])

    def result_program(self, stage: int, results: Sequence[int]) -> Program:
        """Computes the results with these indices on `stage`, after all rounds."""
        wanted = [self.placed.results[i] for i in results]
        return self._program(stage, wanted, self.rounds)

    def _inputs_of(self, stage: int) -> set[Var]:
        place = {v: self.placed.values[v].place for v in self.source.jaxpr.invars}
        return {var for var, stages in place.items() if stage in stages}

    def _positions(self, equations: Sequence[JaxprEqn]) -> list[int]:
        return [self._position[id(eqn)] for eqn in equations]

    @functools.cached_property
    def _position(self) -> dict[int, int]:
        return {id(eqn): i for i, eqn in enumerate(self.placed.equations)}

    @functools.cached_property
    def _readers(self) -> Counter[Var]:
        return count_readers(self.placed.equations, self.placed.results)

    def _program(
        self, stage: int, wanted: Sequence[Atom], rounds: Sequence[Sequence[Message]]
    ) -> Program:
        received = {message.var: message for sent in rounds for message in sent}
        given = received.keys() | self.placed.consts.keys() | self._inputs_of(stage)
        choices, here = self.placed.choices, self.equations[stage]
        sliced = backward_slice(here, wanted, received.keys())
        if begun := [c for c in choices if c.is_begun(self._positions(sliced))]:
            known = computable(here, given)
            indices = known.intersection(choice.index for choice in begun)
            sliced = backward_slice(here, [*wanted, *indices], received.keys())
        named = [_rename_known(eqn, received) for eqn in sliced]
        numbered = list(zip(self._positions(sliced), named, strict=True))
        equations = put_branches_back(numbered, choices, wanted, given)
        equations = keep_divisions(equations, wanted, self._readers)
        read = used(equations, wanted)
        invars = self.source.jaxpr.invars
        inputs = [i for i, v in enumerate(invars) if v in read and v not in received]
        messages = [message for var, message in received.items() if var in read]
        consts = {v: c for v, c in self.placed.consts.items() if v in read}
        arguments = [invars[i] for i in inputs] + [m.var for m in messages]
        jaxpr = rebuild(self.source.jaxpr, list(consts), arguments, equations, wanted)
        closed = ClosedJaxpr(jaxpr, list(consts.values()))
        return Program(closed, tuple(inputs), tuple(messages))


def slice_jaxpr(
    closed: ClosedJaxpr,
    input_places: Sequence[Place],
    result_places: Sequence[Place],
    num_stages: int,
    partial: Collection[int] = (),
    hidden: tuple[str, ...] = (),
) -> Slices:
    """Cuts a function into one program a stage and round.

    **Arguments:**

    - `closed`: the function, as `jax.make_jaxpr` traces it.
    - `input_places`: for each input the set of stages that are given it.
    - `result_places`: for each result the set of stages that need it.
    - `num_stages`: how many stages there are.
    - `partial`: the indices of the inputs that are summands, one from each stage that
        needs their sum.
    - `hidden`: the paths of libraries whose lines errors do not name.

    **Raises:** `CrossStageError` if whole tensors of different stages are mixed, or if
    the function has side effects.
    """
    if closed.jaxpr.effects:
        raise CrossStageError(effect_text(closed.jaxpr, hidden))
    placed = place_equations(closed, input_places, num_stages, partial)
    results = list(zip(placed.results, result_places, strict=True))
    num_rounds = max((placed.level_at(*result) for result in results), default=0)
    demand = _Demand(placed, hidden)
    for atom, place in results:
        demand.require(atom, place, num_rounds, None)
    runs_on = {id(eqn): demand.propagate(eqn) for eqn in reversed(placed.equations)}
    equations: list[list[JaxprEqn]] = [[] for _ in range(num_stages)]
    for eqn in placed.equations:
        for stage in runs_on[id(eqn)]:
            equations[stage].append(eqn)
    return Slices(closed, placed, demand.rounds(closed.jaxpr.invars), equations)


@dataclass(frozen=True)
class _Demand:
    """Which values are needed at their own place, which on every stage, and when.

    A deadline is the number of rounds after which a value must be there.
    """

    placed: Placed
    hidden: tuple[str, ...]
    local: dict[Var, int | float] = field(default_factory=dict)
    remote: dict[Var, int | float] = field(default_factory=dict)
    reader: dict[Var, JaxprEqn | None] = field(default_factory=dict)
    sent: set[Var] = field(default_factory=set)

    def require(
        self, atom: Atom, here: Place, deadline: int | float, reader: JaxprEqn | None
    ) -> None:
        if isinstance(atom, Literal):
            return
        value = self.placed.values[atom]
        if value.culprit is not None:
            raise CrossStageError(mixture_text(self.placed, value.culprit, self.hidden))
        if here <= value.place:
            self.local[atom] = min(deadline, self.local.get(atom, math.inf))
        elif value.level_everywhere == math.inf:
            raise CrossStageError(result_text(self.placed, atom, here))
        else:
            self.remote[atom] = min(deadline, self.remote.get(atom, math.inf))
            self.reader[atom] = reader

    def propagate(self, eqn: JaxprEqn) -> Place:
        """Requires the operands of `eqn` where it runs, and says where that is."""
        here, local, everywhere = frozenset(), [], []
        for var in eqn.outvars:
            local += [self.local[var]] if var in self.local else []
            if var in self.remote and self._is_sent(var, eqn):
                self.sent.add(var)
                local.append(self.remote[var] - 1)
            elif var in self.remote:
                everywhere.append(self.remote[var])
        if local:
            here = self.placed.values[eqn.outvars[0]].place
            self._require_all(eqn, here, min(local))
        if everywhere:
            here = self.placed.everywhere
            self._require_all(eqn, here, min(everywhere))
        return here

    def _is_sent(self, var: Var, eqn: JaxprEqn) -> bool:
        """Whether a value travels, and is not computed on every stage."""
        deadline, value = self.remote[var], self.placed.values[var]
        in_time = value.level < min(deadline, value.level_everywhere)
        if not (in_time and self.placed.may_travel(var)):
            return False
        return not all(self._is_there(atom, deadline) for atom in eqn.invars)

    def _is_there(self, atom: Atom, deadline: int | float) -> bool:
        """Whether a value will be on every stage anyway."""
        value = self.placed.value(atom)
        is_remote = isinstance(atom, Var) and atom in self.remote
        known = value.place == self.placed.everywhere or is_remote
        return known and value.level_everywhere <= deadline

    def _require_all(self, eqn: JaxprEqn, here: Place, deadline: int | float) -> None:
        for atom in eqn.invars:
            self.require(atom, here, deadline, eqn)

    def rounds(self, inputs: Sequence[Var]) -> tuple[tuple[Message, ...], ...]:
        self.sent.update(var for var in inputs if var in self.remote)
        messages = [
            Message(var, int(self.remote[var]) - 1, min(value.place), self.reader[var])
            for var, value in self.placed.values.items()
            if var in self.sent
        ]
        num_rounds = max((message.round + 1 for message in messages), default=0)
        return tuple(
            tuple(m for m in messages if m.round == r) for r in range(num_rounds)
        )


def _rename_known(eqn: JaxprEqn, known: Mapping[Var, Any]) -> JaxprEqn:
    """Gives fresh names to those results of an equation that are given already."""
    if known.keys().isdisjoint(eqn.outvars):
        return eqn
    fresh = [Var(var.aval) if var in known else var for var in eqn.outvars]
    return eqn.replace(outvars=fresh)
