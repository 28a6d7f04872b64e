"""The progress of a run, recorded in the optimizer state."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from .._types import LearningRate


class TrackState(NamedTuple):
    """Updates completed and the last learning rate: scalars, int32 and float32."""

    updates_completed: jax.Array
    learning_rate: jax.Array


def track(schedule: LearningRate) -> optax.GradientTransformation:
    """Counts the updates and records the learning rate of the last one."""

    def rate(count: Any) -> jax.Array:
        value = schedule(count) if callable(schedule) else schedule
        return jnp.asarray(value, jnp.float32)

    def init(params: Any) -> TrackState:
        del params
        count = jnp.zeros([], jnp.int32)
        return TrackState(count, rate(count))

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        del params
        count = state.updates_completed
        return updates, state._replace(
            updates_completed=optax.safe_increment(count), learning_rate=rate(count)
        )

    return optax.GradientTransformation(init, update)
