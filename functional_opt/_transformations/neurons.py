"""Updates of equal size for every neuron of a matrix."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree
from optax.contrib import MuonDimensionNumbers

from .._types import Scalar
from .leafwise import leafwise
from .norms import norm_along


class NeuronState(NamedTuple):
    """The moving average of each neuron's mean square; 1 where axes are reduced."""

    mean_squares: PyTree


class Scaled(NamedTuple):
    """An update and the new average."""

    update: jax.Array
    mean_square: jax.Array


def scale_by_neurons(
    decay: Scalar, eps: Scalar, numbers: Callable[[PyTree], PyTree]
) -> optax.GradientTransformation:
    """Divides each neuron by its root mean square; the norm of a matrix stays.

    **Arguments:**

    - `decay`: exponential decay rate of the mean squares.
    - `eps`: added to denominators.
    - `numbers`: the `MuonDimensionNumbers` of each parameter.
    """

    def init(params: Any) -> NeuronState:
        def zeros(leaf: Any, axes: MuonDimensionNumbers) -> jax.Array:
            reduced = _axes(axes.reduction_axis, leaf.ndim)
            shape = [1 if i in reduced else n for i, n in enumerate(leaf.shape)]
            real = jnp.finfo(leaf.dtype).dtype
            return jnp.zeros(shape, jnp.promote_types(real, jnp.float32))

        return NeuronState(jax.tree.map(zeros, params, numbers(params)))

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        del params

        def scale(step: Any, average: Any, axes: MuonDimensionNumbers) -> Scaled:
            reduced = _axes(axes.reduction_axis, step.ndim)
            matrix = (*reduced, *_axes(axes.output_axis, step.ndim))
            wide = step.astype(jnp.promote_types(step.dtype, average.dtype))
            squares = jnp.mean(jnp.square(jnp.abs(wide)), reduced, keepdims=True)
            average = (decay * average + (1 - decay) * squares).astype(average.dtype)
            scaled = wide / (jnp.sqrt(average) + eps)
            size = norm_along(scaled, matrix)
            ratio = norm_along(wide, matrix) / jnp.maximum(size, eps)
            return Scaled((scaled * ratio).astype(step.dtype), average)

        scaled = leafwise(Scaled, scale, updates, state.mean_squares, numbers(updates))
        return scaled.update, NeuronState(scaled.mean_square)

    return optax.GradientTransformation(init, update)


def scale_by_shape(
    factor: Callable[[int, int], Scalar], numbers: Callable[[PyTree], PyTree]
) -> optax.GradientTransformation:
    """Scales each update by a function of the numbers of its inputs and outputs."""

    def scale(step: Any, axes: MuonDimensionNumbers) -> jax.Array:
        inputs, outputs = (
            math.prod(step.shape[i] for i in _axes(one, step.ndim))
            for one in (axes.reduction_axis, axes.output_axis)
        )
        return factor(inputs, outputs) * step

    return optax.stateless(
        lambda updates, _: jax.tree.map(scale, updates, numbers(updates))
    )


def _axes(axes: Sequence[int] | int, ndim: int) -> tuple[int, ...]:
    found = (axes,) if isinstance(axes, int) else tuple(axes)
    return tuple(axis % ndim for axis in found)
