"""Gradients that are missing, and parameters that cannot be updated."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from .._paths import path_text


def none_as_zero(
    inner: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Replaces gradients that are None by zeros in the dtypes of their parameters.

    A None may stand for the gradients of a whole subtree.
    """
    inner = optax.with_extra_args_support(inner)

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> Any:
        if params is not None:
            updates = jax.tree.map(_zeros_if_none, updates, params, is_leaf=_is_none)
        return inner.update(updates, state, params, **extra_args)

    return optax.GradientTransformationExtraArgs(inner.init, update)


def as_params(
    inner: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Casts gradients to the dtypes of their parameters.

    Optax has transformations whose conditionals require that these are the same.
    """
    inner = optax.with_extra_args_support(inner)

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> Any:
        if params is not None:
            updates = optax.tree.cast_like(updates, params)
        return inner.update(updates, state, params, **extra_args)

    return optax.GradientTransformationExtraArgs(inner.init, update)


def real_only(
    inner: optax.GradientTransformation, name: str
) -> optax.GradientTransformationExtraArgs:
    """Refuses complex parameters in `init`.

    **Arguments:**

    - `name`: the part of the recipe that does not support them, for the error.
    """
    inner = optax.with_extra_args_support(inner)

    def init(params: Any) -> Any:
        for path, leaf in jax.tree_util.tree_leaves_with_path(params):
            dtype = jnp.result_type(leaf)
            if jnp.issubdtype(dtype, jnp.complexfloating):
                raise ValueError(
                    f"{name} does not support complex parameters: "
                    f"`{path_text(path)}` is {dtype}. Split it into its real and "
                    "imaginary parts, such as with "
                    "`optax.contrib.split_real_and_imaginary`."
                )
        return inner.init(params)

    return optax.GradientTransformationExtraArgs(init, inner.update)


def real_if(
    is_real: bool, inner: optax.GradientTransformation, name: str
) -> optax.GradientTransformationExtraArgs:
    """`real_only`, if a hyperparameter requires it."""
    return real_only(inner, name) if is_real else optax.with_extra_args_support(inner)


def _is_none(node: Any) -> bool:
    return node is None


def _zeros_if_none(grad: Any, param: PyTree) -> PyTree:
    return jax.tree.map(jnp.zeros_like, param) if grad is None else grad
