"""Runs the slices of all stages, each on its devices, and their exchanges."""

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import NamedSharding, Sharding

from ..derive.functions import SplitFunction
from ..derive.slices import Inbox, StageSlice
from .compiling import compile_together, ToCompile
from .devices import is_concrete, on_mesh
from .diagnosis import diagnose
from .exchange import Exchange
from .layout import Layout, Layouts, LeavesByStage, StageShardings
from .sums import TiedSum


class Launch:
    """One program for one stage, or for several that share their devices.

    **Arguments:**

    - `slices`: the slices that it computes.
    - `donated`: for each slice the positions of the leaves with donated buffers.
    - `program`: the program, as returned by `CompileCache.jit`.
    """

    def __init__(
        self,
        slices: Sequence[StageSlice],
        donated: Sequence[range],
        program: jax.stages.Wrapped,
    ) -> None:
        self.slices, self.donated, self.program = slices, donated, program

    def __call__(
        self,
        leaves: LeavesByStage,
        inboxes: Sequence[Sequence[Inbox]],
        results: list[Any],
    ) -> None:
        """Runs the program, and stores the results of each stage in `results`."""
        computed = self.program(*self.operands(leaves, inboxes))
        for stage_slice, result in zip(self.slices, computed, strict=True):
            results[stage_slice.stage] = result

    def operands(
        self, leaves: LeavesByStage, inboxes: Sequence[Sequence[Inbox]]
    ) -> tuple[list[Any], list[Any], list[Any], list[Any]]:
        before, donated, after, received = [], [], [], []
        for s, lent in zip(self.slices, self.donated, strict=True):
            given = leaves[s.stage] or ()
            if s.reads is not None:
                given = [given[position] for position in s.reads]
            before.append(given[: lent.start])
            donated.append(given[lent.start : lent.stop])
            after.append(given[lent.stop :])
            received.append([inboxes[s.stage][round] for round in s.rounds])
        return before, donated, after, received


class Executor:
    """The programs of a function for one layout of its stages.

    **Attributes:**

    - `layout`: the devices of the stages, and the results to compute.
    - `sums`: the sums of tied gradients, which come before the first round.
    - `rounds`: for each round the programs that compute its messages, and the exchange.
    - `finish`: the programs that compute the results.
    - `is_compiled`: whether `compile` was called, or does not apply.
    """

    def __init__(
        self,
        layout: Layout,
        sums: Sequence[TiedSum],
        rounds: Sequence[tuple[Sequence[Launch], Exchange]],
        finish: Sequence[Launch],
    ) -> None:
        self.layout, self.sums, self.rounds, self.finish = layout, sums, rounds, finish
        self.is_compiled = layout.is_traced

    def run(
        self, leaves: LeavesByStage, results: list[Any], idle: Collection[int] = ()
    ) -> None:
        """Stores the results of each stage of this process in `results`.

        If a program raises an error, `results` shows which stages ran before.

        **Arguments:**

        - `idle`: the rounds whose messages are not used.
        """
        for add in self.sums:
            leaves = add(leaves)
        if not self.is_compiled:
            self.compile(leaves)
        inboxes: list[list[Inbox]] = [[] for _ in leaves]
        for number, (launches, exchange) in enumerate(self.rounds):
            if number in idle and exchange.is_needed:
                received = exchange.nothing
            else:
                sent: list[Any] = [None] * len(leaves)
                for launch in launches:
                    launch(leaves, inboxes, sent)
                received = exchange(sent)
            for inbox, vectors in zip(inboxes, received, strict=True):
                inbox.append(vectors)
        for launch in self.finish:
            launch(leaves, inboxes, results)

    def compile(self, leaves: LeavesByStage) -> None:
        """Compiles all programs together, before the first of them is called.

        **Arguments:**

        - `leaves`: leaves of the shapes, dtypes and shardings of those to run with,
            after the sums. A program that is called with others is compiled again.
        """
        programs: list[ToCompile] = []
        inboxes: list[list[Inbox]] = [[] for _ in leaves]
        for launches, exchange in self.rounds:
            messages = self._programs(launches, leaves, inboxes)
            programs += [*exchange.programs, *messages]
            received = exchange.expected([operands for _, operands, _ in messages])
            for inbox, vectors in zip(inboxes, received, strict=True):
                inbox.append(vectors)
        compile_together([*self._programs(self.finish, leaves, inboxes), *programs])
        self.is_compiled = True

    def _programs(
        self,
        launches: Sequence[Launch],
        leaves: LeavesByStage,
        inboxes: Sequence[Sequence[Inbox]],
    ) -> list[ToCompile]:
        return [
            (launch.program, launch.operands(leaves, inboxes), where)
            for launch in launches
            if (where := self.layout.stages[launch.slices[0].stage]) is not None
        ]


