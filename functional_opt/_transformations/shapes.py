"""Parameters in other shapes than their own."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree


def scalars_as_vectors(
    inner: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Shows a transformation parameters without an axis as vectors of one entry."""
    inner = optax.with_extra_args_support(inner)

    def init(params: Any) -> Any:
        return inner.init(_with_axes(params))

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> Any:
        shown = None if params is None else _with_axes(params)
        found, state = inner.update(_with_axes(updates), state, shown, **extra_args)
        return jax.tree.map(lambda x, y: x.reshape(y.shape), found, updates), state

    return optax.GradientTransformationExtraArgs(init, update)


def _with_axes(tree: PyTree) -> PyTree:
    return jax.tree.map(jnp.atleast_1d, tree)
