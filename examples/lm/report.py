"""The end of a training run in words: results, costs, and what to try next."""

import statistics
import time

import equinox as eqx
import functional_opt as fo
import jax

from .comparison import checksum
from .picture import Story
from .training import Run, Updates


REPEATS = 9

NEXT = """\
try next
  python -m nox -s train -- --stages 2 --optimizer lion
  python -m nox -s train -- --checkpoint out/run    # stop it; resume with --stages 2
  python -m nox -s train -- --processes 2
"""


def milliseconds(optimizer: Updates, run: Run) -> float:
    """The median time of an update at the end of a run, its results included."""
    grads = eqx.filter(run.pieces, eqx.is_inexact_array)
    times = []
    for _ in range(REPEATS):
        jax.block_until_ready((grads, run.pieces, run.states))
        start = time.perf_counter()
        jax.block_until_ready(optimizer.step(grads, run.states, run.pieces))
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def costs(staged: fo.StageLocal, by_stage: float, at_once: float) -> str:
    """What a step exchanges, and the milliseconds of both kinds of updates."""
    return (
        f"{sum(staged.bytes_sent)} bytes exchanged per step; "
        f"an update is {by_stage:.1f} ms by stage, "
        f"{at_once:.1f} ms on one device with the transfers to it and back"
    )


def report(story: Story) -> str:
    """The results."""
    return "\n".join(
        [
            f"last loss          {story.staged[-1]:.3f} by stage, "
            f"{story.whole[-1]:.3f} whole tree",
            f"parameters         {story.verdict}",
            f"costs              {story.costs}",
            f"validation loss    {story.validation:.3f} bits per byte",
            f"byte frequencies   {story.unigram:.3f} bits per byte",
        ]
    )


def checksums(run: Run) -> str:
    """A line for each stage of this process: equal bits have equal lines."""
    return "\n".join(
        f"stage {stage}            parameters {checksum(piece)}"
        for stage, piece in enumerate(run.pieces)
        if piece is not None
    )
