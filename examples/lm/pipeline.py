"""Forward and backward, stage by stage and microbatch by microbatch.

Nothing here waits for a result. Each device works through its own queue and starts on
whatever has its inputs, so the pipeline fills and drains by itself.
"""

import os
from collections.abc import Iterable, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from .model import cross_entropy, Model
from .text import Batch


Pieces = tuple[Model, ...]
Activations = Float[Array, "sequences length width"]
Loss = Float[Array, ""]


def stage_devices(stages: int) -> list[jax.Device]:
    """A device for each stage: accelerators if there are enough, else virtual CPUs.

    CPU devices can be added only before JAX is first used.
    """
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", stages)
    devices = jax.devices()
    if len(devices) < stages:
        devices = jax.devices("cpu")
    if len(devices) < stages:
        raise RuntimeError(
            f"{stages} stages need {stages} devices, and there are {len(devices)}. "
            "Is a number of devices set in XLA_FLAGS?"
        )
    jax.config.update("jax_default_device", devices[0])
    return devices[:stages]


class Pipeline:
    """A model's stages on their devices, one device each."""

    def __init__(self, devices: Sequence[jax.Device]):
        self.devices = tuple(devices)

    def place(self, pieces: Pieces) -> Pieces:
        """A copy of each stage's piece, on its device."""
        return tuple(
            _copy_to(device, piece)
            for device, piece in zip(self.devices, pieces, strict=True)
        )

    def loss(self, pieces: Pieces, batch: Batch) -> Loss:
        """The mean loss of a batch, on the last stage's device."""
        last = len(self.devices) - 1
        scale = 1 / len(batch.inputs)
        losses = [
            _loss(
                pieces[last], last, self._forward(pieces, inputs)[last], targets, scale
            )
            for inputs, targets in self._microbatches(batch)
        ]
        return sum(losses[1:], losses[0])

    def loss_and_grads(self, pieces: Pieces, batch: Batch) -> tuple[Loss, Pieces]:
        """The mean loss of a batch and its gradients, each on its stage's device."""
        microbatches = list(self._microbatches(batch))
        entered = [self._forward(pieces, inputs) for inputs, _ in microbatches]
        total = None
        for reached, (_, targets) in zip(entered, microbatches, strict=True):
            part = self._backward(pieces, reached, targets, 1 / len(microbatches))
            total = part if total is None else tuple(map(_add, part, total))
        assert total is not None
        *grads, loss = total
        return loss, tuple(grads)

    def _microbatches(self, batch: Batch) -> Iterable[tuple[Array, Array]]:
        for inputs, targets in zip(batch.inputs, batch.targets, strict=True):
            yield (
                jax.device_put(inputs, self.devices[0]),
                jax.device_put(targets, self.devices[-1]),
            )

    def _forward(self, pieces: Pieces, inputs: Array) -> list[Array]:
        """What enters each stage, on the stage's device."""
        entered = [inputs]
        for stage, device in enumerate(self.devices[1:]):
            left = _forward(pieces[stage], stage, entered[stage])
            entered.append(jax.device_put(left, device))
        return entered

    def _backward(
        self, pieces: Pieces, entered: list[Array], targets: Array, scale: float
    ) -> tuple[PyTree, ...]:
        """The gradients of each stage's piece, and behind them the loss."""
        last = len(self.devices) - 1
        loss, grads, above = _loss_backward(
            pieces[last], last, entered[last], targets, scale
        )
        results = [loss, grads]
        for stage in reversed(range(last)):
            above = jax.device_put(above, self.devices[stage])
            grads, above = _backward(pieces[stage], stage, entered[stage], above)
            results.append(grads)
        return tuple(reversed(results))


def _copy_to(device: jax.Device, piece: Model) -> Model:
    arrays, rest = eqx.partition(piece, eqx.is_array)
    return eqx.combine(jax.device_put(arrays, device, may_alias=False), rest)


def _run(piece: Model, stage: int, x: Array) -> Array:
    return jax.vmap(piece.stages[stage])(x)


def _scaled_loss(
    piece: Model, stage: int, x: Array, targets: Array, scale: float
) -> Loss:
    return scale * cross_entropy(_run(piece, stage, x), targets)


_forward = eqx.filter_jit(_run)
_loss = eqx.filter_jit(_scaled_loss)


@eqx.filter_jit
def _loss_backward(
    piece: Model, stage: int, x: Array, targets: Array, scale: float
) -> tuple[Loss, Model, Array | None]:
    def loss(piece_and_x: tuple[Model, Array]) -> Loss:
        piece, x = piece_and_x
        return _scaled_loss(piece, stage, x, targets, scale)

    value, (grads, below) = eqx.filter_value_and_grad(loss)((piece, x))
    return value, grads, below


@eqx.filter_jit
def _backward(
    piece: Model, stage: int, x: Array, above: Activations
) -> tuple[Model, Activations | None]:
    """Runs the stage once more: cheaper to write than keeping what is inside it."""
    _, pull_back = eqx.filter_vjp(lambda piece, x: _run(piece, stage, x), piece, x)
    return pull_back(above)


@eqx.filter_jit(donate="all-except-first")
def _add(part: PyTree, total: PyTree) -> PyTree:
    return jax.tree.map(jnp.add, part, total)
