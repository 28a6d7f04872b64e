"""A round of exchange.

Each of 8 stages, on its own device as far as there are enough, sends 40 float32 numbers
to all others. *Until it returns* is the time on the host. It is also measured while
*one stage still computes* its message by matrix products, which shows whether the host
waits. (JAX has as many threads for CPU devices as there are devices. If all of them
wait for the stage that still computes, a launch has to wait, too: observed in 4 of 60
rounds, and never with more devices than stages.)
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from functional_opt._stages.run.devices import on_mesh
from functional_opt._stages.run.exchange import Exchange
from timing import milliseconds
from trees import put


STAGES, WORDS = 8, 40


def test_round(quick, benchmark, record):
    devices = [jax.devices()[s % len(jax.devices())] for s in range(STAGES)]
    exchange = exchange_between(devices)
    ready: list[tuple[float, float]] = []
    busy: list[tuple[float, float]] = []

    def measure() -> None:
        early = said(devices[:-1], 0)
        for _ in range(20 if quick else 200):
            ready.append(timed(exchange, jax.block_until_ready(said(devices, 0))))
        for _ in range(5 if quick else 20):
            late = said(devices[-1:], 20_000)
            busy.append(timed(exchange, jax.block_until_ready(early) + late))

    benchmark.pedantic(measure, rounds=1)
    returned, done = (list(times[2:]) for times in zip(*ready, strict=True))
    returned_busy, computed = (list(times[2:]) for times in zip(*busy, strict=True))
    rows = [
        ("all of it", done, "<= 0.45"),
        ("until it returns", returned, ""),
        ("until it returns, while one stage still computes", returned_busy, ""),
        ("all of that", computed, ""),
    ]
    for what, seconds, aim in rows:
        record("Times", round=what, ms=milliseconds(seconds), aim=aim)


def exchange_between(devices: Sequence[jax.Device]) -> Callable[[list[Any]], Any]:
    placements = tuple(map(on_mesh, devices))
    return Exchange(tuple(range(STAGES)), WORDS, placements)


def timed(exchange: Callable[[list[Any]], Any], messages: list[Any]) -> Any:
    """The seconds until the exchange returns, and until it finishes."""
    start = time.perf_counter()
    received = exchange(messages)
    returned = time.perf_counter() - start
    jax.block_until_ready(received)
    return returned, time.perf_counter() - start


@jax.jit
def words(matrix: Any, products: Any) -> Any:
    product = jax.lax.fori_loop(0, products, lambda _, x: jnp.tanh(x @ matrix), matrix)
    return jnp.resize(jax.lax.bitcast_convert_type(product, jnp.uint32), (WORDS,))


def said(devices: Sequence[jax.Device], products: int) -> list[Any]:
    """A new vector on each device, computed by this number of matrix products."""
    matrix = jnp.full((32, 32), 0.01)
    return [words(put(matrix, device), products) for device in devices]
