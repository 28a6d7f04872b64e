"""Times of functions that are compared with each other."""

import contextlib
import gc
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax


@dataclass(frozen=True)
class Times:
    """The seconds that passed in each round, and those of all cores together."""

    passed: list[float] = field(default_factory=list)
    of_cores: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.passed)

    @property
    def cores(self) -> float:
        """The number of busy cores."""
        return statistics.median(self.of_cores) / self.median


def interleaved(
    functions: Mapping[str, Callable[[], Any]], rounds: int
) -> dict[str, Times]:
    """The times of each function in each round, in random order.

    Each function is called twice before, to compile and to allocate. The times include
    waiting for the results.
    """
    order = random.Random(0)
    times = {name: Times() for name in functions}
    for function in functions.values():
        for _ in range(2):
            jax.block_until_ready(function())
    with garbage_kept():
        for _ in range(rounds):
            for name in order.sample([*functions], len(functions)):
                start, start_of_cores = time.perf_counter(), time.process_time()
                jax.block_until_ready(functions[name]())
                times[name].passed.append(time.perf_counter() - start)
                times[name].of_cores.append(time.process_time() - start_of_cores)
    return times


@contextlib.contextmanager
def garbage_kept() -> Iterator[None]:
    """Turns Python's garbage collector off.

    It would run in whichever function allocates the last of a fixed number of objects.
    """
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def until_returned(
    functions: Sequence[Callable[[], Any]], rounds: int
) -> list[list[float]]:
    """The seconds until each call returns, one function after another in each round.

    The work is awaited between calls.
    """
    seconds: list[list[float]] = [[] for _ in functions]
    for function in functions:
        jax.block_until_ready(function())
    with garbage_kept():
        for _ in range(rounds):
            for function, passed in zip(functions, seconds, strict=True):
                start = time.perf_counter()
                result = function()
                passed.append(time.perf_counter() - start)
                jax.block_until_ready(result)
    return seconds


def milliseconds(seconds: list[float]) -> str:
    """The median, and the middle half."""
    low, middle, high = (
        1e3 * x for x in statistics.quantiles(seconds, n=4, method="inclusive")
    )
    return f"{middle:.3g} [{low:.3g}, {high:.3g}]"
