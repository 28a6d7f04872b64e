"""Linear minimization over norm balls, with a norm per kind of parameter."""

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from .._types import Scalar
from .newton_schulz import orthogonalize


Norm = Literal[
    "Auto", "SpectralConv", "ColNorm", "RowNorm", "BiasRMS", "Spectral", "Sign"
]

EPS = 1e-8


def minimize_over_ball(
    norm: Norm,
    normalized: bool | None,
    transpose: bool,
    max: bool,
    steps: int,
    scale: Scalar,
) -> optax.GradientTransformation:
    """The point of a ball of radius `scale` with the largest product with the update.

    The norms are those of [Pethick et al. 2025](https://arxiv.org/abs/2502.07529). It
    is the negative of a linear minimization oracle, since updates are subtracted.
    """

    def largest(leaf: Array) -> Array:
        name = norm_of(leaf) if norm == "Auto" else norm
        matrix = _transposed(name, leaf) if transpose else leaf
        match name:
            case "BiasRMS":
                point = _bias_rms(matrix)
            case "SpectralConv":
                point = _spectral_conv(matrix, steps)
            case "Spectral":
                point = _spectral(matrix, normalized is not False, max, steps)
            case "ColNorm":
                point = _col_norm(matrix, normalized is True)
            case "RowNorm":
                point = _row_norm(matrix, normalized is not False)
            case _:
                point = _sign(matrix, normalized is not False)
        return (_transposed(name, point) if transpose else point) * scale

    def init(params: PyTree) -> optax.EmptyState:
        for leaf in jax.tree.leaves(params):
            _check_rank(norm, leaf)
        return optax.EmptyState()

    def update(
        updates: PyTree, state: Any, params: PyTree | None = None
    ) -> tuple[PyTree, optax.EmptyState]:
        del params
        return jax.tree.map(largest, updates), state

    return optax.GradientTransformation(init, update)


def norm_of(leaf: Array) -> Norm:
    """The norm that "Auto" selects."""
    if leaf.ndim < 2:
        return "BiasRMS"
    return "Spectral" if leaf.ndim == 2 else "SpectralConv"


def _check_rank(norm: Norm, leaf: Array) -> None:
    rank = {"Auto": 0, "BiasRMS": 0, "SpectralConv": 3}.get(norm, 2)
    if leaf.ndim < rank:
        raise ValueError(
            f"`Scion.norm` {norm!r} requires parameters of rank {rank} or more, got "
            f"one of shape {leaf.shape}. Use a `Scion` with another norm for it."
        )


def _transposed(norm: Norm, leaf: Array) -> Array:
    """Swaps inputs and outputs."""
    if norm == "BiasRMS":
        return leaf
    return leaf.T if norm == "SpectralConv" else leaf.mT


def _bias_rms(vector: Array) -> Array:
    axis = None if vector.ndim == 0 else -1
    rms = jnp.sqrt(jnp.mean(jnp.square(vector), axis, keepdims=True))
    return vector / (rms + EPS)


def _spectral(matrix: Array, normalized: bool, at_least_1: bool, steps: int) -> Array:
    outputs, inputs = matrix.shape[-2:]
    radius = math.sqrt(outputs / inputs if normalized else outputs)
    return orthogonalize(matrix, steps) * (max(1.0, radius) if at_least_1 else radius)


def _spectral_conv(kernel: Array, steps: int) -> Array:
    outputs, inputs, *window = kernel.shape
    matrix = orthogonalize(kernel.reshape(outputs, -1), steps)
    radius = math.sqrt(outputs / inputs) / math.prod(window)
    return radius * matrix.reshape(kernel.shape)


def _col_norm(matrix: Array, normalized: bool) -> Array:
    inputs = matrix.shape[-1]
    rms = jnp.sqrt(jnp.mean(jnp.square(matrix), -2, keepdims=True))
    return matrix / (rms * (inputs if normalized else 1) + EPS)


def _row_norm(matrix: Array, normalized: bool) -> Array:
    inputs = matrix.shape[-1]
    norm = jnp.linalg.norm(matrix, axis=-1, keepdims=True)
    return matrix / (norm * (math.sqrt(inputs) if normalized else 1) + EPS)


def _sign(matrix: Array, normalized: bool) -> Array:
    inputs = matrix.shape[-1]
    return jnp.sign(matrix) / (inputs if normalized else 1)
