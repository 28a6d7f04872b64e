"""Deriving the programs.

`stage_local` traces the whole update, as `jax.jit` does, and splits it. *Trace* is the
time of `jax.make_jaxpr` of the update alone, *stage_local* includes another trace, and
*slice* is the time to create the programs of all stages, before JAX compiles them. The
update is AdamW with a clip by the global norm. All of this is Python code on one core,
and the times are CPU times. The aim is 15 s for 2,000 leaves in 32 stages, and the same
time per leaf for fewer leaves.
"""

import statistics
import time
from typing import Any

import functional_opt as fo
import jax
import optax
import pytest
from trees import partition, shapes, transformation


LEAVES = (250, 500, 1000, 2000)
STAGES = (4, 8, 16, 32, 64)
SMALL = 8


@pytest.mark.parametrize("num_leaves", LEAVES)
def test_derivation_as_leaves_grow(num_leaves, quick, benchmark, record):
    num_leaves //= SMALL if quick else 1
    record("Leaves grow", **measure(num_leaves, 32, quick, benchmark))


@pytest.mark.parametrize("num_stages", STAGES)
def test_derivation_as_stages_grow(num_stages, quick, benchmark, record):
    num_leaves = 1024 // (SMALL if quick else 1)
    record("Stages grow", **measure(num_leaves, num_stages, quick, benchmark))


def measure(
    num_leaves: int, num_stages: int, quick: bool, benchmark: Any
) -> dict[str, Any]:
    params = shapes(num_leaves, num_stages, width=8)
    owners, tx, seconds = partition(params), transformation(), []

    def derive() -> None:
        start = time.process_time()
        trace(tx, params)
        traced = time.process_time()
        fo.stage_local(tx, params, owners)
        derived = time.process_time()
        seconds.append((traced - start, derived - traced))

    benchmark.pedantic(derive, rounds=1 if quick else 3)
    traced, derived = map(statistics.median, zip(*seconds, strict=True))
    return {
        "leaves": num_leaves,
        "stages": num_stages,
        "trace, s": traced,
        "stage_local, s": derived,
        "ms a leaf": 1e3 * derived / num_leaves,
    }


def trace(tx: optax.GradientTransformationExtraArgs, params: Any) -> None:
    """Traces the whole update, as `jax.jit` would."""

    def update(grads: Any, state: Any, params: Any) -> Any:
        updates, state = tx.update(grads, state, params)
        return updates, optax.apply_updates(params, updates), state

    jax.make_jaxpr(update)(params, jax.eval_shape(tx.init, params), params)
