"""Updates each stage as soon as the backward pass leaves it, and draws a timeline.

There are four stages, each on its own device. The backward pass runs from the last
stage to the first. `StageLocal.step` requires the gradients of all stages, so it can
start only after all of it. With `StageLocal.begin`, each stage starts when its own
gradients are computed:

- Adam updates each parameter alone, so the last stages finish their update while the
  first ones still run backward.
- With a clip by the global norm, the last stages compute and send their parts of the
  norm meanwhile. After the backward pass, only the part of the first stage is missing.

    python examples/overlap.py [PICTURE]
"""

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import functional_opt as fo
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree
from lm.pipeline import stage_devices
from timeline import draw, Span, spans_of


STAGES, LAYERS, WIDTH, ROWS = 4, 6, 384, 768
PICTURE = Path("out") / "overlap.png"
COLOURS = {
    "forward": "#c3d0dd",
    "backward": "#4c84b8",
    "stage_messages": "#e8862d",
    "gather": "#f3cfa5",
    "stage_results": "#3a9a5b",
}
NAMES = {
    "forward": "forward",
    "backward": "backward",
    "stage_messages": "part of the norm",
    "gather": "exchange, waiting",
    "stage_results": "update",
}

# The layers of all stages; None in place of those of other stages.
Piece = list[Any]


def layers(weights: Sequence[Array], x: Array) -> Array:
    """One stage of the model."""
    return functools.reduce(lambda x, w: x + jnp.tanh(x @ w), weights, x)


@jax.jit
def forward(weights: Sequence[Array], x: Array) -> Array:
    return layers(weights, x)


@jax.jit
def backward(
    weights: Sequence[Array], x: Array, above: Array
) -> tuple[Sequence[Array], Array]:
    return jax.vjp(layers, weights, x)[1](above)


def gradients(
    pieces: Sequence[Piece], x: Array, target: Array, ready: Callable[[int, Piece], Any]
) -> None:
    """The forward and the backward pass; passes on the gradients of each stage."""
    devices = [jax.tree.leaves(piece)[0].device for piece in pieces]
    entered = [x]
    for stage in range(STAGES):
        left = forward(pieces[stage][stage], entered[stage])
        entered.append(jax.device_put(left, devices[min(stage + 1, STAGES - 1)]))
    above = entered[-1] - target
    for stage in reversed(range(STAGES)):
        grads, above = backward(pieces[stage][stage], entered[stage], above)
        piece: Piece = [[None] * LAYERS for _ in range(STAGES)]
        piece[stage] = grads
        ready(stage, piece)
        above = jax.device_put(above, devices[max(stage - 1, 0)])


def overlapped(
    staged: fo.StageLocal,
    pieces: Sequence[Piece],
    states: Sequence[PyTree],
    x: Array,
    target: Array,
) -> tuple[tuple[Piece, ...], tuple[PyTree, ...]]:
    """A training step, in which no stage waits longer than it must."""
    step = staged.begin(states, pieces)
    finished: dict[int, tuple[Piece, PyTree]] = {}

    def ready(stage: int, grads: Piece) -> None:
        step.start(stage, grads)
        for each in reversed(range(stage, STAGES)):
            if each not in finished and not step.waits_for(each):
                finished[each] = step.finish(each)

    gradients(pieces, x, target, ready)
    new, after = zip(*(finished[stage] for stage in range(STAGES)), strict=True)
    return new, after


def in_order(
    staged: fo.StageLocal,
    pieces: Sequence[Piece],
    states: Sequence[PyTree],
    x: Array,
    target: Array,
) -> tuple[tuple[Piece, ...], tuple[PyTree, ...]]:
    """The same step, with all gradients first."""
    grads: dict[int, Piece] = {}
    gradients(pieces, x, target, grads.__setitem__)
    return staged.step([grads[stage] for stage in range(STAGES)], states, pieces)


def measure(tx: optax.GradientTransformation) -> list[Span]:
    """The timeline of a step; compares it with the one after all gradients."""
    devices = stage_devices(STAGES)
    keys = iter(jax.random.split(jax.random.key(0), STAGES * LAYERS + 2))
    params = [
        [jax.random.normal(next(keys), (WIDTH, WIDTH)) / WIDTH for _ in range(LAYERS)]
        for _ in range(STAGES)
    ]
    x, target = (jax.random.normal(key, (ROWS, WIDTH)) for key in keys)
    batch = jax.device_put(x, devices[0]), jax.device_put(target, devices[-1])
    partition = fo.partition(params, list(range(STAGES)))
    staged = fo.stage_local(tx, params, partition)
    pieces = jax.device_put(partition.split(params), tuple(devices))
    given = staged, pieces, staged.init(pieces), *batch
    expected, found = in_order(*given), overlapped(*given)
    for ours, theirs in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        assert np.array_equal(ours, theirs)
    return spans_of(lambda: overlapped(*given))


def times(spans: Sequence[Span], program: str) -> dict[int, float]:
    """When a program ended on each stage."""
    return {span.device: span.end for span in spans if span.program == program}


def main(path: Path = PICTURE) -> Mapping[str, list[Span]]:
    adam = optax.adam(1e-3)
    panels = {
        "Adam": measure(adam),
        "Clip by the global norm, then Adam": measure(
            optax.chain(optax.clip_by_global_norm(1.0), adam)
        ),
    }
    last = STAGES - 1
    for (title, spans), program in zip(
        panels.items(), ("stage_results", "stage_messages"), strict=True
    ):
        end, done = times(spans, "backward")[0], times(spans, program)[last]
        print(
            f"{title}: on stage {last}, the {NAMES[program]} is computed after "
            f"{done:.0f} ms; the backward pass ends on stage 0 after {end:.0f} ms."
        )
    print("Parameters and states equal those of `step` bit for bit.")
    draw(panels, COLOURS, NAMES, path)
    print(f"The timeline is in {path}.")
    return panels


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
