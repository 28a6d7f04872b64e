"""The host's time.

How long Python is busy until a step returns, with 40 leaves a stage and each stage on a
device of its own (as far as there are so many), and with matrices so small that
computing takes next to nothing. A process for each number of stages.
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
    record(
        "Time until a step returns",
        stages=num_stages,
        ms=1e3 * seconds[0],
        **{"us a stage": 1e6 * seconds[0] / num_stages, "aim": "<= 600"},
    )