class Executors:
    """The executors of a function, one per layout that has occurred.

    **Arguments:**

    - `function`: the function.
    - `build`: builds the executor of a layout.
    - `layouts`: finds the layout of leaves.
    - `donated`: for each tuple of result names, the arguments with donated buffers.
    - `deletes`: the name of an argument to delete after a step, because no result can
        reuse its buffers; None if there is none.
    """

    def __init__(
        self,
        function: SplitFunction,
        build: Callable[[Layout], Executor],
        layouts: Layouts,
        donated: Mapping[tuple[str, ...], Sequence[str]],
        deletes: str | None = None,
    ) -> None:
        self._function, self._build, self._layouts = function, build, layouts
        self._donated, self._deletes = donated, deletes
        self._built: dict[Layout, Executor] = {}
        self._found: dict[tuple[tuple[str, ...], StageShardings], Executor] = {}

    def run(
        self,
        names: tuple[str, ...],
        leaves: LeavesByStage,
        idle: Collection[int] = (),
    ) -> list[Any]:
        """The named results of each stage; None for stages of other processes.

        **Arguments:**

        - `idle`: the rounds whose messages are not used.
        """
        results: list[Any] = [None] * len(leaves)
        try:
            executor = self.executor(names, leaves)
            executor.run(leaves, results, idle)
        except (TypeError, ValueError, RuntimeError) as error:
            self.explain(error, names, leaves, results)
            raise
        if self._deletes is not None and not executor.layout.is_traced:
            self.delete(leaves)
        return results

    def executor(self, names: tuple[str, ...], leaves: LeavesByStage) -> Executor:
        """The executor for the devices of these leaves."""
        if is_traced(leaves):
            return self._built_for(self._layouts.traced(names, leaves))
        found = shardings_of(leaves)
        executor = self._found.get((names, found))
        if executor is None:
            executor = self._built_for(self._layouts.of(names, found, leaves))
            if not any(executor.layout.results):
                # Only the shardings of results depend on more than the first leaves.
                self._found[names, found] = executor
        return executor

    def _built_for(self, layout: Layout) -> Executor:
        if layout not in self._built:
            self._built[layout] = self._build(layout)
        return self._built[layout]

    def explain(
        self,
        error: Exception,
        names: tuple[str, ...],
        leaves: LeavesByStage,
        results: Sequence[Any],
    ) -> None:
        """Raises an error that names the cause of another one, if it is found."""
        donated = self._donated[names]
        diagnose(error, self._function, leaves, results, donated, self._deletes)

    def delete(self, leaves: LeavesByStage) -> None:
        """Frees the buffers in `deletes` once the programs that read them finish."""
        for own, lent in zip(leaves, self._deleted, strict=True):
            for leaf in (own or ())[lent.start : lent.stop]:
                if is_concrete(leaf):
                    leaf.delete()

    @functools.cached_property
    def _deleted(self) -> list[range]:
        """For each stage the positions of the leaves to delete."""
        stages = range(self._function.num_stages)
        if self._deletes is None:
            return [range(0) for _ in stages]
        return [self._function.positions(stage, self._deletes) for stage in stages]

    def shardings(
        self, names: tuple[str, ...], leaves: LeavesByStage
    ) -> dict[int, tuple[Sharding, ...]] | None:
        """The shardings of the named results of each stage; None if they are traced."""
        if is_traced(leaves):
            return None
        return self._layouts.shardings(names, shardings_of(leaves), leaves)


def is_traced(leaves_by_stage: LeavesByStage) -> bool:
    """Whether any leaf is traced, by `jax.jit`, `jax.grad` or another transform."""
    kinds: set[type] = set()
    for leaves in leaves_by_stage:
        kinds.update(map(type, leaves or ()))
    return any(map(_is_tracer, kinds))


@functools.lru_cache
def _is_tracer(kind: type) -> bool:
    return issubclass(kind, Tracer)


def shardings_of(leaves_by_stage: LeavesByStage) -> StageShardings:
    """The shardings of the first leaf of each stage; NumPy is on the default device."""
    firsts = [leaves[0] if leaves else None for leaves in leaves_by_stage]
    found = tuple(map(sharding_of, firsts))
    if None not in found or not any(found):
        return found
    if not any(isinstance(first, np.ndarray) for first in firsts):
        return found
    default = sharding_of(jnp.zeros(()))
    return tuple(
        default if isinstance(first, np.ndarray) else sharding
        for first, sharding in zip(firsts, found, strict=True)
    )


def sharding_of(leaf: Any) -> Sharding | None:
    """The sharding that replicates on all devices of a leaf; None if it is on none."""
    if isinstance(leaf, Tracer) or not isinstance(leaf, jax.Array):
        return None
    sharding = leaf.sharding
    return on_mesh(sharding.mesh) if isinstance(sharding, NamedSharding) else sharding
