"""A function of trees that are cut over stages, as one program a stage and round."""

import functools
import os
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import optax
from jax.extend.core import ClosedJaxpr

from ..._slicing.canonical import Canonical
from ..._slicing.dimensions import Marks
from ..._slicing.jaxprs import shape_of
from ..._slicing.slicing import Message, Program, slice_jaxpr, Slices
from ..run.packing import Packing
from ..trees import Cut


# No line of these says what a transformation does.
HIDDEN = (os.path.join(os.path.dirname(optax.__file__), "tree_utils"),)

Leaves = Sequence[Any]
# For each round so far, for each stage the vector that it sent.
Gathered = Sequence[Any]
# The vectors of one round, of those stages alone that send something in it: a list of
# them, or a matrix with a row for each.
Table = Any
# Leaves of arguments, by name and index, that some leaf is to be sharded like: of those
# that its stage has, the first.
Likes = Sequence[tuple[str, int]]


@dataclass(frozen=True, eq=False)
class Body:
    """A program as a function of its inputs and of tables of packed messages.

    **Attributes:**

    - `program`: the program itself.
    - `vectors`: for each vector that it reads, the table and the row in it.
    - `packings`: how each of these is packed.
    - `received`: for each message that the program reads, the vector and the position
        in it.
    """

    program: Program
    vectors: tuple[tuple[int, int], ...]
    packings: tuple[Packing, ...]
    received: tuple[tuple[int, int], ...]

    def __call__(self, leaves: Leaves, tables: Sequence[Table]) -> list[Any]:
        for number, text in self.misfits(leaves):
            raise ValueError(f"Input {number} {text}.")
        values = [
            packing.unpack(tables[table][row])
            for packing, (table, row) in zip(self.packings, self.vectors, strict=True)
        ]
        return self.program(leaves, [values[v][k] for v, k in self.received])

    def misfits(self, leaves: Leaves) -> Iterator[tuple[int, str]]:
        """Which inputs are of another shape or dtype, and what is wrong with them."""
        avals = self.program.closed.in_avals
        for number, (leaf, expected) in enumerate(zip(leaves, avals, strict=False)):
            found = jax.typeof(leaf)
            if (found.shape, found.dtype) != (expected.shape, expected.dtype):
                yield (
                    number,
                    f"must be {expected.str_short()}, as when `stage_local` was "
                    f"called, got {found.str_short()}",
                )

    def key(self, canonical: Canonical) -> Hashable:
        """The same for bodies that compute the same."""
        number = canonical.closed_jaxpr(self.program.closed)
        return number, self.vectors, self.packings, self.received


@dataclass(frozen=True, eq=False)
class StageFunction:
    """A body, and where a stage's inputs and the tables for it are found.

    **Attributes:**

    - `body`: what is computed.
    - `leaves`: for each input of it, the argument and the position among the stage's
        leaves of it.
    - `rounds`: the round of each table that it reads.
    """

    body: Body
    leaves: tuple[tuple[str, int], ...]
    rounds: tuple[int, ...]

    def read(self, arguments: Mapping[str, Leaves]) -> list[Any]:
        return [arguments[name][position] for name, position in self.leaves]

    def receive(self, tables: Sequence[Table]) -> list[Table]:
        return [tables[round] for round in self.rounds]


