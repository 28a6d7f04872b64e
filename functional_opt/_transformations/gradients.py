"""Gradients that are missing, and parameters that cannot be updated."""

from collections.abc import Callable
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

    def check(path: str, leaf: Any) -> None:
        dtype = jnp.result_type(leaf)
        if jnp.issubdtype(dtype, jnp.complexfloating):
            raise ValueError(
                f"{name} does not support complex parameters: `{path}` is {dtype}. "
                "Split it into its real and imaginary parts, such as with "
                "`optax.contrib.split_real_and_imaginary`."
            )

    return checking_each(inner, check)


def inexact_only(
    inner: optax.GradientTransformation, name: str
) -> optax.GradientTransformationExtraArgs:
    """Refuses parameters that are integers or bools in `init`."""

    def check(path: str, leaf: Any) -> None:
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.inexact):
            raise ValueError(
                f"{name} supports floating-point parameters only: `{path}` is {dtype}. "
                "Convert it, or leave it out, such as with `equinox.partition(model, "
                "equinox.is_inexact_array)`."
            )

    return checking_each(inner, check)


def filled_only(
    inner: optax.GradientTransformation, name: str
) -> optax.GradientTransformationExtraArgs:
    """Refuses parameters without entries in `init`."""

    def check(path: str, leaf: Any) -> None:
        if jnp.size(leaf) == 0:
            raise ValueError(
                f"{name} requires parameters with entries: `{path}` has shape "
                f"{jnp.shape(leaf)}. Leave it out, or update it with another optimizer "
                "of `Groups`."
            )

    return checking_each(inner, check)


def checking_each(
    inner: optax.GradientTransformation, check: Callable[[str, Any], None]
) -> optax.GradientTransformationExtraArgs:
    """Checks the path and the value of each parameter in `init`."""
    inner = optax.with_extra_args_support(inner)

    def init(params: Any) -> Any:
        for path, leaf in jax.tree_util.tree_leaves_with_path(params):
            check(path_text(path), leaf)
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
