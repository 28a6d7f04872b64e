"""A function of trees that are cut over stages, as one program a stage and round."""

from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr
from jaxtyping import Array, UInt32

from .canonical import Canonical
from .jaxprs import shape_of
from .packing import Packing
from .slicing import Program, slice_jaxpr, Slices
from .trees import Cut


Leaves = Sequence[Any]
# For each round so far, for each stage the vector that it sent, or None if it had
# nothing to say.
Gathered = Sequence[Sequence[Any]]


@dataclass(frozen=True, eq=False)
class Body:
    """A program as a function of its inputs and of packed vectors of messages.

    **Attributes:**

    - `program`: the program itself.
    - `packings`: how each of the vectors is packed.
    - `received`: for each message that the program reads, the vector and the position
        in it.
    """

    program: Program
    packings: tuple[Packing, ...]
    received: tuple[tuple[int, int], ...]

    def __call__(
        self, leaves: Leaves, vectors: Sequence[UInt32[Array, " _"]]
    ) -> list[Any]:
        for number, text in self.misfits(leaves):
            raise ValueError(f"Input {number} {text}.")
        values = [p.unpack(v) for p, v in zip(self.packings, vectors, strict=True)]
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
        return number, self.packings, self.received


@dataclass(frozen=True, eq=False)
class StageFunction:
    """A body, and where a stage's inputs and the vectors for it are found.

    **Attributes:**

    - `body`: what is computed.
    - `leaves`: for each input of it, the argument and the position among the stage's
        leaves of it.
    - `labels`: how errors call each input.
    - `vectors`: the round and the sender of each vector that it reads.
    """

    body: Body
    leaves: tuple[tuple[str, int], ...]
    labels: tuple[str, ...]
    vectors: tuple[tuple[int, int], ...]

    def read(self, arguments: Mapping[str, Leaves]) -> list[Any]:
        return [arguments[name][position] for name, position in self.leaves]

    def receive(self, gathered: Gathered) -> list[Any]:
        return [gathered[round][sender] for round, sender in self.vectors]

    def check(self, arguments: Mapping[str, Leaves]) -> None:
        """Refuses leaves of another shape or dtype, by their names."""
        for number, text in self.body.misfits(self.read(arguments)):
            raise ValueError(f"{self.labels[number]} {text}.")


@dataclass(frozen=True, eq=False)
class StagedFunction:
    """The programs of a function whose arguments and results are cut over stages.

    `arguments` and `results` have the names, for errors, and the order of the
    function's flat inputs and results. `purpose` says why anything travels, where that
    is not for a line of the function to say.
    """

    slices: Slices
    arguments: dict[str, Cut]
    results: dict[str, Cut]
    purpose: str | None = None

    @classmethod
    def of(
        cls,
        closed: ClosedJaxpr,
        arguments: dict[str, Cut],
        results: dict[str, Cut],
        partial: Collection[int] = (),
        purpose: str | None = None,
    ) -> "StagedFunction":
        input_places = [place for cut in arguments.values() for place in cut.places]
        result_places = [place for cut in results.values() for place in cut.places]
        num_stages = next(iter(arguments.values())).num_stages
        slices = slice_jaxpr(closed, input_places, result_places, num_stages, partial)
        return cls(slices, arguments, results, purpose)

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

    def packing(self, stage: int, round: int) -> Packing:
        """How the vector is packed that the stage sends in the round."""
        sent = self.slices.sent(stage, round)
        return Packing(tuple(shape_of(message.var) for message in sent))

    def message(self, stage: int, round: int) -> StageFunction:
        """Computes what the stage sends in the round, before it is packed."""
        return self._of_stage(stage, self.slices.message_program(stage, round))

    def finish(self, stage: int, names: Sequence[str]) -> StageFunction:
        """Computes the stage's leaves of the named results, in this order."""
        first = _offsets(self.results)
        held = {name: cut.held[stage] for name, cut in self.results.items()}
        indices = [first[name] + i for name in names for i in held[name]]
        return self._of_stage(stage, self.slices.result_program(stage, indices))

    def _of_stage(self, stage: int, program: Program) -> StageFunction:
        first = _offsets(self.arguments)
        place = {
            first[name] + i: (name, position)
            for name, cut in self.arguments.items()
            for position, i in enumerate(cut.held[stage])
        }
        leaves = tuple(place[i] for i in program.inputs)
        vectors = tuple(dict.fromkeys((m.round, m.sender) for m in program.received))
        senders = {vector: k for k, vector in enumerate(vectors)}
        packings = tuple(self.packing(sender, round) for round, sender in vectors)
        received = tuple(
            (senders[message.round, message.sender], self.slices.position[message])
            for message in program.received
        )
        labels = tuple(
            f"`{self._path(name, stage, position)}` of `{name}[{stage}]`"
            for name, position in leaves
        )
        body = Body(program, packings, received)
        return StageFunction(body, leaves, labels, vectors)

    def _path(self, name: str, stage: int, position: int) -> str:
        cut = self.arguments[name]
        return cut.paths[cut.held[stage][position]]


def _offsets(cuts: Mapping[str, Cut]) -> dict[str, int]:
    """The index of each tree's first leaf, when the trees' leaves are in one list."""
    offsets, total = {}, 0
    for name, cut in cuts.items():
        offsets[name] = total
        total += len(cut.paths)
    return offsets