@dataclass(frozen=True, eq=False)
class StagedFunction:
    """The programs of a function whose arguments and results are cut over stages.

    `arguments` and `results` have the names, for errors, and the order of the
    function's flat inputs and results. `likes` has an entry for each leaf of each
    result. `purpose` says why anything travels, where that is not for a line of the
    function to say.
    """

    slices: Slices
    arguments: dict[str, Cut]
    results: dict[str, Cut]
    likes: dict[str, Sequence[Likes]]
    purpose: str | None = None

    @classmethod
    def of(
        cls,
        closed: ClosedJaxpr,
        arguments: dict[str, Cut],
        results: dict[str, Cut],
        likes: dict[str, Sequence[Likes]],
        *,
        marks: Sequence[Marks],
        summands: Collection[int] = (),
        travel_limit: int = 0,
        purpose: str | None = None,
    ) -> "StagedFunction":
        slices = slice_jaxpr(
            closed,
            input_places=[place for cut in arguments.values() for place in cut.places],
            result_places=[place for cut in results.values() for place in cut.places],
            num_stages=next(iter(arguments.values())).num_stages,
            marks=marks,
            summands=summands,
            travel_limit=travel_limit,
            hidden=HIDDEN,
        )
        return cls(slices, arguments, results, likes, purpose)

    @property
    def num_stages(self) -> int:
        return next(iter(self.arguments.values())).num_stages

    @property
    def num_rounds(self) -> int:
        return len(self.slices.rounds)

    def avals(self, name: str, stage: int) -> list[Any]:
        """The shapes and dtypes of the stage's leaves of an argument."""
        first = _offsets(self.arguments)[name]
        avals = self.slices.source.in_avals[first:]
        return [avals[i] for i in self.arguments[name].held[stage]]

    def label(self, name: str, stage: int, position: int) -> str:
        """How errors call a stage's leaf of an argument."""
        cut = self.arguments[name]
        return f"`{cut.paths[cut.held[stage][position]]}` of `{name}[{stage}]`"

    @functools.cached_property
    def senders(self) -> tuple[tuple[int, ...], ...]:
        """For each round the stages that send something in it."""
        return tuple(
            tuple(sorted({message.sender for message in messages}))
            for messages in self.slices.rounds
        )

    @functools.cached_property
    def readers(self) -> tuple[frozenset[int], ...]:
        """For each round the stages that read something of it from another."""
        return self.slices.readers

    def packing(self, stage: int, round: int) -> Packing:
        """How the vector is packed that the stage sends in the round."""
        return self._packings[stage, round]

    @functools.cached_property
    def _packings(self) -> dict[tuple[int, int], Packing]:
        return {
            (stage, round): Packing(
                tuple(shape_of(m.var) for m in self.slices.sent(stage, round))
            )
            for round in range(self.num_rounds)
            for stage in range(self.num_stages)
        }

    @functools.cached_property
    def num_words(self) -> tuple[int, ...]:
        """For each round the length of all vectors that are sent in it."""
        return tuple(
            max(self.packing(stage, round).num_words for stage in senders)
            for round, senders in enumerate(self.senders)
        )

    def tables(self, gathered: Gathered) -> list[Table]:
        """Of each round only what is not empty."""
        rounds = zip(gathered, self.senders, strict=False)
        return [[vectors[sender] for sender in senders] for vectors, senders in rounds]

    def message(self, stage: int, round: int) -> StageFunction:
        """Computes what the stage sends in the round, before it is packed."""
        return self._of_stage(stage, self.slices.message_program(stage, round))

    def finish(self, stage: int, names: Sequence[str]) -> StageFunction:
        """Computes the stage's leaves of the named results, in this order."""
        first = _offsets(self.results)
        held = {name: cut.held[stage] for name, cut in self.results.items()}
        indices = [first[name] + i for name in names for i in held[name]]
        return self._of_stage(stage, self.slices.result_program(stage, indices))

    def likes_of(self, stage: int, name: str) -> list[tuple[str, int] | None]:
        """For each of the stage's leaves of a result the leaf that it is like."""
        position = {
            (argument, i): (argument, k)
            for argument, cut in self.arguments.items()
            for k, i in enumerate(cut.held[stage])
        }
        return [
            next((position[x] for x in self.likes[name][i] if x in position), None)
            for i in self.results[name].held[stage]
        ]

    def _of_stage(self, stage: int, program: Program) -> StageFunction:
        first = _offsets(self.arguments)
        place = {
            first[name] + i: (name, position)
            for name, cut in self.arguments.items()
            for position, i in enumerate(cut.held[stage])
        }
        leaves = tuple(place[i] for i in program.inputs)
        reading = _Reading()
        received = tuple(map(reading.find, program.received))
        vectors = tuple(
            (reading.rounds[round], self.senders[round].index(sender))
            for round, sender in reading.vectors
        )
        packings = tuple(self.packing(s, round) for round, s in reading.vectors)
        positions = tuple(self.slices.position[m] for m in program.received)
        body = Body(
            program, vectors, packings, tuple(zip(received, positions, strict=True))
        )
        return StageFunction(body, leaves, tuple(reading.rounds))


@dataclass(frozen=True)
class _Reading:
    """Numbers the rounds, and the vectors in them, in the order of their first use."""

    rounds: dict[int, int] = field(default_factory=dict)
    vectors: dict[tuple[int, int], int] = field(default_factory=dict)

    def find(self, message: Message) -> int:
        self.rounds.setdefault(message.round, len(self.rounds))
        vector = message.round, message.sender
        return self.vectors.setdefault(vector, len(self.vectors))


def _offsets(cuts: Mapping[str, Cut]) -> dict[str, int]:
    """The index of each tree's first leaf, when the trees' leaves are in one list."""
    offsets, total = {}, 0
    for name, cut in cuts.items():
        offsets[name] = total
        total += len(cut.paths)
    return offsets
