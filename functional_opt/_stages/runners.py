"""Runs the programs of a function: each is traced and compiled once."""

import functools
import os
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Sharding
from jaxtyping import Array

from .canonical import Canonical
from .exchange import gather
from .functions import Gathered, Leaves, StagedFunction, StageFunction


class Runnable(NamedTuple):
    """A stage's function, as Python and compiled."""

    function: StageFunction
    run: Callable[..., Any]
    compiled: jax.stages.Wrapped


class Call(NamedTuple):
    """A program to be run, and what it is given: by name, and as it takes it."""

    runnable: Runnable
    arguments: Mapping[str, Leaves]
    operands: tuple[Any, ...]

    def run(self) -> Any:
        return self._try(self.runnable.compiled)

    def lower(self) -> Any:
        return self._try(self.runnable.compiled.lower)

    def _try(self, function: Callable[..., Any]) -> Any:
        """If the program refuses its operands, says which argument is wrong."""
        try:
            return function(*self.operands)
        except ValueError:
            self.runnable.function.check(self.arguments)
            raise


class Programs:
    """What is compiled, by what it computes: stages of equal structure share it."""

    def __init__(self) -> None:
        self.canonical = Canonical()
        self._compiled: dict[Hashable, jax.stages.Wrapped] = {}

    def jit(
        self, key: Hashable, run: Callable[..., Any], **options: Any
    ) -> jax.stages.Wrapped:
        """`jax.jit` of the first `run` with this key."""
        if key not in self._compiled:
            self._compiled[key] = jax.jit(run, **options)
        return self._compiled[key]


@dataclass(frozen=True, eq=False)
class StageRunner:
    """The programs of one stage of a function: a message a round, then the results.

    Leaves named in `donated` lend their memory to the results.
    """

    function: StagedFunction
    stage: int
    programs: Programs
    donated: frozenset[str] = frozenset()

    @functools.cached_property
    def messages(self) -> tuple[Runnable | None, ...]:
        """For each round what the stage computes; None if it has nothing to say."""
        return tuple(map(self._message, range(self.function.num_rounds)))

    def _message(self, round: int) -> Runnable | None:
        if not self.function.slices.sent(self.stage, round):
            return None
        function = self.function.message(self.stage, round)
        body, packing = function.body, self.function.packing(self.stage, round)

        def run(leaves: Leaves, vectors: Sequence[Array]) -> Array:
            return packing.pack(body(leaves, vectors))

        key = packing, body.key(self.programs.canonical)
        return Runnable(function, run, self.programs.jit(key, run))

    @functools.cached_property
    def results(self) -> Callable[[tuple[str, ...]], Runnable]:
        """What computes the named results: a list of leaves for each name."""
        return functools.cache(self._results)

    def _results(self, names: tuple[str, ...]) -> Runnable:
        function = self.function.finish(self.stage, names)
        body, leaves = function.body, function.leaves
        held = [self.function.results[name].held[self.stage] for name in names]
        sizes = tuple(map(len, held))

        # JAX pairs donated buffers with results of their shape in the order of both:
        # a dict is in the order of its keys, so "params" come before "state" here too.
        def run(
            donated: Mapping[str, Leaves],
            kept: Mapping[str, Leaves],
            vectors: Sequence[Array],
        ) -> tuple[list[Any], ...]:
            given = {**donated, **kept}
            inputs = [given[name][position] for name, position in leaves]
            values = iter(body(inputs, vectors))
            return tuple([next(values) for _ in range(size)] for size in sizes)

        # An argument that nothing reads still says on which device the results are.
        compiled = self.programs.jit(
            (leaves, sizes, body.key(self.programs.canonical)),
            run,
            donate_argnums=0 if self.donated else (),
            keep_unused=True,
        )
        return Runnable(function, run, compiled)

    def say(
        self, round: int, arguments: Mapping[str, Leaves], gathered: Gathered
    ) -> Call | None:
        """To compute what the stage sends in a round."""
        runnable = self.messages[round]
        if runnable is None:
            return None
        function = runnable.function
        operands = function.read(arguments), function.receive(gathered)
        return Call(runnable, arguments, operands)

    def tell(
        self, round: int, arguments: Mapping[str, Leaves], gathered: Gathered
    ) -> Array:
        """What the stage sends in a round, as a pure function."""
        runnable = self.messages[round]
        if runnable is None:
            return jnp.zeros((0,), jnp.uint32)
        function = runnable.function
        function.check(arguments)
        return runnable.run(function.read(arguments), function.receive(gathered))

    def compute(
        self,
        names: tuple[str, ...],
        arguments: Mapping[str, Leaves],
        gathered: Gathered,
    ) -> tuple[list[Any], ...]:
        """The named results, as a pure function."""
        runnable = self.results(names)
        runnable.function.check(arguments)
        return runnable.run({}, arguments, runnable.function.receive(gathered))

    def finish(
        self,
        names: tuple[str, ...],
        arguments: Mapping[str, Leaves],
        gathered: Gathered,
    ) -> Call:
        """To compute the named results."""
        runnable = self.results(names)
        donated = {k: v for k, v in arguments.items() if k in self.donated}
        kept = {k: v for k, v in arguments.items() if k not in self.donated}
        vectors = runnable.function.receive(gathered)
        return Call(runnable, arguments, (donated, kept, vectors))


def compile_each(calls: Iterable[Call]) -> None:
    """Compiles several programs at once, so that running them finds them compiled.

    Only the compiler is run in threads: tracing depends on the context of the caller.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(
            lambda lowered: lowered.compile(), [c.lower() for c in calls]
        ):
            pass


@dataclass(frozen=True, eq=False)
class Runners:
    """A function's stages, run together in one process."""

    stages: tuple[StageRunner, ...]

    @classmethod
    def of(cls, function: StagedFunction, donated: Collection[str] = ()) -> "Runners":
        programs, names = Programs(), frozenset(donated)
        return cls(
            tuple(
                StageRunner(function, stage, programs, names)
                for stage in range(function.num_stages)
            )
        )

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
            messages = self._run(
                [runner.say(round, given, heard) for runner, given, heard in rows],
                placements,
            )
            received = gather(messages, placements, self._readers(names)[round])
            for heard, vectors in zip(gathered, received, strict=True):
                heard.append(vectors)
        return self._run(
            [runner.finish(names, given, heard) for runner, given, heard in rows],
            placements,
        )

    def _run(
        self, calls: Sequence[Call | None], placements: Sequence[Sharding | None]
    ) -> list[Any]:
        """Runs one program a stage; the first time, compiles them side by side."""
        programs = [
            (call.runnable.compiled, placement)
            for call, placement in zip(calls, placements, strict=True)
            if call is not None
        ]
        if not self._compiled.issuperset(programs):
            rows = zip(programs, filter(None, calls), strict=True)
            compile_each({program: call for program, call in rows}.values())
            self._compiled.update(programs)
        return [None if call is None else call.run() for call in calls]

    @functools.cached_property
    def _compiled(self) -> set[tuple[jax.stages.Wrapped, Sharding | None]]:
        """The programs that were run, and where."""
        return set()

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
