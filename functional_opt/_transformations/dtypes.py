"""Optimizer states in other dtypes than the parameters."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree


def widened(
    inner: optax.GradientTransformation, dtype: np.dtype
) -> optax.GradientTransformationExtraArgs:
    """Updates all narrower parameters in this dtype.

    Their state is in this dtype too. Updates have the dtypes of the gradients.
    """
    inner = optax.with_extra_args_support(inner)

    def widen(tree: PyTree) -> PyTree:
        return jax.tree.map(lambda x: x.astype(jnp.promote_types(x.dtype, dtype)), tree)

    def init(params: Any) -> Any:
        return inner.init(widen(params))

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> Any:
        wide = None if params is None else widen(params)
        found, state = inner.update(widen(updates), state, wide, **extra_args)
        return optax.tree.cast_like(found, updates), state

    return optax.GradientTransformationExtraArgs(init, update)


def same_dtypes(
    inner: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Returns updates in the dtypes of the gradients, and keeps those of the state.

    Optax promotes both where a hyperparameter or a schedule is a float32 array and the
    parameters are narrower. A `jax.lax.cond` between an update and none, as in
    `optax.apply_if_finite`, requires that they stay.
    """
    inner = optax.with_extra_args_support(inner)

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> Any:
        found, new_state = inner.update(updates, state, params, **extra_args)
        if jax.tree.structure(new_state) == jax.tree.structure(state):
            new_state = jax.tree.map(_cast_like, new_state, state)
        return jax.tree.map(_cast_like, found, updates), new_state

    return optax.GradientTransformationExtraArgs(inner.init, update)


def stored(
    inner: optax.GradientTransformation, dtype: np.dtype
) -> optax.GradientTransformationExtraArgs:
    """Stores the arrays of the state in this dtype between updates.

    An update computes in the dtypes of the transformation itself. Scalars, such as
    counts and rates, and everything that is not floating are stored as they are.
    """
    inner = optax.with_extra_args_support(inner)

    def store(state: PyTree) -> PyTree:
        return jax.tree.map(
            lambda x: x.astype(dtype) if _is_float_array(x) else x, state
        )

    def init(params: Any) -> Any:
        return store(inner.init(params))

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> Any:
        own = jax.eval_shape(inner.init, updates if params is None else params)
        state = jax.tree.map(
            lambda x, shape: x.astype(shape.dtype) if _is_float_array(x) else x,
            state,
            own,
        )
        updates, state = inner.update(updates, state, params, **extra_args)
        return updates, store(state)

    return optax.GradientTransformationExtraArgs(init, update)


def _is_float_array(leaf: Any) -> bool:
    return jnp.ndim(leaf) > 0 and jnp.issubdtype(jnp.result_type(leaf), jnp.floating)


def _cast_like(leaf: Any, like: Any) -> Any:
    dtype = jnp.result_type(like)
    return leaf if jnp.result_type(leaf) == dtype else jnp.asarray(leaf, dtype)
