"""The ways in which the factors of a preconditioner are updated to fit it.

Sections III and IV of [Li 2024](https://arxiv.org/abs/2402.11858). A factor is a matrix
or, where it is diagonal, a vector or scalar.
"""

import abc
from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array


class AbstractGeometry(eqx.Module):
    """A rule that updates the factors."""

    @abc.abstractmethod
    def bound(self, key: Array, square: Array) -> Array:
        """A lower bound of the spectral norm of a matrix that is not negative."""

    @abc.abstractmethod
    def move(
        self, key: Array, factor: Array, square: Array, ideal: float, step: Array
    ) -> Array:
        """A factor nearer to where `square` is `ideal` times the identity."""


@final
class Quad(AbstractGeometry):
    """$Q$ stays symmetric and positive: each step is taken from both sides."""

    def bound(self, key: Array, square: Array) -> Array:
        del key
        if square.ndim < 2:
            return jnp.max(square)
        tiny = jnp.finfo(square.dtype).tiny
        largest = jnp.maximum(jnp.max(jnp.diagonal(square)), tiny)
        square = square / largest
        row = square @ square[jnp.argmax(jnp.sum(jnp.square(square), 1))]
        unit = row / jnp.maximum(jnp.linalg.norm(row), tiny)
        return jnp.linalg.norm(square @ unit) * largest

    def move(
        self, key: Array, factor: Array, square: Array, ideal: float, step: Array
    ) -> Array:
        del key
        step = step / 2
        factor = _towards(factor, square, ideal, step)
        factor = _towards(factor.T, square, ideal, step)
        return (factor + factor.T) / 2


@final
class Skew(AbstractGeometry):
    """$Q$ moves by $Q^{1/2} \\mathcal{E} Q^{3/2}$, then rotates to be symmetric.

    The rotation is a step towards the solution of an orthogonal Procrustes problem,
    along the skew-symmetric part of $Q$.
    """

    def bound(self, key: Array, square: Array) -> Array:
        if square.ndim < 2:
            return jnp.max(square)
        return _subspace_bound(key, square, jnp.max(jnp.diagonal(square)))

    def move(
        self, key: Array, factor: Array, square: Array, ideal: float, step: Array
    ) -> Array:
        factor = _towards(factor, square, ideal, step)
        return factor if factor.ndim < 2 else _rotated(key, factor)


def _towards(factor: Array, square: Array, ideal: float, step: Array) -> Array:
    product = square @ factor if factor.ndim == 2 else square * factor
    return factor - step * (product - ideal * factor)


def _rotated(key: Array, factor: Array) -> Array:
    """Multiplies by $I + aR + (aR)^2 / 2$, with $R$ skew-symmetric of norm 1."""
    skew = factor.T - factor
    tiny = jnp.finfo(skew.dtype).tiny
    skew = skew / (_subspace_bound(key, skew, jnp.max(jnp.abs(skew))) + tiny)
    once = skew @ factor
    twice = skew @ once
    slope, curvature = jnp.trace(once), jnp.trace(twice)
    best = -slope / jnp.where(curvature < 0, curvature, -1)
    angle = jnp.where(curvature < 0, jnp.minimum(best, 1 / 8), 1 / 8)
    return factor + angle * (once + angle / 2 * twice)


def _subspace_bound(key: Array, matrix: Array, largest: Array) -> Array:
    """A lower bound of the spectral norm, by iterations of 32 random vectors."""
    tiny = jnp.finfo(matrix.dtype).tiny
    matrix = matrix / (largest + tiny)
    row = matrix[jnp.argmax(jnp.linalg.norm(matrix, axis=1))]
    vectors = jax.random.normal(key, (32, len(matrix)), matrix.dtype)
    vectors = row[None, :] + jnp.sign(vectors @ row)[:, None] * vectors
    for _ in range(2):
        vectors = vectors @ matrix
        norms = jnp.linalg.norm(vectors, axis=1, keepdims=True)
        vectors = vectors / (norms + tiny) @ matrix
    return (largest + tiny) * jnp.max(jnp.linalg.norm(vectors, axis=1))
