"""What one stage runs: pure functions of its pieces, traced and compiled once each."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, PyTree, UInt32

from .functions import Gathered, Leaves, StagedFunction, StageFunction
from .partition import StagePartition
from .trees import Cut


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
class StageProgram:
    """The update of one stage as pure functions. For authors of pipeline runtimes.

    `grads`, `state` and `params` are the stage's pieces of these trees. `gathered` has
    for each round so far the vectors that the stages sent in it, by stage: on each of
    them what `message` returned there.
    """

    partition: StagePartition
    state: Cut
    runner: StageRunner

    @property
    def stage(self) -> int:
        """The number of the stage, from 0."""
        return self.runner.stage

    @property
    def rounds(self) -> int:
        """How many rounds of exchange come before `step` or `update`."""
        return self.runner.function.num_rounds

    def message(
        self,
        round: int,
        grads: PyTree,
        state: PyTree,
        params: PyTree,
        gathered: Gathered = (),
    ) -> UInt32[Array, " words"]:
        """What the stage tells the others in a round, packed. It may be empty."""
        runnable = self.runner.messages[round]
        if runnable is None:
            return jax.numpy.zeros((0,), jax.numpy.uint32)
        arguments, _ = self.take(grads, state, params)
        function = runnable.function
        return runnable.run(function.read(arguments), function.receive(gathered))

    def step(
        self, grads: PyTree, state: PyTree, params: PyTree, gathered: Gathered = ()
    ) -> tuple[PyTree, PyTree]:
        """The stage's new parameters and new state, after all rounds."""
        arguments, put = self.take(grads, state, params)
        new, new_state = self._finish(("params", "state"), arguments, gathered)
        return put(new), self.state.unflatten(self.stage, new_state)

    def update(
        self, grads: PyTree, state: PyTree, params: PyTree, gathered: Gathered = ()
    ) -> tuple[PyTree, PyTree]:
        """The stage's updates and new state, after all rounds, as Optax has them."""
        arguments, _ = self.take(grads, state, params)
        updates, new_state = self._finish(("updates", "state"), arguments, gathered)
        updates = self.partition.params.unflatten(self.stage, updates)
        return updates, self.state.unflatten(self.stage, new_state)

    def _finish(
        self,
        names: tuple[str, ...],
        arguments: Mapping[str, Leaves],
        gathered: Gathered,
    ) -> tuple[list[Any], ...]:
        runnable = self.runner.results(names)
        return runnable.run({}, arguments, runnable.function.receive(gathered))

    def take(
        self, grads: PyTree, state: PyTree, params: PyTree
    ) -> tuple[dict[str, Leaves], Callable[[Leaves], PyTree]]:
        """The pieces' leaves, by name, and how to make a piece of new parameters."""
        gradients, _ = self.partition.take("grads", self.stage, grads)
        parameters, put = self.partition.take("params", self.stage, params)
        held = self.state.flatten("states", self.stage, state)
        return {"params": parameters, "state": held, "grads": gradients}, put
