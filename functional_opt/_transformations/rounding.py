"""Updates of narrow parameters that are smaller than their last digit."""

import zlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from .._paths import path_text


class StochasticRoundingState(NamedTuple):
    """The number of updates completed, from which random numbers follow."""

    updates_completed: jax.Array
    inner_state: PyTree


def round_stochastically(
    inner: optax.GradientTransformation, seed: int
) -> optax.GradientTransformationExtraArgs:
    """Rounds updated bfloat16 parameters up or down at random, right on average.

    The updates are differences of bfloat16 numbers.
    """
    inner = optax.with_extra_args_support(inner)

    def init(params: Any) -> StochasticRoundingState:
        return StochasticRoundingState(jnp.zeros([], jnp.int32), inner.init(params))

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> Any:
        _check(params, "Stochastic rounding")
        updates, inner_state = inner.update(
            updates, state.inner_state, params, **extra_args
        )
        count = state.updates_completed
        # The default implementation, which users may set, can depend on shardings.
        key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), count)

        def step(path: Any, update: jax.Array, param: jax.Array) -> jax.Array:
            if param.dtype != jnp.bfloat16:
                return update
            # By its path, a parameter has the same numbers however it is staged.
            own = jax.random.fold_in(key, zlib.crc32(path_text(path).encode()))
            start, wide = param.astype(jnp.float32), update.astype(jnp.float32)
            step = _rounded(start + wide, own) - start
            return jnp.where(jnp.isfinite(step), step, wide).astype(update.dtype)

        following: Any = optax.safe_increment(count)
        stepped = jax.tree_util.tree_map_with_path(step, updates, params)
        return stepped, StochasticRoundingState(following, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def _rounded(x: jax.Array, key: jax.Array) -> jax.Array:
    """One of the two bfloat16 numbers around a float32 number, as a float32 number.

    The upper half of a float32 is a bfloat16. Of the 2**16 numbers that are added to
    the lower half, as many carry over as that half is large.
    """
    noise = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32) + noise
    found = jax.lax.bitcast_convert_type(bits & jnp.uint32(0xFFFF0000), jnp.float32)
    return jnp.where(jnp.isfinite(x), found, x)


class KahanState(NamedTuple):
    """What has been lost of each narrow parameter, in its dtype."""

    compensation: PyTree
    inner_state: PyTree


def sum_with_compensation(
    inner: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Adds what rounding took from the last updates of a parameter to the next one."""
    inner = optax.with_extra_args_support(inner)

    def init(params: Any) -> KahanState:
        lost = jax.tree.map(
            lambda x: jnp.zeros_like(x) if _is_narrow(x) else optax.MaskedNode(), params
        )
        return KahanState(lost, inner.init(params))

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> Any:
        _check(params, "Kahan summation")
        updates, inner_state = inner.update(
            updates, state.inner_state, params, **extra_args
        )
        pairs = jax.tree.map(_compensated, updates, state.compensation, params)
        structure = jax.tree.structure(updates)
        found = structure.flatten_up_to(pairs)
        steps, lost = ([pair[k] for pair in found] for k in range(2))
        compensation = jax.tree.unflatten(structure, lost)
        return jax.tree.unflatten(structure, steps), KahanState(
            compensation, inner_state
        )

    return optax.GradientTransformationExtraArgs(init, update)


def _compensated(
    update: jax.Array, lost: Any, param: jax.Array
) -> tuple[jax.Array, Any]:
    if isinstance(lost, optax.MaskedNode):
        return update, lost
    start = param.astype(jnp.float32)
    wanted = update.astype(jnp.float32) + lost.astype(jnp.float32)
    step = _nearest(start + wanted, param.dtype) - start
    if _is_narrow(update):
        step = _nearest(step, update.dtype)
    # What adding the step to the parameter comes to.
    moved = _nearest(start + step, param.dtype) - start
    return step.astype(update.dtype), (wanted - moved).astype(lost.dtype)


def _nearest(x: jax.Array, dtype: Any) -> jax.Array:
    """Rounds; XLA may leave out a conversion there and back."""
    info = jnp.finfo(dtype)
    return jax.lax.reduce_precision(x, int(info.nexp), int(info.nmant))


def _is_narrow(leaf: jax.Array) -> bool:
    is_float = jnp.issubdtype(leaf.dtype, jnp.floating)
    return is_float and jnp.finfo(leaf.dtype).bits < 32


def _check(params: Any, name: str) -> None:
    if params is None:
        raise ValueError(
            f"{name} needs the parameters: `update(grads, state, params)`."
        )
