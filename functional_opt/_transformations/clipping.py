"""Clipping by the global norm, which is recorded in the optimizer state."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from .._types import Scalar


class NormState(NamedTuple):
    """The global norm of the last gradient; float32."""

    norm: jax.Array


def clip_by_global_norm(max_norm: Scalar | None) -> optax.GradientTransformation:
    """`optax.clip_by_global_norm`, with the norm before the clip in its state.

    The norm and the division are computed in float32 or wider. In these dtypes the
    result is that of Optax bit for bit. For narrower gradients Optax accumulates in
    their own dtype, in which a sum stops growing: of 400 leaves of norm 1, Optax finds
    a norm of 16 in bfloat16 rather than 20.

    **Arguments:**

    - `max_norm`: as in Optax. If None, nothing is clipped.
    """

    def init(params: Any) -> NormState:
        del params
        return NormState(jnp.zeros([], jnp.float32))

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        del state, params
        norm = wide_norm(updates)
        state = NormState(norm.astype(jnp.float32))
        if max_norm is None:
            return updates, state
        limit = max_norm
        # The operations of `optax.clip_by_global_norm` in the same order; calling it
        # would compute the norm a second time.
        is_small = jnp.squeeze(norm < limit)

        def clip(x: jax.Array) -> jax.Array:
            wide = _wide(x)
            clipped = (wide / norm.astype(wide.dtype)) * limit
            return jax.lax.select(is_small, x, clipped.astype(x.dtype))

        return jax.tree.map(clip, updates), state

    return optax.GradientTransformation(init, update)


def wide_norm(updates: PyTree) -> jax.Array:
    """The global norm, accumulated in float32 or wider."""
    return optax.tree.norm(jax.tree.map(_wide, updates))


def _wide(leaf: jax.Array) -> jax.Array:
    return leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))
