"""Tracing and compiling.

The seconds to trace and compile a step, without any cache: for the whole tree, and for
8 stages including their derivation. `init` is not included. This is the time of a first
step on matrices so small that the computation itself is negligible.
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
    ]
    seconds: list[list[float]] = [[] for _ in ways]
    order = random.Random(0)

    def measure() -> None:
        for way in order.sample(range(len(ways)), len(ways)):
            seconds[way].append(ways[way]())

    benchmark.pedantic(measure, rounds=1 if quick else 3)
    of_whole, of_one, of_all = map(statistics.median, seconds)
    on_one, on_all = AIMS[num_leaves]
    rows = [
        ("whole tree", of_whole, ""),
        ("staged, one device", of_one, on_one),
        (f"staged, {min(STAGES, len(devices))} devices", of_all, on_all),
    ]
    for step, took, aim in rows:
        record(
            f"{len(jax.tree.leaves(tree))} leaves",
            step=step,
            s=took,
            ratio=took / of_whole,
            aim=aim,
        )


def whole(tree: Any) -> float:
    params, grads = (normal_like(tree, seed) for seed in (0, 1))
    params = put(params, jax.devices()[0])
    state = jax.jit(transformation().init)(params)
    jax.clear_caches()
    start = time.perf_counter()
    jax.block_until_ready(whole_tree_step()(params, state, grads))
    return time.perf_counter() - start


def staged(tree: Any, devices: Sequence[jax.Device]) -> float:
    owners = partition(tree)
    places = [devices[s % len(devices)] for s in range(STAGES)]
    params, grads = (
        tuple(map(put, owners.split(normal_like(tree, seed)), places))
        for seed in (0, 1)
    )
    jax.clear_caches()
    start = time.perf_counter()
    made = fo.stage_local(transformation(), tree, owners, meshes=places, donate=True)
    derived = time.perf_counter()
    states = jax.block_until_ready(made.init(params))
    initialized = time.perf_counter()
    jax.block_until_ready(made.step(grads, states, params))
    return time.perf_counter() - initialized + derived - start
