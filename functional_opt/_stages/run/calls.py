"""A program of one stage or of some that share their devices, and how it is run."""

import functools
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np

from ..derive.functions import Leaves
from .exchange import devices_text
from .runners import Runnable, StageRunner


# More leaves in one program take longer to compile, and gain nothing when they run.
_MOST_LEAVES = 256


class Part(NamedTuple):
    """A stage's part of a program, and what it is given: by name, and as it takes it.

    `shardings` are those of its results, None where they follow from what it is given.
    """

    runner: StageRunner
    runnable: Runnable
    shardings: Any
    arguments: Mapping[str, Leaves]
    operands: tuple[Any, ...]


class Call(NamedTuple):
    """A program to be run for some stages."""

    parts: Sequence[Part]
    compiled: jax.stages.Wrapped

    @property
    def stages(self) -> list[int]:
        return [part.runner.stage for part in self.parts]

    def run(self) -> Any:
        return self._try(self.compiled)

    def lower(self) -> jax.stages.Lowered:
        return self._try(self.compiled.lower)

    def _try(self, function: Callable[..., Any]) -> Any:
        """If the program refuses its operands, says which argument is wrong."""
        try:
            return function(*zip(*(part.operands for part in self.parts), strict=True))
        except ValueError:
            for part in self.parts:
                part.runner.check(part.runnable, part.arguments)
                check_devices(part.runner, part.arguments)
            raise


def batches(
    stages: Iterable[int], num_leaves: Callable[[int], int]
) -> Iterator[tuple[int, ...]]:
    """Which stages one program is for: neighbours, if they are not too large."""
    batch: list[int] = []
    for stage in stages:
        if sum(map(num_leaves, [*batch, stage])) > _MOST_LEAVES and batch:
            yield tuple(batch)
            batch = []
        batch.append(stage)
    yield tuple(batch)


def compile_each(calls: Iterable[Call]) -> None:
    """Compiles several programs at once, so that running them finds them compiled.

    Only the compiler is run in threads: tracing depends on the context of the caller.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(jax.stages.Lowered.compile, [call.lower() for call in calls]):
            pass


@functools.cache
def options_of_cpu() -> dict[str, Any]:
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


def check_devices(
    runner: StageRunner, arguments: Mapping[str, Leaves], *, everything: bool = False
) -> None:
    """Refuses leaves of one stage on different devices, by their names.

    JAX moves what was put on no device by the user, if it goes with what was: that
    counts only as part of `everything`.
    """
    first: tuple[str, Collection[jax.Device]] | None = None
    for name, leaves in arguments.items():
        for position, leaf in enumerate(leaves):
            is_array = isinstance(leaf, jax.Array)
            if not (everything or (is_array and leaf.committed)):
                continue
            devices = leaf.sharding.device_set if is_array else frozenset()
            label = runner.function.label(name, runner.stage, position)
            first = first or (label, devices)
            if devices != first[1]:
                here = devices_text(devices) or "no device"
                there = devices_text(first[1]) or "no device"
                raise ValueError(
                    f"{label} is on {here}, but {first[0]} is on {there}. What belongs "
                    "to one stage must be on the same devices: use `jax.device_put`."
                )
