"""Clipping by norms of all gradients or updates together."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from .._types import Scalar
from .dtypes import widened
from .windows import limit, record


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
        return _limited(updates, norm, max_norm), state

    return optax.GradientTransformation(init, update)


def limit_norm(max_norm: Scalar) -> optax.GradientTransformation:
    """`clip_by_global_norm` without a record of the norm."""
    return optax.stateless(
        lambda updates, _: _limited(updates, wide_norm(updates), max_norm)
    )


class RecentNormsState(NamedTuple):
    """The last norms, one row each, how many there have been, the last if recorded."""

    history: jax.Array
    observed: jax.Array
    last: NormState | None = None


def limit_norm_by_history(
    window: int, sigma: Scalar, *, records_norm: bool = False
) -> optax.GradientTransformation:
    """Clips the global norm to that of the last ones and some of their deviations.

    **Arguments:**

    - `window`: the number of norms, before their clip, in the mean and the deviation.
    - `sigma`: the largest distance above the mean, in standard deviations.
    - `records_norm`: whether the state has the last norm, also if it is not finite.
    """

    def init(params: Any) -> Any:
        del params
        history = jnp.zeros((window, 1), jnp.float32)
        last = NormState(jnp.zeros([], jnp.float32)) if records_norm else None
        return RecentNormsState(history, jnp.zeros([], jnp.int32), last)

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        del params
        norm = wide_norm(updates)
        (largest,) = limit(state.history, state.observed, sigma)
        latest = norm.astype(jnp.float32)
        last = NormState(latest) if records_norm else None
        kept = record(state.history, state.observed, latest[None])
        return _limited(updates, norm, largest), RecentNormsState(*kept, last)

    return optax.GradientTransformation(init, update)


def in_float32(
    inner: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Computes on gradients and parameters in float32 or wider."""
    return widened(inner, jnp.dtype("float32"))


def _limited(updates: PyTree, norm: jax.Array, max_norm: Any) -> PyTree:
    # The operations of `optax.clip_by_global_norm` in the same order; calling it would
    # compute the norm a second time.
    is_small = jnp.squeeze(norm < max_norm)

    def clip(x: jax.Array) -> jax.Array:
        wide = _wide(x)
        clipped = (wide / norm.astype(wide.dtype)) * max_norm
        return jax.lax.select(is_small, x, clipped.astype(x.dtype))

    return jax.tree.map(clip, updates)


def wide_norm(updates: PyTree) -> jax.Array:
    """The global norm, accumulated in float32 or wider."""
    return optax.tree.norm(jax.tree.map(_wide, updates))


def _wide(leaf: jax.Array) -> jax.Array:
    return leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))
