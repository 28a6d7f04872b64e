"""Memory.

The most memory of a step above what is there between steps, in units of the parameters'
size, at 71 M parameters: the resident memory on CPU, what the devices allocate
elsewhere. A process for each.
"""

import pytest
from modes import modes, STAGED
from worker import measure, STAGES


def of_jax(mode):
    return not mode.startswith("torch")


@pytest.mark.parametrize("mode", filter(of_jax, modes()))
def test_memory(mode, quick, benchmark, record):
    width, num_leaves = (64, 64) if quick else (384, 320)
    above = []

    def run() -> None:
        above.append(measure(STAGES, "memory", width, num_leaves, mode))

    benchmark.pedantic(run, rounds=1)
    aim = "<= 0.15" if mode == STAGED else ""
    record("Peak above resident", step=mode, parameters=above[0], aim=aim)
