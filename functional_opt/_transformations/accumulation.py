"""Accumulation of gradients whose optimizer runs only when it updates."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree


def accumulated(
    transformation: optax.GradientTransformation, count: int
) -> optax.GradientTransformationExtraArgs:
    """Updates with the mean of every `count` gradients, in the dtypes of the gradients.

    After every update, parameters and state equal those of `optax.MultiSteps`, which
    computes an update for every gradient and multiplies it by zero unless it is the
    last of `count`. Here the transformation is a branch that only the last one takes:
    the others are only added up, and stages exchange nothing for them.
    """
    tx = optax.with_extra_args_support(transformation)
    init = optax.MultiSteps(tx, count).init

    def update(
        updates: PyTree,
        state: Any,
        params: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, PyTree]:
        def mean(mean: Any, update: Any) -> Any:
            return mean + (update - mean) / (state.mini_step + 1)

        def finish() -> tuple[PyTree, PyTree, PyTree]:
            last = optax.tree.cast_like(means, updates)
            new, inner = tx.update(last, state.inner_opt_state, params, **extra_args)
            inner = optax.tree.cast_like(inner, state.inner_opt_state)
            return new, inner, _cleared(state.acc_grads, means)

        def go_on() -> tuple[PyTree, PyTree, PyTree]:
            kept = optax.tree.cast_like(means, state.acc_grads)
            return optax.tree.zeros_like(updates), state.inner_opt_state, kept

        means = jax.tree.map(mean, state.acc_grads, updates)
        is_last = state.mini_step == count - 1
        new, inner, kept = jax.lax.cond(is_last, finish, go_on)
        steps = state.gradient_step
        return new, state._replace(
            mini_step=jnp.where(is_last, 0, state.mini_step + 1),
            gradient_step=jnp.where(is_last, optax.safe_increment(steps), steps),
            inner_opt_state=inner,
            acc_grads=kept,
        )

    return optax.GradientTransformationExtraArgs(init, update)


def _cleared(acc_grads: PyTree, means: PyTree) -> PyTree:
    """Zeros with the signs that `optax.MultiSteps` leaves."""
    zeros = jax.tree.map(lambda mean: 0 * mean, means)
    return optax.tree.cast_like(zeros, acc_grads)
