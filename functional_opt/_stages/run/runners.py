"""The programs of one stage of a function, as Python and as `jax.jit` has them."""

import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ..._slicing.canonical import Canonical
from ..derive.functions import Gathered, Leaves, StagedFunction, StageFunction, Table


@dataclass(frozen=True, eq=False)
class Runnable:
    """A function of one stage.

    **Attributes:**

    - `function`: where its inputs are found.
    - `run`: what is to be compiled.
    - `key`: the same for what computes the same.
    - `options`: of `jax.jit`.
    """

    function: StageFunction
    run: Callable[..., Any]
    key: Hashable
    options: Mapping[str, Any]


class Programs:
    """What is compiled, by what it computes: stages of equal structure share it."""

    def __init__(self) -> None:
        self.canonical = Canonical()
        self._runs: dict[Hashable, Callable[..., Any]] = {}
        self._compiled: dict[Hashable, jax.stages.Wrapped] = {}

    def jit(
        self, runnables: Sequence[Runnable], out_shardings: Hashable, **options: Any
    ) -> jax.stages.Wrapped:
        """One program for some stages: from their operands to the results of each.

        It is that of the first stages that compute the same. Other options are other
        programs, but what a stage computes is traced only once for all of them.
        """
        key = tuple(r.key for r in runnables), out_shardings, repr(options)
        if key not in self._compiled:
            if out_shardings is not None:
                options["out_shardings"] = out_shardings
            together = _together([self._traced_once(r) for r in runnables])
            self._compiled[key] = jax.jit(together, **runnables[0].options, **options)
        return self._compiled[key]

    def _traced_once(self, runnable: Runnable) -> Callable[..., Any]:
        return self._runs.setdefault(runnable.key, jax.jit(runnable.run))


def _together(functions: Sequence[Callable[..., Any]]) -> Callable[..., Any]:
    """Calls each function with its column of the arguments."""

    def run(*rows: Sequence[Any]) -> tuple[Any, ...]:
        columns = zip(*rows, strict=True)
        return tuple(f(*column) for f, column in zip(functions, columns, strict=True))

    return run


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
        if self.stage not in self.function.senders[round]:
            return None
        function = self.function.message(self.stage, round)
        body, packing = function.body, self.function.packing(self.stage, round)
        num_words = self.function.num_words[round]

        def run(leaves: Leaves, tables: Sequence[Table]) -> Array:
            return packing.pack(body(leaves, tables), num_words)

        key = packing, num_words, body.key(self.programs.canonical)
        return Runnable(function, run, key, {})

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
            tables: Sequence[Table],
        ) -> tuple[Leaves, ...]:
            given = {**donated, **kept}
            inputs = [given[name][position] for name, position in leaves]
            values = iter(body(inputs, tables))
            return tuple(tuple(next(values) for _ in range(n)) for n in sizes)

        key = leaves, sizes, body.key(self.programs.canonical)
        # An argument that nothing reads still says on which device the results are.
        options: dict[str, Any] = {"keep_unused": True}
        if self.donated:
            options["donate_argnums"] = 0
        return Runnable(function, run, key, options)

    def tell(
        self, round: int, arguments: Mapping[str, Leaves], gathered: Gathered
    ) -> Array:
        """What the stage sends in a round, as a pure function."""
        runnable = self.messages[round]
        if runnable is None:
            return jnp.zeros((0,), jnp.uint32)
        function = runnable.function
        self.check(runnable, arguments)
        tables = self.function.tables(gathered)
        return runnable.run(function.read(arguments), function.receive(tables))

    def compute(
        self,
        names: tuple[str, ...],
        arguments: Mapping[str, Leaves],
        gathered: Gathered,
    ) -> tuple[Leaves, ...]:
        """The named results, as a pure function."""
        runnable = self.results(names)
        self.check(runnable, arguments)
        tables = self.function.tables(gathered)
        return runnable.run({}, arguments, runnable.function.receive(tables))

    def check(self, runnable: Runnable, arguments: Mapping[str, Leaves]) -> None:
        """Refuses leaves of another shape or dtype, by their names."""
        function = runnable.function
        for number, text in function.body.misfits(function.read(arguments)):
            name, position = function.leaves[number]
            label = self.function.label(name, self.stage, position)
            raise ValueError(f"{label} {text}.")
