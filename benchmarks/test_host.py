"""Host time.

The time until a step returns, spent in Python on the host, with 40 leaves per stage,
each stage on its own virtual CPU device, and matrices so small that the computation
itself is negligible. Each number of stages runs in its own process, with Python's
garbage collector off while it measures.

*`jax.jit` alone* is one call of a jitted function per stage, with as many arrays as a
step has, 120 of them donated and returned: the overhead of JAX per stage grows with the
number of arrays. *By hand* is this transformation written for stages, without this
library: two jitted functions per stage, called in two loops, with one all-gather of the
norms in between, and nothing is checked. Most of that time is spent in JAX. There, each
stage has a tree of its own leaves alone; *by hand, pieces* has the trees of a staged
step, with None in place of the leaves of all other stages. The ratios are to `jax.jit`
alone, and medians of the ratios in each round.
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
        seconds.append(
            measure(num_stages, "host", num_stages, num_leaves, platforms="cpu")
        )

    benchmark.pedantic(run, rounds=1)
    (found,) = seconds
    step, ratio = found.pop("staged")
    alone, _ = found.pop("alone")
    record(
        "Time until a step returns",
        stages=num_stages,
        ms=1e3 * step,
        **{
            "us per stage": 1e6 * step / num_stages,
            **{
                f"{way}, us per stage": 1e6 * passed / num_stages
                for way, (passed, _) in found.items()
            },
            "`jax.jit` alone, us per stage": 1e6 * alone / num_stages,
            "ratio": ratio,
            **{f"ratio {way}": other for way, (_, other) in found.items()},
            "aim": "<= 1.6",
        },
    )
