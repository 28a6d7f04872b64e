"""Times of functions that are compared with each other."""

import gc
import random
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax


def interleaved(
    functions: Mapping[str, Callable[[], Any]], rounds: int
) -> dict[str, list[float]]:
    """The seconds of each function in each round, in an order that is random.

    Each is called twice before, so that it has compiled and its memory is there. What
    a function returns is waited for.
    """
    order = random.Random(0)
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        for _ in range(2):
            jax.block_until_ready(function())
    gc.collect()
    gc.disable()
    for _ in range(rounds):
        for name in order.sample([*functions], len(functions)):
            start = time.perf_counter()
            jax.block_until_ready(functions[name]())
            seconds[name].append(time.perf_counter() - start)
    gc.enable()
    return seconds


def until_returned(function: Callable[[], Any], rounds: int) -> list[float]:
    """The seconds that each call takes of the host; the work is waited for between."""
    seconds = []
    jax.block_until_ready(function())
    for _ in range(rounds):
        start = time.perf_counter()
        result = function()
        seconds.append(time.perf_counter() - start)
        jax.block_until_ready(result)
    return seconds


def milliseconds(seconds: list[float]) -> str:
    """The median, and the middle half."""
    low, middle, high = (
        1e3 * x for x in statistics.quantiles(seconds, n=4, method="inclusive")
    )
    return f"{middle:.3g} [{low:.3g}, {high:.3g}]"
