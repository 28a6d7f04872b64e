"""Forward and backward passes, stage by stage and microbatch by microbatch.

The host never waits for a result. Each device runs its own queue, and starts an
operation when its inputs are ready, so the pipeline fills and drains by itself.
"""

import functools
import itertools
import os
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from .links import is_here, Link, Shape
from .model import cross_entropy, Model
from .text import Batch


# To pyright `jax.Device` is a variable, since jaxlib does not say what it is.
Device: TypeAlias = jax.Device  # pyright: ignore[reportInvalidTypeForm]
Pieces = tuple[Any, ...]  # of a Model; None for a stage of another process
Activations = Float[Array, "sequences length width"]
Scalar = Float[Array, ""]


def stage_devices(stages: int) -> list[Device]:
    """A device for each stage: accelerators if there are enough, else virtual CPUs.

    With several processes, the stages are distributed evenly. CPU devices can be added
    only before JAX is first used.
    """
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", stages)
    devices = _one_for_each(stages, jax.devices())
    devices = devices or _one_for_each(stages, jax.devices("cpu"))
    if not devices:
        raise RuntimeError(
            f"{stages} stages need {stages} devices, at least one in each process, and "
            f"there are {jax.device_count()} in {jax.process_count()} processes. Is a "
            "number of devices set in XLA_FLAGS?"
        )
    jax.config.update("jax_default_device", next(filter(is_here, devices)))
    return devices


def _one_for_each(stages: int, devices: Sequence[Device]) -> list[Device]:
    """Devices of the first process, then of the second; empty if there are too few."""
    count = jax.process_count()
    unused = [
        [device for device in devices if device.process_index == process][::-1]
        for process in range(count)
    ]
    owners = [stage * count // stages for stage in range(stages)]
    enough = all(owners.count(p) <= len(own) for p, own in enumerate(unused))
    if stages < count or not enough:
        return []
    return [unused[process].pop() for process in owners]


class Pipeline:
    """A model that is split into stages, each with its own device and programs."""

    def __init__(self, pieces: Pieces, devices: Sequence[Device]):
        self.devices = tuple(devices)
        self._stages = [_Stage(stage, piece) for stage, piece in enumerate(pieces)]
        self._here = [is_here(device) for device in devices]
        self._shapes = jax.eval_shape(lambda: _params(pieces[0]))
        pairs = list(itertools.pairwise(self.devices))
        self._onward = [Link(source, target) for source, target in pairs]
        self._back = [Link(target, source) for source, target in pairs]

    def __str__(self) -> str:
        return ", ".join(str(device) for device in self.devices)

    @property
    def has_loss(self) -> bool:
        """Whether this process receives the losses."""
        return self._here[-1]

    def place(self, pieces: Pieces) -> Pieces:
        """A copy of the piece of each stage on its device; None for other processes."""
        return tuple(
            _copy_to(device, piece) if is_here(device) else None
            for device, piece in zip(self.devices, pieces, strict=True)
        )

    def loss(self, pieces: Pieces, batch: Batch) -> Scalar | None:
        """The mean loss of a batch, on the device of the last stage."""
        params = [_params(piece) for piece in pieces]
        lefts = [
            (self._forward(params, x)[-1], targets)
            for x, targets in self._microbatches(batch)
        ]
        if not self.has_loss:
            return None
        losses = [self._stages[-1].loss(params[-1], x, targets) for x, targets in lefts]
        return jnp.stack(losses).mean()

    def loss_and_grads(
        self, pieces: Pieces, batch: Batch
    ) -> tuple[Scalar | None, Pieces]:
        """The mean loss of a batch and its gradients, on the devices of the stages."""
        params = [_params(piece) for piece in pieces]
        microbatches = list(self._microbatches(batch))
        entered = [self._forward(params, x) for x, _ in microbatches]
        parts = (
            self._backward(params, xs, targets, 1 / len(microbatches))
            for xs, (_, targets) in zip(entered, microbatches, strict=True)
        )
        *grads, loss = functools.reduce(_add_each, parts)
        return loss, tuple(grads)

    def _microbatches(self, batch: Batch) -> Iterable[tuple[Any, Any]]:
        ends = self.devices[0], self.devices[-1]
        for both in zip(batch.inputs, batch.targets, strict=True):
            inputs, targets = (
                jax.device_put(array, device) if is_here(device) else array
                for array, device in zip(both, ends, strict=True)
            )
            yield inputs, targets

    @functools.cached_property
    def _hidden(self) -> Callable[[tuple[int, ...]], Shape]:
        """The shape and dtype of the activations between stages."""

        def hidden(shape: tuple[int, ...]) -> Shape:
            tokens = Shape(shape, jnp.int32)
            return jax.eval_shape(self._stages[0].forward, self._shapes, tokens)

        return functools.cache(hidden)

    def _forward(self, params: Sequence[Any], x: Any) -> list[Any]:
        """The input of each stage, on its device."""
        hidden = self._hidden(x.shape)
        entered = [x]
        for stage, link in enumerate(self._onward):
            left = None
            if self._here[stage]:
                left = self._stages[stage].forward(params[stage], entered[stage])
            entered.append(link.send(left, hidden))
        return entered

    def _backward(
        self, params: Sequence[Any], entered: list[Any], targets: Array, share: float
    ) -> list[PyTree]:
        """The gradients of each stage and the loss, scaled by `share`."""
        loss = grads = above = None
        if self.has_loss:
            loss, (grads, above) = self._stages[-1].loss_and_grads(
                params[-1], entered[-1], targets, share
            )
        results = [loss, grads]
        hidden = self._hidden(entered[0].shape)
        for stage, link in reversed(list(enumerate(self._back))):
            above, grads = link.send(above, hidden), None
            if self._here[stage]:
                grads, above = self._stages[stage].backward(
                    params[stage], entered[stage], above
                )
            results.append(grads)
        return results[::-1]


class _Stage:
    """The programs of one stage.

    They use `jax.jit` rather than `eqx.filter_jit`, which waits for each result: stages
    would never run at the same time.
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
    return [
        None if mine is None else _add(mine, more)
        for mine, more in zip(total, part, strict=True)
    ]


@partial(jax.jit, donate_argnums=0)
def _add(total: PyTree, part: PyTree) -> PyTree:
    return jax.tree.map(jnp.add, total, part)
