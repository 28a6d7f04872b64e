"""Sends the message of each stage as soon as its gradients are computed.

There are four stages, each on its own device. The backward pass runs from the last
stage to the first, and `StageLocal.step` exchanges messages only after all of it. This
custom schedule calls the pure functions of each stage instead. The last stages send
their parts of the global norm while the first stages still compute gradients; when the
first stage finishes, only its own message is missing.

    python examples/overlap.py
"""

import functools
from collections.abc import Sequence
from typing import Any

import functional_opt as fo
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree
from lm.pipeline import stage_devices


STAGES, WIDTH, SEQUENCES, STEPS = 4, 256, 32, 5

Piece = list[Any]


class Schedule:
    """Forward pass, backward pass and update of all stages, in a custom order."""

    def __init__(self, staged: fo.StageLocal, devices: Sequence[Any]):
        self.log: list[str] = []
        self._devices = devices
        self._forward = jax.jit(layer)
        self._backward = jax.jit(lambda w, x, above: jax.vjp(layer, w, x)[1](above))
        self._say = [
            jax.jit(functools.partial(program.message, 0))
            for program in staged.programs
        ]
        self._finish = [jax.jit(program.step) for program in staged.programs]

    def step(
        self, pieces: Sequence[Piece], states: Sequence[PyTree], x: Array, target: Array
    ) -> tuple[list[Piece], list[PyTree]]:
        """One training step, which never waits for a result."""
        entered = [x]
        for stage in range(STAGES):
            left = self._forward(pieces[stage][stage], entered[stage])
            entered.append(jax.device_put(left, self._devices[(stage + 1) % STAGES]))
        above = jax.device_put(entered[-1] - target, self._devices[-1])
        grads: list[Piece] = [[None] * STAGES for _ in range(STAGES)]
        heard: list[list[Any]] = [[None] * STAGES for _ in range(STAGES)]
        for stage in reversed(range(STAGES)):
            grad, below = self._backward(pieces[stage][stage], entered[stage], above)
            grads[stage][stage] = grad
            self.log.append(f"gradients of stage {stage}")
            said = self._say[stage](grads[stage], states[stage], pieces[stage])
            for reader, device in enumerate(self._devices):
                heard[reader][stage] = jax.device_put(said, device)
            self.log.append(f"message of stage {stage}")
            above = jax.device_put(below, self._devices[stage - 1])
        stepped = [
            self._finish[stage](
                grads[stage], states[stage], pieces[stage], [heard[stage]]
            )
            for stage in range(STAGES)
        ]
        return [new for new, _ in stepped], [state for _, state in stepped]


def layer(weight: Array, x: Array) -> Array:
    """One stage of the model."""
    return x + jnp.tanh(x @ weight)


def whole_step(
    tx: optax.GradientTransformation,
    params: Piece,
    state: PyTree,
    x: Array,
    target: Array,
) -> tuple[Any, PyTree]:
    """The same with plain Optax, on the whole tree."""

    def loss(params: Piece) -> Array:
        return 0.5 * jnp.sum(
            (functools.reduce(lambda x, w: layer(w, x), params, x) - target) ** 2
        )

    updates, state = tx.update(jax.grad(loss)(params), state, params)
    return optax.apply_updates(params, updates), state


def main() -> None:
    devices = stage_devices(STAGES)
    keys = jax.random.split(jax.random.key(0), STAGES + 2)
    params = [jax.random.normal(key, (WIDTH, WIDTH)) / 16 for key in keys[:STAGES]]
    x, target = (jax.random.normal(key, (SEQUENCES, WIDTH)) for key in keys[STAGES:])
    tx = fo.Recipe(
        optimizer=fo.AdamW(), schedule=fo.Constant(1e-3), clip_norm=1.0
    ).build()
    partition = fo.partition(params, list(range(STAGES)))
    staged = fo.stage_local(tx, params, partition)
    schedule = Schedule(staged, devices)
    pieces = jax.device_put(partition.split(params), tuple(devices))
    states = staged.init(pieces)
    reference = jax.jit(functools.partial(whole_step, tx))
    state = tx.init(params)
    placed = jax.device_put(x, devices[0]), jax.device_put(target, devices[0])
    for _ in range(STEPS):
        pieces, states = schedule.step(pieces, states, *placed)
        params, state = reference(params, state, x, target)
    print("\n".join(schedule.log[: 2 * STAGES]))
    merged = partition.merge(tuple(jax.device_get(pieces)))
    apart = max(
        float(np.abs(ours - theirs).max() / np.abs(theirs).max())
        for ours, theirs in zip(merged, map(np.asarray, params), strict=True)
    )
    print(f"after {STEPS} steps {apart:.0e} of the largest entry from plain Optax")


if __name__ == "__main__":
    main()
