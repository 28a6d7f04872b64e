"""The clip of Optax, which keeps the norm that it computes."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from .._types import Scalar


class NormState(NamedTuple):
    """The norm of the last gradient, all parameters together; float32."""

    norm: jax.Array


def clip_by_global_norm(max_norm: Scalar | None) -> optax.GradientTransformation:
    """`optax.clip_by_global_norm`, with the norm before the clip in its state.

    **Arguments:**

    - `max_norm`: as in Optax. None clips nothing.
    """

    def init(params: Any) -> NormState:
        del params
        return NormState(jnp.zeros([], jnp.float32))

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        del state, params
        norm = optax.tree.norm(updates)
        state = NormState(norm.astype(jnp.float32))
        if max_norm is None:
            return updates, state
        # The operations of Optax in their order: its own would take the norm again.
        is_small = jnp.squeeze(norm < max_norm)
        clipped = jax.tree.map(
            lambda x: jax.lax.select(
                is_small, x, (x / norm.astype(x.dtype)) * max_norm
            ),
            updates,
        )
        return clipped, state

    return optax.GradientTransformation(init, update)
