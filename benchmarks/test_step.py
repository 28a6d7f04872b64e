"""A step.

AdamW with a clip by the global norm, in float32, with 40 matrices on each of 8 stages.
*Whole tree* is one jitted Optax step on one device. Its parameters and state are
donated in the order in which they are returned, so that they are updated in place;
staged steps donate as well. *One program, sharded leaves* is that step with the rows of
each leaf on the devices of all stages: what a program has that knows no stages. It adds
up each norm over all devices, and launches every kernel on each of them. *By hand* is
this update written for stages, without this library, as described under *Host time*.
*eformer* updates with `apply_gradients_stage_local`, on the devices of the stages.

*Limit* is the fraction of the memory bandwidth. A step reads the gradients for the
norm, then reads gradients, parameters and two moments, and writes the last three: 32
bytes per parameter. The bandwidth is that of `b = b / 2 + c` on as many numbers as
there are parameters, on all devices of the stages at once, in the same rounds.

*Cores* is the number of busy cores of the machine, for the host and its devices. If
nearly all are busy, no other order of the same work is faster.

XLA for CPU compiles five kernels per leaf, which move 60 bytes per parameter, partly in
caches. Recomputing the division of the gradients by their norm in each kernel that
reads them leaves four kernels and 44 bytes, but saved only 2 to 4 % of the time, and
changed the last bit of the first moment (the compiler seems to contract another
product). Therefore it is not done.
"""

import functools
from typing import Any, NamedTuple

import functional_opt as fo
import jax
import jax.numpy as jnp
import pytest
from modes import by_hand, Mode, modes, PEER, SHARDED, STAGED, WHOLE
from timing import interleaved, milliseconds, Times
from trees import shapes, size


STAGES, LEAVES_A_STAGE = 8, 40
BYTES = 32  # a parameter
BY_HAND = "by hand, all devices"
TRIAD = "`b = b / 2 + c`"


class Aim(NamedTuple):
    """The largest ratio to the time of the whole tree, the smallest to other speeds."""

    of_whole: float
    of_peer: float
    of_sharded: float
    of_limit: float | None = None


SIZES = [
    pytest.param(64, 60, Aim(1.1, 5.0, 5.0), id="2M"),
    pytest.param(256, 30, Aim(0.85, 3.3, 2.7, 0.55), id="31M"),
    pytest.param(384, 20, Aim(0.9, 2.6, 2.0, 0.55), id="71M"),
]


@pytest.mark.parametrize("width, rounds, aim", SIZES)
def test_step(width, rounds, aim, quick, benchmark, record):
    num_leaves = STAGES * (8 if quick else LEAVES_A_STAGE)
    tree = shapes(num_leaves, STAGES, width // 8 if quick else width)
    running = {name: make(tree) for name, make in modes().items()}
    if len(jax.devices()) >= STAGES:
        running[BY_HAND] = by_hand(tree, jax.devices()[:STAGES])
    check(running)
    steps = {name: mode.step for name, mode in running.items()}
    times: dict[str, Times] = {}

    def measure() -> None:
        everything = {**steps, TRIAD: triad(tree)}
        times.update(interleaved(everything, 5 if quick else rounds))

    benchmark.pedantic(measure, rounds=1)
    medians = {name: measured.median for name, measured in times.items()}
    params = f"{size(tree) / 1e6:.2g} M"
    moved = dict.fromkeys(steps, BYTES * size(tree)) | {TRIAD: 12 * size(tree)}
    speeds = {name: moved[name] / medians[name] for name in moved}
    whole = min(medians[name] for name in steps if name.startswith(WHOLE))
    for name in moved:
        record(
            "Times",
            parameters=params,
            step=name,
            ms=milliseconds(times[name].passed),
            cores=times[name].cores,
            **{
                "time / faster whole tree": medians[name] / whole,
                "GB/s": speeds[name] / 1e9,
                "limit": speeds[name] / speeds[TRIAD],
            },
        )

    def compare(what: str, ratio: float, aim: str) -> None:
        record("Staged", parameters=params, what=what, ratio=ratio, aim=aim)

    time = medians[STAGED]
    compare("time / faster whole tree", time / whole, f"<= {aim.of_whole}")
    if BY_HAND in medians:
        compare("time / by hand", time / medians[BY_HAND], "<= 1.1")
    sharded = medians[SHARDED] / time
    compare("speed / one program, sharded leaves", sharded, f">= {aim.of_sharded}")
    if PEER in medians:
        compare("speed / eformer", medians[PEER] / time, f">= {aim.of_peer}")
    if aim.of_limit is not None:
        limit = speeds[STAGED] / speeds[TRIAD]
        compare("speed / limit", limit, f">= {aim.of_limit}")


def check(running: dict[str, Mode]) -> None:
    """Asserts that staged steps equal those of the whole tree."""
    for mode in running.values():
        jax.block_until_ready(mode.step())
    expected = running[WHOLE].params()
    for name, mode in running.items():
        if name.startswith((WHOLE, "staged", SHARDED, BY_HAND)):
            fo.testing.assert_equal(mode.params(), expected, grade="bounded")


def triad(tree: Any) -> Any:
    """Reads two vectors and writes one, in place, split over all devices."""
    devices = jax.devices()[:STAGES]
    count = size(tree) // len(devices)

    @functools.partial(jax.jit, donate_argnums=0)
    def add(one: Any, other: Any) -> Any:
        return 0.5 * one + other

    def vectors() -> list[Any]:
        return [jax.device_put(jnp.ones(count), device) for device in devices]

    held, others = vectors(), vectors()

    def step() -> Any:
        held[:] = map(add, held, others)
        return held

    return step
