"""Forward and backward, stage by stage and microbatch by microbatch.

Nothing here waits for a result. Each device works through its own queue and starts on
whatever has its inputs, so the pipeline fills and drains by itself.
"""

import functools
import os
from collections.abc import Iterable, Sequence
from functools import partial
from typing import TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from .model import cross_entropy, Model
from .text import Batch


# To pyright `jax.Device` is a variable, since jaxlib does not say what it is.
Device: TypeAlias = jax.Device  # pyright: ignore[reportInvalidTypeForm]
Pieces = tuple[Model, ...]
Activations = Float[Array, "sequences length width"]
Scalar = Float[Array, ""]


def stage_devices(stages: int) -> list[Device]:
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
    """A model cut into stages, each with a device and programs of its own."""

    def __init__(self, pieces: Pieces, devices: Sequence[Device]):
        self.devices = tuple(devices)
        self._stages = [_Stage(stage, piece) for stage, piece in enumerate(pieces)]

    def __str__(self) -> str:
        return ", ".join(str(device) for device in self.devices)

    def place(self, pieces: Pieces) -> Pieces:
        """A copy of each stage's piece, on its device."""
        return tuple(
            _copy_to(device, piece)
            for device, piece in zip(self.devices, pieces, strict=True)
        )

    def loss(self, pieces: Pieces, batch: Batch) -> Scalar:
        """The mean loss of a batch, on the last stage's device."""
        params = [_params(piece) for piece in pieces]
        losses = [
            self._stages[-1].loss(params[-1], self._forward(params, x)[-1], targets)
            for x, targets in self._microbatches(batch)
        ]
        return jnp.stack(losses).mean()

    def loss_and_grads(self, pieces: Pieces, batch: Batch) -> tuple[Scalar, Pieces]:
        """The mean loss of a batch and its gradients, each on its stage's device."""
        params = [_params(piece) for piece in pieces]
        microbatches = list(self._microbatches(batch))
        entered = [self._forward(params, x) for x, _ in microbatches]
        parts = (
            self._backward(params, xs, targets, 1 / len(microbatches))
            for xs, (_, targets) in zip(entered, microbatches, strict=True)
        )
        *grads, loss = functools.reduce(_add_each, parts)
        return loss, tuple(grads)

    def _microbatches(self, batch: Batch) -> Iterable[tuple[Array, Array]]:
        for inputs, targets in zip(batch.inputs, batch.targets, strict=True):
            yield (
                jax.device_put(inputs, self.devices[0]),
                jax.device_put(targets, self.devices[-1]),
            )

    def _forward(self, params: Sequence[Model], x: Array) -> list[Array]:
        """What enters each stage, on the stage's device."""
        entered = [x]
        for stage, device in enumerate(self.devices[1:]):
            left = self._stages[stage].forward(params[stage], entered[stage])
            entered.append(jax.device_put(left, device))
        return entered

    def _backward(
        self,
        params: Sequence[Model],
        entered: list[Array],
        targets: Array,
        share: float,
    ) -> list[PyTree]:
        """The gradients of each stage, and behind them the loss, times `share`."""
        last = len(self._stages) - 1
        loss, (grads, above) = self._stages[last].loss_and_grads(
            params[last], entered[last], targets, share
        )
        results = [loss, grads]
        for stage in reversed(range(last)):
            above = jax.device_put(above, self.devices[stage])
            grads, above = self._stages[stage].backward(
                params[stage], entered[stage], above
            )
            results.append(grads)
        return results[::-1]


class _Stage:
    """The programs of one stage.

    They are `jax.jit`, not `eqx.filter_jit`: that one waits for each result, and then
    no two stages would ever work at the same time.
    """

    def __init__(self, stage: int, piece: Model):
        self._stage = stage
        self._rest = eqx.filter(piece, eqx.is_inexact_array, inverse=True)
        self.forward = jax.jit(self._run)
        self.loss = jax.jit(self._loss)
        self.loss_and_grads = jax.jit(self._loss_and_grads)
        self.backward = jax.jit(self._backward)

    def _run(self, params: Model, x: Array) -> Array:
        model = eqx.combine(params, self._rest)
        return jax.vmap(model.stage(self._stage))(x)

    def _loss(self, params: Model, x: Array, targets: Array) -> Scalar:
        return cross_entropy(self._run(params, x), targets)

    def _loss_and_grads(
        self, params: Model, x: Array, targets: Array, share: Scalar
    ) -> tuple[Scalar, tuple[Model, Array | None]]:
        return eqx.filter_value_and_grad(
            lambda both: share * self._loss(both[0], both[1], targets)
        )((params, x))

    def _backward(
        self, params: Model, x: Array, above: Activations
    ) -> tuple[Model, Activations | None]:
        # Runs the stage again: as fast here as keeping all that is inside it.
        _, pull_back = eqx.filter_vjp(self._run, params, x)
        return pull_back(above)


def _params(piece: Model) -> Model:
    return eqx.filter(piece, eqx.is_inexact_array)


def _copy_to(device: Device, piece: Model) -> Model:
    arrays, rest = eqx.partition(piece, eqx.is_array)
    return eqx.combine(jax.device_put(arrays, device, may_alias=False), rest)


def _add_each(total: list[PyTree], part: list[PyTree]) -> list[PyTree]:
    return [_add(mine, more) for mine, more in zip(total, part, strict=True)]


@partial(jax.jit, donate_argnums=0)
def _add(total: PyTree, part: PyTree) -> PyTree:
    return jax.tree.map(jnp.add, total, part)
