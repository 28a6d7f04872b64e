"""Splits a jaxpr, with a stage set for each input and result, into programs.

There is one program per stage and round. Each is a pure function of the inputs of its
stage and of the messages received so far: a value that two rounds use is recomputed, so
that no large intermediate value is kept between rounds.
"""

import functools
from collections.abc import Iterable, Mapping, Sequence, Set as AbstractSet
from dataclasses import dataclass
from typing import Any

from jax.extend.core import ClosedJaxpr, jaxpr_as_fun, JaxprEqn, Var

from .conds import put_branches_back
from .dimensions import Marks
from .errors import CrossStageError, effect_text
from .fidelity import keep_bits, Readers
from .jaxprs import Atom, rebuild, used, variables
from .placed import Placed
from .placing import place_equations
from .planning import Message, plan_messages
from .stage_sets import NOWHERE, StageSet


@dataclass(frozen=True, eq=False)
class Program:
    """A pure function of some inputs of a stage and some received messages.

    **Attributes:**

    - `closed`: the function, of these inputs and then these messages.
    - `inputs`: the indices of the inputs among those of the whole function.
    - `received`: the messages.
    """

    closed: ClosedJaxpr
    inputs: tuple[int, ...]
    received: tuple[Message, ...]

    def __call__(self, inputs: Sequence[Any], received: Sequence[Any]) -> list[Any]:
        return jaxpr_as_fun(self.closed)(*inputs, *received)


@dataclass(frozen=True, eq=False)
class Slices:
    """A function split into programs: rounds of messages, then results per stage.

    **Attributes:**

    - `source`: the whole function.
    - `result_stages`: for each result the stages that require it.
    - `placed`: the stages of each value.
    - `rounds`: the messages of each round.
    """

    source: ClosedJaxpr
    result_stages: Sequence[StageSet]
    placed: Placed
    rounds: tuple[tuple[Message, ...], ...]

    @functools.cached_property
    def _sent(self) -> dict[tuple[int, int], list[Message]]:
        sent: dict[tuple[int, int], list[Message]] = {}
        for message in (message for messages in self.rounds for message in messages):
            sent.setdefault((message.sender, message.round), []).append(message)
        return sent

    def sent(self, stage: int, round: int) -> list[Message]:
        """The messages of a stage in a round, in the order in which they are packed."""
        return self._sent.get((stage, round), [])

    @functools.cached_property
    def position(self) -> dict[Message, int]:
        """The position of each message among those that are packed with it."""
        return {m: k for sent in self._sent.values() for k, m in enumerate(sent)}

    def message_program(self, stage: int, round: int) -> Program:
        """The program that computes `sent(stage, round)`."""
        wanted = [message.var for message in self.sent(stage, round)]
        return self._program(stage, wanted, self.rounds[:round])

    def result_program(self, stage: int, results: Sequence[int]) -> Program:
        """The program that computes these results on a stage, after all rounds."""
        wanted = [self.placed.results[i] for i in results]
        return self._program(stage, wanted, self.rounds)

    def program_of_inputs(
        self, wanted: Sequence[Atom], inputs: Sequence[int] | None = None
    ) -> Program:
        """The program that computes values if no message has arrived.

        **Arguments:**

        - `inputs`: the inputs that it has; those that it reads, if omitted.
        """
        equations = [self.placed.equations[i] for i in self._slice(wanted, frozenset())]
        return self._close(equations, wanted, {}, inputs)

    @functools.cached_property
    def producers(self) -> dict[Var, int]:
        """For each value the position of its equation."""
        equations = enumerate(self.placed.equations)
        return {var: i for i, eqn in equations for var in eqn.outvars}

    @functools.cached_property
    def _readers(self) -> Readers:
        runs_on: dict[int, set[int]] = {}
        received = {message.var for sent in self.rounds for message in sent}
        for stage in sorted(NOWHERE.union(*self.result_stages)):
            stage_sets = zip(self.placed.results, self.result_stages, strict=True)
            wanted = [result for result, stages in stage_sets if stage in stages]
            for number in self._slice(wanted, received):
                runs_on.setdefault(number, set()).add(stage)
        return Readers.on_stages(
            self.placed.equations,
            self.placed.results,
            lambda var: frozenset(runs_on.get(self.producers.get(var, -1), ())),
        )

    def _slice(self, wanted: Iterable[Atom], known: AbstractSet[Var]) -> list[int]:
        """The positions of the equations that compute `wanted` from inputs and `known`.

        Walks back from `wanted`, and stops at values that are known.
        """
        needed = [var for var in variables(wanted) if var not in known]
        numbers: set[int] = set()
        while needed:
            number = self.producers.get(needed.pop())
            if number is not None and number not in numbers:
                numbers.add(number)
                operands = variables(self.placed.equations[number].invars)
                needed += [var for var in operands if var not in known]
        return sorted(numbers)

    def _is_computable(self, var: Var, stage: int, received: AbstractSet[Var]) -> bool:
        """Whether a stage can compute a value from its inputs and `received`."""
        equations = [self.placed.equations[i] for i in self._slice([var], received)]
        made = {made for eqn in equations for made in eqn.outvars}
        given = used(equations, [var]) - made - received
        return all(stage in self.placed.values[leaf].home for leaf in given)

    def _program(
        self, stage: int, wanted: Sequence[Atom], rounds: Sequence[Sequence[Message]]
    ) -> Program:
        received = {message.var: message for sent in rounds for message in sent}
        # A cond can be put back only if its index is known here, so indices of conds
        # with equations in this slice are computed too, wherever the stage can.
        numbers = self._slice(wanted, received.keys())
        begun = [c.index for c in self.placed.choices if c.is_begun(numbers)]
        indices = [
            index
            for index in dict.fromkeys(begun)
            if self._is_computable(index, stage, received.keys())
        ]
        numbers = self._slice([*wanted, *indices], received.keys())
        equations = put_branches_back(
            [(i, _rename_known(self.placed.equations[i], received)) for i in numbers],
            self.placed.choices,
            wanted,
            frozenset(indices),
        )
        equations = keep_bits(equations, wanted, self._readers, stage)
        return self._close(equations, wanted, received)

    def _close(
        self,
        equations: Sequence[JaxprEqn],
        wanted: Sequence[Atom],
        received: Mapping[Var, Message],
        inputs: Sequence[int] | None = None,
    ) -> Program:
        """The equations as a function of the inputs and messages that they read."""
        read = used(equations, wanted)
        invars = self.source.jaxpr.invars
        if inputs is None:
            pairs = enumerate(invars)
            inputs = [i for i, v in pairs if v in read and v not in received]
        messages = [message for var, message in received.items() if var in read]
        consts = {v: c for v, c in self.placed.consts.items() if v in read}
        arguments = [invars[i] for i in inputs] + [m.var for m in messages]
        jaxpr = rebuild(self.source.jaxpr, list(consts), arguments, equations, wanted)
        closed = ClosedJaxpr(jaxpr, list(consts.values()))
        return Program(closed, tuple(inputs), tuple(messages))


