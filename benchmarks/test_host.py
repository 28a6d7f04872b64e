"""The host's time.

How long Python is busy until a step returns, with 40 leaves a stage and each stage on a
device of its own (as far as there are so many), and with matrices so small that
computing takes next to nothing. A process for each number of stages.

*`jax.jit` alone* is a call of a jitted function for each stage, with as many arrays as
a step has, 120 of them donated and returned: what JAX takes for a stage grows with all
the arrays that there are. A stage's piece has None for each leaf of the others, too,
which takes JAX 23 ns a tree.
"""

import pytest
from worker import measure


STAGES = (2, 4, 8, 16, 32, 64)


@pytest.mark.parametrize("num_stages", STAGES)
def test_host_time(num_stages, quick, benchmark, record):
    num_leaves = 8 if quick else 40
    if quick and num_stages > 16:
        pytest.skip("compiles too long for a quick look")
    seconds = []

    def run() -> None:
        seconds.append(measure(num_stages, "host", num_stages, num_leaves))

    benchmark.pedantic(run, rounds=1)
    ((step, alone),) = seconds
    record(
        "Time until a step returns",
        stages=num_stages,
        ms=1e3 * step,
        **{
            "us a stage": 1e6 * step / num_stages,
            "aim": "<= 600",
            "`jax.jit` alone, us a stage": 1e6 * alone / num_stages,
        },
    )
