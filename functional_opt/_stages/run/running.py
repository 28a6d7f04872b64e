"""Runs the programs of all stages, each on its devices, and what they exchange."""

import functools
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, Sharding

from ..derive.functions import Leaves, StagedFunction, Table
from .calls import batches, Call, check_devices, compile_each, options_of_cpu, Part
from .exchange import device_order, Exchange, group_by_devices, placement_of
from .runners import Programs, Runnable, StageRunner


# Leaves of each argument, by name; None for a stage of another process.
Arguments = Mapping[str, Leaves] | None
Placements = tuple[Sharding | None, ...]


@dataclass(frozen=True, eq=False)
class Runners:
    """A function's stages."""

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

    def check(self, names: tuple[str, ...], arguments: Sequence[Arguments]) -> None:
        """Refuses what the named results cannot be computed from, by its name."""
        for runner, given in zip(self.stages, arguments, strict=True):
            if given is not None:
                runner.check(runner.results(names), given)
                check_devices(runner, given)

    @functools.cached_property
    def at(self) -> Callable[[Placements], "PlacedRunners"]:
        """The stages at their places."""
        return functools.cache(lambda places: PlacedRunners(self.stages, places))


@dataclass(frozen=True, eq=False)
class PlacedRunners:
    """A function's stages, each at its place.

    **Attributes:**

    - `stages`: the stages.
    - `placements`: for each stage where it is, and wants what it receives.
    """

    stages: tuple[StageRunner, ...]
    placements: Placements

    def run(
        self, names: tuple[str, ...], arguments: Sequence[Arguments]
    ) -> list[tuple[Leaves, ...] | None]:
        """All rounds, and then for each stage of this process the named results."""
        tables: list[list[Table]] = [[] for _ in self.stages]
        rows = list(zip(self.stages, arguments, tables, strict=True))
        for round, exchange in enumerate(self._exchanges):
            said = self._run([self._say(round, *row) for row in rows])
            received = self._exchange(exchange, said, arguments)
            for heard, table in zip(tables, received, strict=True):
                heard.append(table)
        results = self._run([self._finish(names, *row) for row in rows])
        nothing: tuple[Leaves, ...] = tuple(() for _ in names)
        return [
            nothing if result is None and given is not None else result
            for result, given in zip(results, arguments, strict=True)
        ]

    def _exchange(
        self, exchange: Exchange, said: Sequence[Any], arguments: Sequence[Arguments]
    ) -> list[Table]:
        try:
            return exchange(said)
        # A vector is on other devices than its stage.
        except KeyError:
            for runner, given in zip(self.stages, arguments, strict=True):
                check_devices(runner, given or {}, everything=True)
            raise

    def _say(
        self, round: int, runner: StageRunner, arguments: Arguments, tables: list[Table]
    ) -> Part | None:
        runnable = runner.messages[round] if arguments is not None else None
        if arguments is None or runnable is None:
            return None
        function = runnable.function
        operands = function.read(arguments), function.receive(tables)
        placement = self.placements[runner.stage]
        copies = placement if isinstance(placement, NamedSharding) else None
        return Part(runner, runnable, copies, arguments, operands)

    def _finish(
        self,
        names: tuple[str, ...],
        runner: StageRunner,
        arguments: Arguments,
        tables: list[Table],
    ) -> Part | None:
        held = (runner.function.results[name].held[runner.stage] for name in names)
        if arguments is None or not any(held):
            return None
        runnable = runner.results(names)
        shardings = self._shardings(names, runner.stage, arguments)
        donated = {k: v for k, v in arguments.items() if k in runner.donated}
        kept = {k: v for k, v in arguments.items() if k not in runner.donated}
        operands = donated, kept, runnable.function.receive(tables)
        return Part(runner, runnable, shardings, arguments, operands)

    def _run(self, parts: Sequence[Part | None]) -> list[Any]:
        """Runs all programs; the first time, compiles them side by side."""
        calls = list(self._calls(parts))
        programs = {
            (call.compiled, self.placements[call.stages[0]]): call for call in calls
        }
        if not self._known.issuperset(programs):
            compile_each(call for (_, where), call in programs.items() if where)
            self._known.update(programs)
        results: list[Any] = [None] * len(parts)
        for call in calls:
            for stage, result in zip(call.stages, call.run(), strict=True):
                results[stage] = result
        return results

    def _calls(self, parts: Sequence[Part | None]) -> Iterator[Call]:
        for group in self._groups:
            given = [part for stage in group if (part := parts[stage]) is not None]
            if given:
                runnables = tuple(part.runnable for part in given)
                shardings = tuple(part.shardings for part in given)
                yield Call(given, self._compiled(runnables, shardings))

    @functools.cached_property
    def _compiled(self) -> Callable[..., jax.stages.Wrapped]:
        def compiled(
            runnables: tuple[Runnable, ...], shardings: tuple[Any, ...]
        ) -> jax.stages.Wrapped:
            wanted = shardings if any(s is not None for s in shardings) else None
            programs = self.stages[0].programs
            return programs.jit(runnables, wanted, **self._options)

        return functools.cache(compiled)

    @functools.cached_property
    def _groups(self) -> list[tuple[int, ...]]:
        """The stages that are run by one program."""
        together: dict[Hashable, list[int]] = {}
        for stage, where in enumerate(self.placements):
            key = stage if where is None else tuple(device_order(where))
            together.setdefault(key, []).append(stage)
        groups = together.values()
        return [batch for group in groups for batch in batches(group, self._num_leaves)]

    def _num_leaves(self, stage: int) -> int:
        cuts = self.stages[stage].function.arguments.values()
        return sum(len(cut.held[stage]) for cut in cuts)

    @functools.cached_property
    def _known(self) -> set[tuple[jax.stages.Wrapped, Sharding | None]]:
        """The programs that were run, and where."""
        return set()

    @functools.cached_property
    def _exchanges(self) -> list[Exchange]:
        function = self.stages[0].function
        rounds = zip(
            function.senders, function.readers, function.num_words, strict=True
        )
        return [
            Exchange(
                senders,
                num_words,
                tuple(
                    placement if stage in readers.union(senders) else None
                    for stage, placement in enumerate(self.placements)
                ),
            )
            for senders, readers, num_words in rounds
        ]

    @functools.cached_property
    def _options(self) -> dict[str, Any]:
        """XLA for CPU makes less use of caches in its usual order of instructions."""
        groups = group_by_devices(self.placements)
        platforms = {device.platform for devices in groups for device in devices}
        return options_of_cpu() if platforms == {"cpu"} else {}

    def _shardings(
        self, names: tuple[str, ...], stage: int, arguments: Mapping[str, Leaves]
    ) -> tuple[tuple[Sharding, ...], ...] | None:
        """How each result is sharded; None if its program has one device anyway."""
        placement = self.placements[stage]
        one_device = not isinstance(placement, NamedSharding)
        if placement is None or (one_device and any(arguments.values())):
            return None
        return tuple(self.shardings(name, stage, arguments) for name in names)

    def shardings(
        self, name: str, stage: int, arguments: Mapping[str, Leaves]
    ) -> tuple[Sharding, ...]:
        """For each leaf of a result how that argument is sharded which it is like."""
        placement = self.placements[stage] or jnp.zeros(()).sharding

        def of(like: tuple[str, int] | None) -> Sharding:
            leaf = None if like is None else arguments[like[0]][like[1]]
            return getattr(leaf, "sharding", placement)

        return tuple(map(of, self._likes(stage, name)))

    @functools.cached_property
    def _likes(self) -> Callable[[int, str], list[tuple[str, int] | None]]:
        return functools.cache(self.stages[0].function.likes_of)


def placements_of(arguments: Sequence[Arguments]) -> Placements:
    """Where each stage is: where its first leaf is.

    What is in no device's memory is brought to the default device, if that matters.
    """
    leaves = [
        next((leaf for leaves in (given or {}).values() for leaf in leaves), None)
        for given in arguments
    ]
    placements = tuple(map(placement_of, leaves))
    if not any(placements) or not any(isinstance(leaf, np.ndarray) for leaf in leaves):
        return placements
    default = placement_of(jnp.zeros(()))
    return tuple(
        default if isinstance(leaf, np.ndarray) else placement
        for leaf, placement in zip(leaves, placements, strict=True)
    )