def slice_jaxpr(
    closed: ClosedJaxpr,
    input_stages: Sequence[StageSet],
    result_stages: Sequence[StageSet],
    num_stages: int,
    *,
    marks: Sequence[Marks] | None = None,
    travel_limit: int = 0,
    hidden: tuple[str, ...] = (),
) -> Slices:
    """Splits a function into one program per stage and round.

    **Arguments:**

    - `closed`: the function, as `jax.make_jaxpr` traces it.
    - `input_stages`: for each input the set of stages that hold it.
    - `result_stages`: for each result the set of stages that require it.
    - `num_stages`: the number of stages.
    - `marks`: for each input which of its dimensions are dimensions of a parameter. If
        omitted, all of them are.
    - `travel_limit`: values of at most this many bytes travel whatever their
        dimensions.
    - `hidden`: paths of libraries; errors name the innermost line outside them.

    **Raises:** `CrossStageError` if a stage requires a value with a dimension of a
    parameter that it cannot compute, or if the function has side effects.
    """
    if closed.jaxpr.effects:
        raise CrossStageError(effect_text(closed.jaxpr, hidden))
    placed = place_equations(
        closed,
        input_stages,
        num_stages,
        marks=marks,
        travel_limit=travel_limit,
    )
    wanted = list(zip(placed.results, result_stages, strict=True))
    messages = plan_messages(placed, wanted, hidden)
    num_rounds = max((message.round + 1 for message in messages), default=0)
    rounds = tuple(
        tuple(message for message in messages if message.round == number)
        for number in range(num_rounds)
    )
    return Slices(closed, result_stages, placed, rounds)


def _rename_known(eqn: JaxprEqn, known: Mapping[Var, Any]) -> JaxprEqn:
    """Renames the results of an equation that the program receives anyway.

    An equation with several results may be kept for one of them while another arrives
    as a message: each variable must be defined once.
    """
    if known.keys().isdisjoint(eqn.outvars):
        return eqn
    fresh = [Var(var.aval) if var in known else var for var in eqn.outvars]
    return eqn.replace(outvars=fresh)
