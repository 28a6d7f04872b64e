"""Tracing and compiling.

The seconds to trace and compile a step, without any cache: for the whole tree, and for
8 stages including their derivation. `init` is not included. This is the time of a first
step on matrices so small that the computation itself is negligible. *Optax per stage*
is the least that any stage-local update compiles: one jitted step, traced once, of the
leaves of each stage alone, on its device, which clips each stage by its own norm.
*Seconds of all cores* add up those of all threads.
"""

import random
import statistics
import time
from collections.abc import Sequence
from typing import Any

import functional_opt as fo
import jax
import pytest
from modes import whole_tree_step
from trees import normal_like, partition, put, shapes, transformation


STAGES = 8
AIMS = {320: ("<= 0.75", "<= 2.0"), 1280: ("<= 0.4", "<= 1.0")}


@pytest.mark.parametrize("num_leaves", AIMS)
def test_compilation(num_leaves, quick, benchmark, record):
    tree = shapes(num_leaves // 8 if quick else num_leaves, STAGES, width=8)
    devices = jax.devices()
    ways = [
        lambda: whole(tree),
        lambda: staged(tree, devices[:1]),
        lambda: staged(tree, devices),
        lambda: per_stage(tree, devices),
    ]
    seconds: list[list[tuple[float, float]]] = [[] for _ in ways]
    order = random.Random(0)

    def measure() -> None:
        for way in order.sample(range(len(ways)), len(ways)):
            seconds[way].append(ways[way]())

    benchmark.pedantic(measure, rounds=1 if quick else 3)
    medians = [
        [statistics.median(x) for x in zip(*all, strict=True)] for all in seconds
    ]
    on_one, on_all = AIMS[num_leaves]
    count = f"{min(STAGES, len(devices))} devices"
    names = ["whole tree", "staged, one device", f"staged, {count}"]
    names.append(f"Optax per stage, {count}")
    aims = ["", on_one, on_all, ""]
    for step, (took, of_cores), aim in zip(names, medians, aims, strict=True):
        record(
            f"{len(jax.tree.leaves(tree))} leaves",
            step=step,
            s=took,
            ratio=took / medians[0][0],
            aim=aim,
            **{"s of all cores": of_cores},
        )


class Clock:
    """The seconds that have passed, and those of all cores, since its creation."""

    def __init__(self) -> None:
        self._start = self._now()

    def read(self) -> tuple[float, float]:
        passed, of_cores = (
            b - a for a, b in zip(self._start, self._now(), strict=True)
        )
        return passed, of_cores

    def _now(self) -> tuple[float, float]:
        return time.perf_counter(), time.process_time()


def whole(tree: Any) -> tuple[float, float]:
    params, grads = (normal_like(tree, seed) for seed in (0, 1))
    params = put(params, jax.devices()[0])
    state = jax.jit(transformation().init)(params)
    jax.clear_caches()
    clock = Clock()
    jax.block_until_ready(whole_tree_step()(params, state, grads))
    return clock.read()


def staged(tree: Any, devices: Sequence[jax.Device]) -> tuple[float, float]:
    owners, places, params, grads = pieces(tree, devices)
    jax.clear_caches()
    clock = Clock()
    made = fo.stage_local(transformation(), tree, owners, meshes=places, donate=True)
    derived = clock.read()
    states = jax.block_until_ready(made.init(params))
    clock = Clock()
    jax.block_until_ready(made.step(grads, states, params))
    passed, of_cores = (a + b for a, b in zip(derived, clock.read(), strict=True))
    return passed, of_cores


def per_stage(tree: Any, devices: Sequence[jax.Device]) -> tuple[float, float]:
    _, _, *trees = pieces(tree, devices)
    # Lists, as stages of other names would be traced each.
    params, grads = (list(map(jax.tree.leaves, each)) for each in trees)
    states = list(map(jax.jit(transformation().init), params))
    jax.block_until_ready(states)
    jax.clear_caches()
    clock = Clock()
    step = whole_tree_step()
    jax.block_until_ready(list(map(step, params, states, grads)))
    return clock.read()


def pieces(tree: Any, devices: Sequence[jax.Device]) -> tuple[Any, Any, Any, Any]:
    """The partition, the devices of the stages, and their parameters and gradients."""
    owners = partition(tree)
    places = [devices[s % len(devices)] for s in range(STAGES)]
    params, grads = (
        tuple(map(put, owners.split(normal_like(tree, seed)), places))
        for seed in (0, 1)
    )
    return owners, places, params, grads
