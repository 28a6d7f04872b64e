"""Norms of single parameters."""

import jax
import jax.numpy as jnp


def norm_along(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """The Euclidean norm along axes, which are kept; its derivative at 0 is 0.

    That of a square root is infinite there, and infinity times 0 is not a number.
    """
    squares = jnp.sum(jnp.square(jnp.abs(x)), axes, keepdims=True)
    is_zero = squares == 0
    return jnp.where(is_zero, 0.0, jnp.sqrt(jnp.where(is_zero, 1.0, squares)))
