"""Splits a function of pytrees over stages: one slice per stage and round."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import optax
from jax.extend.core import ClosedJaxpr
from jaxtyping import Array

from ..._slicing.canonical import Canonical
from ..._slicing.dimensions import Marks
from ..._slicing.idle import idle_rounds
from ..._slicing.jaxprs import shape_of
from ..._slicing.slicing import Program, slice_jaxpr
from ..trees import TreeSplit
from .packing import Packing
from .slices import Inbox, Leaves, misfit_text, StageSlice


# Errors do not name lines of these files, which say nothing about a transformation.
HIDDEN = (os.path.join(os.path.dirname(optax.__file__), "tree_utils"),)

# For each round so far, the vector that each stage sent.
Gathered = Sequence[Any]
# Leaves of arguments, by name and index. A result is sharded like the first of them
# that its stage holds.
Likes = Sequence[tuple[str, int]]


@dataclass(frozen=True, eq=False)
class Round:
    """A round of messages.

    **Attributes:**

    - `slices`: for each stage the slice that computes its message; None if it sends
        nothing.
    - `senders`: the stages that send a message.
    - `num_words`: the length of every message, in 32-bit words.
    """

    slices: tuple[StageSlice | None, ...]
    senders: tuple[int, ...]
    num_words: int

    def nothing(self) -> Array:
        """The message of a stage that sends nothing."""
        return jnp.zeros((self.num_words,), jnp.uint32)


class SplitFunction:
    """A function with arguments and results that are split over stages, as slices.

    The *flat inputs* are the leaves of all arguments in one list. The *leaves of a
    stage* are those flat inputs that it holds, in the same order. With parameter `a`
    and its gradient on stage 0, `b` on stage 1 and a replicated counter `n`:

        arguments            params: a, b     state: n     grads: a, b
        flat inputs          0  1             2            3  4
        held by stage 0      0                2            3
        held by stage 1         1             2               4

    **Attributes:**

    - `arguments`, `results`: how each is split, by name, in the order of the flat
        inputs and results.
    - `slices`: the function, split by stage and round.
    - `held`: for each stage the flat inputs that it holds.
    - `rounds`: the messages of each round.
    - `finish`: for each tuple of names in `wanted`, the slices of all stages that
        compute the results of these names.
    - `idle`: predicts the rounds that a step can skip; None if it requires all.
    """

    def __init__(
        self,
        closed: ClosedJaxpr,
        arguments: dict[str, TreeSplit],
        results: dict[str, TreeSplit],
        likes: Mapping[str, Sequence[Likes]],
        wanted: Sequence[tuple[str, ...]],
        canonical: Canonical,
        *,
        marks: Sequence[Marks],
        travel_limit: int,
    ) -> None:
        self.arguments, self.results = arguments, results
        self.num_stages = next(iter(arguments.values())).num_stages
        inputs = [stages for split in arguments.values() for stages in split.stage_sets]
        outputs = [stages for split in results.values() for stages in split.stage_sets]
        self.slices = slice_jaxpr(
            closed,
            input_stages=inputs,
            result_stages=outputs,
            num_stages=self.num_stages,
            marks=marks,
            travel_limit=travel_limit,
            hidden=HIDDEN,
        )
        stages = range(self.num_stages)
        self.held = tuple(
            tuple(i for i, holders in enumerate(inputs) if stage in holders)
            for stage in stages
        )
        self._position = [{i: k for k, i in enumerate(held)} for held in self.held]
        self._first = _offsets(arguments)
        self._likes, self._canonical = likes, canonical
        self.rounds: list[Round] = []
        for number in range(len(self.slices.rounds)):
            self.rounds.append(self._round(number))
        self.finish = {
            names: tuple(self._results(stage, names) for stage in stages)
            for names in wanted
        }
        self.idle = idle_rounds(self.slices, self._next_of())

    def _next_of(self) -> dict[int, int]:
        """For each input that is a leaf of the state the result that follows it."""
        if "state" not in self.arguments or "state" not in self.results:
            return {}
        before, after = self._first["state"], _offsets(self.results)["state"]
        count = len(self.results["state"].paths)
        return {before + i: after + i for i in range(count)}

    @property
    def avals(self) -> Sequence[Any]:
        """The shapes and dtypes of the flat inputs."""
        return self.slices.source.in_avals

    def avals_of(self, name: str, stage: int) -> list[Any]:
        """The shapes and dtypes of a stage's leaves of an argument."""
        first = self._first[name]
        return [self.avals[first + i] for i in self.arguments[name].held[stage]]

    def label(self, stage: int, position: int) -> str:
        """The name of a leaf of a stage in errors."""
        paths = [
            (p, name) for name, split in self.arguments.items() for p in split.paths
        ]
        path, name = paths[self.held[stage][position]]
        return f"`{path}` of `{name}[{stage}]`"

    def check(self, stage: int, leaves: Leaves) -> None:
        """Raises an error that names the first leaf of another shape or dtype."""
        for position, (leaf, i) in enumerate(
            zip(leaves, self.held[stage], strict=True)
        ):
            text = leaf is not None and misfit_text(leaf, self.avals[i])
            if text:
                raise ValueError(f"{self.label(stage, position)} {text}.")

    def positions(self, stage: int, *names: str) -> range:
        """The positions of consecutive arguments among the leaves of a stage."""
        first = self._first[names[0]] if names else 0
        start = sum(i < first for i in self.held[stage])
        count = sum(len(self.arguments[name].held[stage]) for name in names)
        return range(start, start + count)

    def bytes_sent(self, stage: int) -> int:
        """The bytes of all messages of a stage."""
        slices = (round.slices[stage] for round in self.rounds)
        return sum(s.packing.nbytes for s in slices if s is not None and s.packing)

    def inboxes(self, gathered: Gathered) -> list[Inbox]:
        """The vectors of the senders of each round."""
        rounds = zip(gathered, self.rounds, strict=False)
        return [[vectors[s] for s in round.senders] for vectors, round in rounds]

    def _round(self, number: int) -> Round:
        senders = tuple(sorted({m.sender for m in self.slices.rounds[number]}))
        num_words = max(self._packing(stage, number).num_words for stage in senders)
        slices: list[StageSlice | None] = [None] * self.num_stages
        for stage in senders:
            program = self.slices.message_program(stage, number)
            position = self._position[stage]
            slices[stage] = self._slice(
                stage,
                program,
                reads=tuple(position[i] for i in program.inputs),
                inputs=tuple(range(len(program.inputs))),
                packing=self._packing(stage, number),
                num_words=num_words,
            )
        return Round(tuple(slices), senders, num_words)

    def _results(self, stage: int, names: Sequence[str]) -> StageSlice | None:
        first = _offsets(self.results)
        held = [(name, i) for name in names for i in self.results[name].held[stage]]
        if not held:
            return None
        indices = [first[name] + i for name, i in held]
        program = self.slices.result_program(stage, indices)
        inputs = tuple(self._position[stage][i] for i in program.inputs)
        likes = tuple(self._like(stage, self._likes[name][i]) for name, i in held)
        return self._slice(stage, program, inputs=inputs, likes=likes)

    def _like(self, stage: int, likes: Likes) -> int | None:
        position = self._position[stage]
        found = (position.get(self._first[name] + i) for name, i in likes)
        return next((p for p in found if p is not None), None)

    def _slice(
        self,
        stage: int,
        program: Program,
        *,
        inputs: tuple[int, ...],
        reads: tuple[int, ...] | None = None,
        packing: Packing | None = None,
        num_words: int = 0,
        likes: tuple[int | None, ...] = (),
    ) -> StageSlice:
        """A program as a `StageSlice`.

        Its rounds, and the vectors of each, are numbered in the order in which it reads
        them: slices of different stages that compute the same then have equal keys.
        """
        rounds = list(dict.fromkeys(m.round for m in program.received))
        read = list(dict.fromkeys((m.round, m.sender) for m in program.received))
        vectors = tuple(
            (rounds.index(round), self.rounds[round].senders.index(sender))
            for round, sender in read
        )
        packings = tuple(self._packing(sender, round) for round, sender in read)
        received = tuple(
            (read.index((m.round, m.sender)), self.slices.position[m])
            for m in program.received
        )
        number = self._canonical.closed_jaxpr(program.closed)
        how = inputs, vectors, packings, received, packing, num_words
        return StageSlice(
            stage,
            program,
            reads,
            inputs,
            tuple(rounds),
            *how[1:],
            likes,
            (number, *how),
        )

    def _packing(self, stage: int, round: int) -> Packing:
        return Packing(tuple(shape_of(m.var) for m in self.slices.sent(stage, round)))


def _offsets(splits: Mapping[str, TreeSplit]) -> dict[str, int]:
    """The index of the first leaf of each tree, with all leaves in one list."""
    offsets, total = {}, 0
    for name, split in splits.items():
        offsets[name] = total
        total += len(split.paths)
    return offsets
