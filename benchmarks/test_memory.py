"""Memory.

The peak memory of a step above the memory between steps, in units of the size of the
parameters, for 8 stages of 40 matrices of width 384: resident memory on CPU, and
allocations on other devices. Each measurement runs in its own process.
"""

import pytest
from modes import modes, STAGED
from worker import measure, STAGES


OF_JAX = [name for name in modes() if not name.startswith("torch")]


@pytest.mark.parametrize("mode", OF_JAX)
def test_memory(mode, quick, benchmark, record):
    width, num_leaves = (64, 64) if quick else (384, 320)
    above = []

    def run() -> None:
        above.append(measure(STAGES, "memory", width, num_leaves, mode))

    benchmark.pedantic(run, rounds=1)
    aim = "<= 0.15" if mode == STAGED else ""
    record("Peak above resident", step=mode, parameters=above[0], aim=aim)
