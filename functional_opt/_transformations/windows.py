"""Means and deviations over the last observations of a run."""

import jax
import jax.numpy as jnp

from .._types import Scalar


def record(
    history: jax.Array, observed: jax.Array, latest: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Puts an observation in the place of the oldest one, and counts it.

    An observation that is not finite is left out: it would hide every later one.
    """
    window = history.shape[0]
    row = jnp.arange(window) == observed % window
    is_finite = jnp.all(jnp.isfinite(latest))
    replaced = jnp.where((row & is_finite)[:, None], latest[None], history)
    # Back from twice the window to the window: the same row, without overflow.
    following = jnp.where(observed + 1 < 2 * window, observed + 1, window)
    return replaced, jnp.where(is_finite, following, observed)


def limit(history: jax.Array, observed: jax.Array, sigma: Scalar) -> jax.Array:
    """The mean of the observations plus `sigma` of their standard deviations.

    Infinite before max(2, window // 2) of them are known.

    **Arguments:**

    - `history`: one row per observation.
    - `observed`: how many there have been.
    """
    window = history.shape[0]
    known = jnp.minimum(observed, window)
    is_known = (jnp.arange(window) < known)[:, None]
    mean = jnp.sum(jnp.where(is_known, history, 0.0), 0) / jnp.maximum(known, 1)
    squares = jnp.where(is_known, jnp.square(history - mean[None]), 0.0)
    deviation = jnp.sqrt(jnp.sum(squares, 0) / jnp.maximum(known - 1, 1))
    # Equal observations have no deviation, and a mean that rounding has changed.
    deviation = jnp.maximum(deviation, 1e-6 * jnp.maximum(jnp.abs(mean), 1.0))
    enough = known >= max(2, window // 2)
    return jnp.where(enough, mean + sigma * deviation, jnp.inf)
