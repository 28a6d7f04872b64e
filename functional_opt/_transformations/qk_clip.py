"""Query and key weights, scaled down where attention logits become too large."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from .._paths import path_text
from .._types import Scalar


def clip_qk(
    inner: optax.GradientTransformation,
    exponent: Callable[[str, Any], Scalar | None],
    threshold: Scalar,
    heads_axis: int,
) -> optax.GradientTransformationExtraArgs:
    """Scales the updated weights of heads whose largest logit exceeds a threshold.

    **Arguments:**

    - `exponent`: of the path of a parameter and itself, the power of the factor that
        it is scaled by. None leaves it as it is.
    - `threshold`: the largest logit.
    - `heads_axis`: the axis of a weight on which the heads are.
    """
    inner = optax.with_extra_args_support(inner)

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> Any:
        logits = _by_path(extra_args.get("max_logits"))
        if params is None:
            raise ValueError(
                "`QKClip` scales the parameters: pass them, `update(grads, state, "
                "params, max_logits=...)`."
            )
        updates, state = inner.update(updates, state, params, **extra_args)

        def clip(path: Any, step: jax.Array, param: jax.Array) -> jax.Array:
            power = exponent(path_text(path), param)
            if power is None:
                return step
            largest = _logits_of(logits, path_text(path))
            factor = threshold / jnp.maximum(largest, threshold)
            # An overflow in the forward pass must not destroy the weights.
            factor = jnp.where(jnp.isfinite(largest), factor, jnp.ones_like(factor))
            factor = _along(factor**power, param, heads_axis, path_text(path))
            # Without a factor, the step is the same to the last bit.
            shrink = (factor - 1) * (
                param.astype(jnp.promote_types(param.dtype, factor.dtype)) + step
            )
            return (step + shrink).astype(step.dtype)

        return jax.tree_util.tree_map_with_path(clip, updates, params), state

    return optax.GradientTransformationExtraArgs(inner.init, update)


def _by_path(tree: PyTree) -> dict[str, Any]:
    if tree is None:
        raise ValueError(
            "`QKClip` needs the largest attention logits of the step: "
            "`update(grads, state, params, max_logits=...)`, a tree like the "
            "parameters, with an array at each query and key weight and None "
            "elsewhere. With `build_mpmd`, pass their shapes in `extra_args` as well."
        )
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    for path, leaf in leaves:
        if not (hasattr(leaf, "dtype") or isinstance(leaf, int | float)):
            place = f" at `{path_text(path)}`" if path else ""
            raise TypeError(
                f"`max_logits`{place} must be an array or a number, or a tree of these "
                f"like the parameters, got {leaf!r}."
            )
    return {path_text(path): leaf for path, leaf in leaves}


def _logits_of(logits: dict[str, Any], path: str) -> jax.Array:
    if path not in logits and "" not in logits:
        raise ValueError(
            f"`max_logits` has no entry at `{path}`, which `QKClip` clips; it has "
            f"{', '.join(f'`{x}`' for x in logits) or 'none'}."
        )
    return jnp.asarray(logits.get(path, logits.get("")), jnp.float32)


def _along(factor: jax.Array, param: jax.Array, axis: int, path: str) -> jax.Array:
    """Factors of the shape of a parameter: equal in all of a head."""
    if factor.ndim == 0:
        return factor
    *stack, heads = factor.shape
    if not _fits(stack, heads, param, axis):
        raise ValueError(
            f"`max_logits` at `{path}` has shape {factor.shape}, but the parameter has "
            f"shape {param.shape} with its heads on axis {axis}: pass (heads,), or "
            "(layers, heads) for a stack of layers."
        )
    axis = axis % param.ndim
    factor = jnp.repeat(factor, param.shape[axis] // heads, axis=-1)
    ones = [1] * (param.ndim - len(stack) - 1)
    spread = factor.reshape(*stack, *ones, param.shape[axis])
    return jnp.moveaxis(spread, -1, axis)


def _fits(stack: list[int], heads: int, param: jax.Array, axis: int) -> bool:
    if not -param.ndim <= axis < param.ndim:
        return False
    axis = axis % param.ndim
    is_stack = tuple(stack) == param.shape[: len(stack)] and len(stack) <= axis
    return is_stack and param.shape[axis] % heads == 0
