"""Runs the programs of a function: each is traced and compiled once."""

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Sharding
from jaxtyping import Array

from .exchange import gather
from .functions import Gathered, Leaves, StagedFunction, StageFunction


class Runnable(NamedTuple):
    """A stage's function, as Python and compiled."""

    function: StageFunction
    run: Callable[..., Any]
    compiled: Callable[..., Any]


@dataclass(frozen=True, eq=False)
class StageRunner:
    """The programs of one stage of a function: a message a round, then the results.

    Leaves named in `donated` lend their memory to the results.
    """

    function: StagedFunction
    stage: int
    donated: frozenset[str] = frozenset()

    @functools.cached_property
    def messages(self) -> tuple[Runnable | None, ...]:
        """For each round what the stage computes; None if it has nothing to say."""
        return tuple(map(self._message, range(self.function.num_rounds)))

    def _message(self, round: int) -> Runnable | None:
        if not self.function.slices.sent(self.stage, round):
            return None
        function = self.function.message(self.stage, round)
        pack = self.function.packing(self.stage, round).pack

        def run(leaves: Leaves, vectors: Sequence[Array]) -> Array:
            return pack(function(leaves, vectors))

        return Runnable(function, run, jax.jit(run))

    @functools.cached_property
    def results(self) -> Callable[[tuple[str, ...]], Runnable]:
        """What computes the named results: a list of leaves for each name."""
        return functools.cache(self._results)

    def _results(self, names: tuple[str, ...]) -> Runnable:
        function = self.function.finish(self.stage, names)
        sizes = [len(self.function.results[name].held[self.stage]) for name in names]

        # JAX pairs donated buffers with results of their shape in the order of both:
        # a dict is in the order of its keys, so "params" come before "state" here too.
        def run(
            donated: Mapping[str, Leaves],
            kept: Mapping[str, Leaves],
            vectors: Sequence[Array],
        ) -> tuple[list[Any], ...]:
            values = iter(function(function.read({**donated, **kept}), vectors))
            return tuple([next(values) for _ in range(size)] for size in sizes)

        # An argument that nothing reads still says on which device the results are.
        compiled = jax.jit(
            run, donate_argnums=0 if self.donated else (), keep_unused=True
        )
        return Runnable(function, run, compiled)

    def say(
        self, round: int, arguments: Mapping[str, Leaves], gathered: Gathered
    ) -> Array | None:
        """What the stage sends in a round, computed on its devices."""
        runnable = self.messages[round]
        if runnable is None:
            return None
        function = runnable.function
        return runnable.compiled(function.read(arguments), function.receive(gathered))

    def tell(
        self, round: int, arguments: Mapping[str, Leaves], gathered: Gathered
    ) -> Array:
        """What the stage sends in a round, as a pure function."""
        runnable = self.messages[round]
        if runnable is None:
            return jnp.zeros((0,), jnp.uint32)
        function = runnable.function
        return runnable.run(function.read(arguments), function.receive(gathered))

    def compute(
        self,
        names: tuple[str, ...],
        arguments: Mapping[str, Leaves],
        gathered: Gathered,
    ) -> tuple[list[Any], ...]:
        """The named results, as a pure function."""
        runnable = self.results(names)
        return runnable.run({}, arguments, runnable.function.receive(gathered))

    def finish(
        self,
        names: tuple[str, ...],
        arguments: Mapping[str, Leaves],
        gathered: Gathered,
    ) -> tuple[list[Any], ...]:
        """The named results, computed on the stage's devices."""
        runnable = self.results(names)
        donated = {k: v for k, v in arguments.items() if k in self.donated}
        kept = {k: v for k, v in arguments.items() if k not in self.donated}
        vectors = runnable.function.receive(gathered)
        return runnable.compiled(donated, kept, vectors)


@dataclass(frozen=True, eq=False)
class Runners:
    """A function's stages, run together in one process."""

    stages: tuple[StageRunner, ...]

    @classmethod
    def of(cls, function: StagedFunction, donated: Collection[str] = ()) -> "Runners":
        stages = range(function.num_stages)
        return cls(tuple(StageRunner(function, s, frozenset(donated)) for s in stages))

    @property
    def function(self) -> StagedFunction:
        return self.stages[0].function

    def run(
        self,
        names: tuple[str, ...],
        arguments: Sequence[Mapping[str, Leaves]],
        placements: Sequence[Sharding | None],
    ) -> list[tuple[list[Any], ...]]:
        """All rounds, and then for each stage the named results.

        **Arguments:**

        - `names`: of the results.
        - `arguments`: for each stage its leaves of each argument.
        - `placements`: for each stage where it wants what it receives.
        """
        gathered: list[list[Any]] = [[] for _ in self.stages]
        rows = list(zip(self.stages, arguments, gathered, strict=True))
        for round in range(self.function.num_rounds):
            messages = [
                runner.say(round, given, heard) for runner, given, heard in rows
            ]
            received = gather(messages, placements, self._readers(names)[round])
            for heard, vectors in zip(gathered, received, strict=True):
                heard.append(vectors)
        return [runner.finish(names, given, heard) for runner, given, heard in rows]

    @functools.cached_property
    def _readers(self) -> Callable[[tuple[str, ...]], list[list[set[int]]]]:
        """For each round and sender, the stages that read what it says."""
        return functools.cache(self._find_readers)

    def _find_readers(self, names: tuple[str, ...]) -> list[list[set[int]]]:
        rounds = range(self.function.num_rounds)
        readers: list[list[set[int]]] = [[set() for _ in self.stages] for _ in rounds]
        for runner in self.stages:
            said = [runnable for runnable in runner.messages if runnable is not None]
            for runnable in [*said, runner.results(names)]:
                for round, sender in runnable.function.vectors:
                    readers[round][sender].add(runner.stage)
        return readers
