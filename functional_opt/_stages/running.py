"""Runs the programs of all stages, each on its devices, and what they exchange."""

import functools
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, Sharding

from .exchange import devices_text, Exchange, group_by_devices, placement_of
from .functions import Leaves, StagedFunction, Table
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

    @functools.cached_property
    def at(self) -> Callable[[Placements], "PlacedRunners"]:
        """The stages at their places."""
        return functools.cache(lambda places: PlacedRunners(self.stages, places))


class _Call(NamedTuple):
    """A program to be run, and what it is given: by name, and as it takes it."""

    runner: StageRunner
    runnable: Runnable
    compiled: jax.stages.Wrapped
    arguments: Mapping[str, Leaves]
    operands: tuple[Any, ...]

    def run(self) -> Any:
        return self._try(self.compiled)

    def lower(self) -> jax.stages.Lowered:
        return self._try(self.compiled.lower)

    def _try(self, function: Callable[..., Any]) -> Any:
        """If the program refuses its operands, says which argument is wrong."""
        try:
            return function(*self.operands)
        except ValueError:
            self.runner.check(self.runnable, self.arguments)
            check_devices(self.runner, self.arguments)
            raise


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
                check_devices(runner, given or {})
            raise
        # The kinds of error that XLA raises, for which JAX has more than one class.
        except (ValueError, RuntimeError) as error:
            raise RuntimeError(
                f"An exchange between {exchange.processes_text} failed. If one of them "
                "has died, start all of them again from the last checkpoint."
            ) from error

    def _say(
        self, round: int, runner: StageRunner, arguments: Arguments, tables: list[Table]
    ) -> _Call | None:
        runnable = runner.messages[round] if arguments is not None else None
        if arguments is None or runnable is None:
            return None
        function = runnable.function
        compiled = self._compiled_message(runner.stage, round)
        operands = function.read(arguments), function.receive(tables)
        return _Call(runner, runnable, compiled, arguments, operands)

    def _finish(
        self,
        names: tuple[str, ...],
        runner: StageRunner,
        arguments: Arguments,
        tables: list[Table],
    ) -> _Call | None:
        held = (runner.function.results[name].held[runner.stage] for name in names)
        if arguments is None or not any(held):
            return None
        runnable = runner.results(names)
        shardings = self._shardings(names, runner.stage, arguments)
        compiled = self._compiled_results(runner.stage, names, shardings)
        donated = {k: v for k, v in arguments.items() if k in runner.donated}
        kept = {k: v for k, v in arguments.items() if k not in runner.donated}
        operands = donated, kept, runnable.function.receive(tables)
        return _Call(runner, runnable, compiled, arguments, operands)

    def _run(self, calls: Sequence[_Call | None]) -> list[Any]:
        """Runs one program a stage; the first time, compiles them side by side."""
        programs = {
            (call.compiled, placement): call
            for call, placement in zip(calls, self.placements, strict=True)
            if call is not None and placement is not None
        }
        if not self._known.issuperset(programs):
            compile_each(programs.values())
            self._known.update(programs)
        return [None if call is None else call.run() for call in calls]

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
    def _compiled_message(self) -> Callable[[int, int], jax.stages.Wrapped]:
        def compiled(stage: int, round: int) -> jax.stages.Wrapped:
            runner, placement = self.stages[stage], self.placements[stage]
            runnable = runner.messages[round]
            assert runnable is not None
            copies = placement if isinstance(placement, NamedSharding) else None
            return runner.programs.jit(runnable, copies)

        return functools.cache(compiled)

    @functools.cached_property
    def _compiled_results(self) -> Callable[..., jax.stages.Wrapped]:
        def compiled(
            stage: int, names: tuple[str, ...], shardings: Any
        ) -> jax.stages.Wrapped:
            runner = self.stages[stage]
            runnable = runner.results(names)
            return runner.programs.jit(runnable, shardings, **self._options)

        return functools.cache(compiled)

    @functools.cached_property
    def _options(self) -> dict[str, Any]:
        """XLA for CPU makes less use of caches in its usual order of instructions."""
        groups = group_by_devices(self.placements)
        platforms = {device.platform for devices in groups for device in devices}
        if len(groups) <= 1 or platforms != {"cpu"}:
            return {}
        return _options_of_cpu()

    def _shardings(
        self, names: tuple[str, ...], stage: int, arguments: Mapping[str, Leaves]
    ) -> tuple[tuple[Sharding, ...], ...] | None:
        """How each result is sharded; None if its program has one device anyway."""
        placement = self.placements[stage]
        one_device = not isinstance(placement, NamedSharding)
        if placement is None or (one_device and any(arguments.values())):
            return None
        return tuple(
            tuple(
                placement
                if like is None
                else getattr(arguments[like[0]][like[1]], "sharding", placement)
                for like in self._likes(stage, name)
            )
            for name in names
        )

    @functools.cached_property
    def _likes(self) -> Callable[[int, str], list[tuple[str, int] | None]]:
        return functools.cache(self.stages[0].function.likes_of)


@functools.cache
def _options_of_cpu() -> dict[str, Any]:
    """The order of instructions that needs least memory, if this XLA has the option."""
    scheduler = "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"
    options: dict[str, Any] = {
        "compiler_options": {"xla_cpu_scheduler_type": scheduler}
    }
    place = jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
    shape = jax.ShapeDtypeStruct((), np.float32, sharding=place)
    try:
        jax.jit(lambda x: x, **options).lower(shape).compile()
    except jax.errors.JaxRuntimeError:
        return {}
    return options


def compile_each(calls: Iterable[_Call]) -> None:
    """Compiles several programs at once, so that running them finds them compiled.

    Only the compiler is run in threads: tracing depends on the context of the caller.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(jax.stages.Lowered.compile, [call.lower() for call in calls]):
            pass


def check_devices(runner: StageRunner, arguments: Mapping[str, Leaves]) -> None:
    """Refuses leaves of one stage on different devices, by their names."""
    first: tuple[str, Collection[jax.Device]] | None = None
    for name, leaves in arguments.items():
        for position, leaf in enumerate(leaves):
            if not isinstance(leaf, jax.Array) or not leaf.committed:
                continue
            label = runner.function.label(name, runner.stage, position)
            first = first or (label, leaf.sharding.device_set)
            if leaf.sharding.device_set != first[1]:
                here, there = map(devices_text, (leaf.sharding.device_set, first[1]))
                raise ValueError(
                    f"{label} is on {here}, but {first[0]} is on {there}. What belongs "
                    "to one stage must be on the same devices: use `jax.device_put`."
                )


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
