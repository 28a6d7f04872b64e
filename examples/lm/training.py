"""The training loop, and the two kinds of update that it runs with."""

import itertools
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import equinox as eqx
import functional_opt as fo
import jax
import numpy as np
import optax
from jaxtyping import Float, PyTree

from .display import Display
from .pipeline import Pieces, Pipeline, Scalar
from .text import Batch


@runtime_checkable
class Updates(Protocol):
    """The interface of an optimizer for the loop, stage-local or not."""

    def step(
        self, grads: Pieces, states: Any, pieces: Pieces, /
    ) -> tuple[Pieces, Any]: ...


class Progress(NamedTuple):
    """The progress of a training run."""

    step: int
    pieces: Pieces
    states: Any


class Run(NamedTuple):
    """A finished training run. Losses before its first checkpoint are NaN.

    All losses are NaN in a process that does not receive them.
    """

    losses: Float[np.ndarray, " steps"]
    pieces: Pieces
    states: Any


class WholeTree:
    """The same optimizer in plain Optax: all parameters, on one device.

    It is the reference for the stage-local update.
    """

    def __init__(
        self,
        tx: optax.GradientTransformation,
        partition: fo.StagePartition,
        pipeline: Pipeline,
    ):
        self._tx = tx
        self._partition = partition
        self._pipeline = pipeline
        self._update = jax.jit(self._update_and_apply)

    def step(
        self, grads: Pieces, state: optax.OptState, pieces: Pieces
    ) -> tuple[Pieces, optax.OptState]:
        """Moves all trees to one device, updates them, and moves them back."""
        params, state = self._update(self._gather(grads), state, self._gather(pieces))
        rest = eqx.filter(pieces[0], eqx.is_array, inverse=True)
        updated = self._partition.split(eqx.combine(params, rest))
        return self._pipeline.place(updated), state

    def _update_and_apply(
        self, grads: PyTree, state: optax.OptState, params: PyTree
    ) -> tuple[PyTree, optax.OptState]:
        updates, state = self._tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    def _gather(self, pieces: Pieces) -> PyTree:
        arrays = [eqx.filter(piece, eqx.is_inexact_array) for piece in pieces]
        return eqx.combine(*jax.device_put(arrays, self._pipeline.devices[0]))


def train(
    optimizer: Updates,
    progress: Progress,
    pipeline: Pipeline,
    batches: Iterable[Batch],
    display: Display,
    save: Callable[[Progress], None] = lambda progress: None,
) -> Run:
    """Trains on all batches in order, except for those that are completed."""
    losses: list[Scalar] = []
    display.skip(progress.step)
    for batch in itertools.islice(batches, progress.step, None):
        step, pieces, states = progress
        loss, grads = pipeline.loss_and_grads(pieces, batch)
        pieces, states = optimizer.step(grads, states, pieces)
        progress = Progress(step + 1, pieces, states)
        save(progress)
        if loss is None:
            continue
        losses.append(loss)
        # Reading the loss of the step before the last one hardly blocks, and keeps this
        # loop from running far ahead of the devices.
        display.advance(bits(losses[max(len(losses) - 2, 0)]), batch.inputs.size)
    missed = progress.step - len(losses)
    curve = [math.nan] * missed + [bits(loss) for loss in losses]
    return Run(np.array(curve), progress.pieces, progress.states)


def bits(loss: Scalar) -> float:
    """A loss in bits per byte, on the host: this waits for it."""
    return float(loss) / math.log(2)
