from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from .._types import Scalar


class ReduceVarianceState(NamedTuple):
    """The gradients of the last update."""

    previous: PyTree


def reduce_variance(
    gamma: Scalar, b1: Scalar, max_norm: Scalar | None
) -> optax.GradientTransformation:
    """The corrected gradients of algorithm 1 of [MARS](https://arxiv.org/abs/2411.10438).

    Returns $c = g + \\gamma \\beta_1 / (1 - \\beta_1) (g - g')$, with $g'$ the gradient
    of the last update, 0 at the first. Each parameter's is scaled down to a norm of
    `max_norm`. This is the paper's approximate form: $g'$ is of the last batch, where
    the exact one has the gradient of the new batch at the last parameters.
    """

    def init(params: PyTree) -> ReduceVarianceState:
        return ReduceVarianceState(optax.tree.zeros_like(params))

    def correct(gradient: Array, previous: Array) -> Array:
        corrected = gradient + gamma * b1 / (1 - b1) * (gradient - previous)
        if max_norm is None:
            return corrected
        norm = jnp.linalg.norm(jnp.ravel(corrected))
        return corrected / jnp.maximum(1, norm / max_norm)

    def update(
        updates: PyTree, state: Any, params: PyTree | None = None
    ) -> tuple[PyTree, ReduceVarianceState]:
        del params
        corrected = jax.tree.map(correct, updates, state.previous)
        return corrected, ReduceVarianceState(updates)

    return optax.GradientTransformation(init, update)
