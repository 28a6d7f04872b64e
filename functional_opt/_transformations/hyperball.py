"""Steps that keep the norm of a parameter."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from .._types import LearningRate
from .norms import norm_along


SMALLEST = 1e-10


class HyperballState(NamedTuple):
    """The number of updates completed, if the learning rate is a schedule."""

    updates_completed: jax.Array


def keep_norm(schedule: LearningRate) -> optax.GradientTransformation:
    """Rotates each parameter by the learning rate towards its update.

    **Arguments:**

    - `schedule`: the learning rate, in units of the norm of the parameter.
    """

    def init(params: Any) -> Any:
        del params
        if callable(schedule):
            return HyperballState(jnp.zeros([], jnp.int32))
        return optax.EmptyState()

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        if params is None:
            raise ValueError(
                "Steps that keep a norm need the parameters: `update(grads, state, "
                "params)`."
            )
        rate: Any = schedule
        if callable(schedule):
            rate = schedule(state.updates_completed)
            count: Any = optax.safe_increment(state.updates_completed)
            state = HyperballState(count)
        moved = jax.tree.map(lambda u, p: _move(u, p, rate), updates, params)
        return moved, state

    return optax.GradientTransformation(init, update)


def _move(update: jax.Array, param: jax.Array, rate: Any) -> jax.Array:
    wide = jnp.promote_types(param.dtype, jnp.float32)
    start, step = param.astype(wide), update.astype(wide)
    radius, size = _norm(start), _norm(step)
    moved = start + rate * step * radius / jnp.maximum(size, SMALLEST)
    end = moved / jnp.maximum(_norm(moved), SMALLEST) * radius
    # Even without a step, scaling back to the radius would round.
    turned = jnp.where(rate * size == 0, jnp.zeros_like(end), end - start)
    return turned.astype(update.dtype)


def _norm(x: jax.Array) -> jax.Array:
    """Of the whole, or of each in a stack of matrices."""
    return norm_along(x, tuple(range(1 if x.ndim > 2 else 0, x.ndim)))
