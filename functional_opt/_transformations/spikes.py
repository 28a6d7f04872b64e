"""Skips gradients that come with a sudden rise of the loss or of their norm."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from .._types import Scalar
from .clipping import wide_norm
from .windows import limit, record


class SkipSpikesState(NamedTuple):
    """The last observations, one row each, and the number of gradients skipped."""

    history: jax.Array
    observed: jax.Array
    total_spikes: jax.Array
    inner_state: PyTree


def skip_spikes(
    inner: optax.GradientTransformation,
    window: int,
    sigma: Scalar,
    measures: tuple[str, ...],
) -> optax.GradientTransformationExtraArgs:
    """Skips a gradient with an observation far above the mean of those before it.

    **Arguments:**

    - `inner`: the transformation, whose state does not change where it is skipped.
    - `window`: the number of observations in the mean and the deviation.
    - `sigma`: the largest distance above the mean, in standard deviations.
    - `measures`: what is observed: "norm", "loss" or both.
    """
    inner = optax.with_extra_args_support(inner)

    def init(params: Any) -> SkipSpikesState:
        count = jnp.zeros([], jnp.int32)
        history = jnp.zeros((window, len(measures)), jnp.float32)
        return SkipSpikesState(history, count, count, inner.init(params))

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> Any:
        latest = jnp.stack([MEASURES[name](updates, extra_args) for name in measures])
        largest = limit(state.history, state.observed, sigma)
        # Not a number is a spike as soon as there is a limit.
        is_spike = jnp.any(jnp.isfinite(largest) & ~(latest <= largest))
        updates, inner_state = jax.lax.cond(
            is_spike,
            lambda: (optax.tree.zeros_like(updates), state.inner_state),
            lambda: inner.update(updates, state.inner_state, params, **extra_args),
        )
        skipped = jnp.where(
            is_spike, optax.safe_increment(state.total_spikes), state.total_spikes
        )
        history, observed = record(state.history, state.observed, latest)
        return updates, SkipSpikesState(history, observed, skipped, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def _norm(updates: PyTree, extra_args: dict[str, Any]) -> jax.Array:
    del extra_args
    return wide_norm(updates).astype(jnp.float32)


def _loss(updates: PyTree, extra_args: dict[str, Any]) -> jax.Array:
    del updates
    value = extra_args.get("value")
    if value is None:
        raise ValueError(
            "`SkipSpikes` observes the loss, which is the extra argument `value`: "
            "`update(grads, state, params, value=loss)`. With `build_mpmd`, pass its "
            "shape in `extra_args` as well. Or set `SkipSpikes.of` to 'norm'."
        )
    return jnp.asarray(value, jnp.float32)


MEASURES: Mapping[str, Callable[[PyTree, dict[str, Any]], jax.Array]] = (
    MappingProxyType({"norm": _norm, "loss": _loss})
)
