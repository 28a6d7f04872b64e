"""PSGD with triangular Kronecker factors."""

import functools
import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree

from .._types import Scalar
from .kronecker import balance, Factors, gram, keys_like, multiply, precondition
from .leafwise import leafwise


MemorySaveMode = Literal["smart_one_diag", "one_diag", "all_diag"]

BALANCE_PROBABILITY = 0.01
SQRT_EPS = float(np.sqrt(np.finfo(np.float32).eps))


class ScaleByKronState(NamedTuple):
    """State of `scale_by_kron`.

    **Attributes:**

    - `count`: the number of completed updates.
    - `since_fit`: the number of updates since the factors were fitted.
    - `key`: the PRNG key.
    - `mu`: the moving average of the gradient.
    - `factors`: the factors of the preconditioner of each parameter.
    """

    count: Any  # pyright: ignore[reportIncompatibleMethodOverride]
    since_fit: Array
    key: Array
    mu: PyTree
    factors: PyTree


class _Leaf(NamedTuple):
    update: Array
    factors: Factors


def scale_by_kron(
    b1: Scalar,
    update_probability: optax.Schedule,
    max_size_triangular: int,
    min_ndim_triangular: int,
    memory_save_mode: MemorySaveMode | None,
    momentum_into_precond_update: bool,
    precond_lr: Scalar,
    precond_init_scale: Scalar,
    merge_dims: bool,
    mu_dtype: jax.typing.DTypeLike | None,
    precond_dtype: jax.typing.DTypeLike,
    seed: int,
) -> optax.GradientTransformation:
    """Preconditioner $Q^T Q$, fitted in the group of triangular matrices.

    Section V of [Li 2024](https://arxiv.org/abs/2402.11858): $Q$ moves by
    $\\mathcal{E} Q$.
    """

    def view(shape: tuple[int, ...]) -> tuple[int, ...]:
        return merged_to_matrix(shape) if merge_dims and len(shape) > 2 else shape

    def identity(leaf: Array) -> Factors:
        shape = view(leaf.shape)
        diagonals = _diagonals(shape, memory_save_mode)
        scale = precond_init_scale ** (1 / max(len(shape), 1))
        if not shape:
            return (jnp.full((), scale, precond_dtype),)
        few = len(shape) < min_ndim_triangular
        return tuple(
            jnp.full(size, scale, precond_dtype)
            if is_diagonal or few or size == 1 or size > max_size_triangular
            else scale * jnp.eye(size, dtype=precond_dtype)
            for size, is_diagonal in zip(shape, diagonals, strict=True)
        )

    def init(params: PyTree) -> ScaleByKronState:
        return ScaleByKronState(
            count=jnp.zeros((), jnp.int32),
            since_fit=jnp.zeros((), jnp.int32),
            key=jax.random.key(seed),
            mu=optax.tree.zeros_like(params, dtype=mu_dtype),
            factors=jax.tree.map(identity, params),
        )

    def update_leaf(
        is_fit: Array,
        is_balanced: Array,
        grad: Array,
        momentum: Array,
        key: Array,
        factors: Factors,
    ) -> _Leaf:
        shape = view(grad.shape)
        momentum = momentum.astype(precond_dtype).reshape(shape)
        signal = momentum
        if not momentum_into_precond_update:
            signal = grad.astype(precond_dtype).reshape(shape)
        if len(shape) > 1:
            factors = jax.lax.cond(is_balanced, balance, lambda same: same, factors)
        factors = jax.lax.cond(
            is_fit,
            lambda factors: _fit(key, factors, signal, precond_lr),
            lambda same: same,
            factors,
        )
        update = precondition(factors, momentum)
        return _Leaf(update.reshape(grad.shape).astype(grad.dtype), factors)

    def update(
        updates: PyTree, state: Any, params: PyTree | None = None
    ) -> tuple[PyTree, ScaleByKronState]:
        del params
        count = optax.safe_increment(state.count)
        mu = optax.tree.update_moment(updates, state.mu, b1, 1)
        momentum = optax.tree.bias_correction(mu, b1, count)
        since_fit = state.since_fit + 1
        is_fit = since_fit >= 1 / update_probability(state.count)
        key, for_balance, for_fit = jax.random.split(state.key, 3)
        is_balanced = is_fit & (jax.random.uniform(for_balance) < BALANCE_PROBABILITY)
        leaves = leafwise(
            _Leaf,
            functools.partial(update_leaf, is_fit, is_balanced),
            updates,
            *(momentum, keys_like(for_fit, updates), state.factors),
        )
        return leaves.update, ScaleByKronState(
            count,
            jnp.where(is_fit, 0, since_fit),
            key,
            optax.tree.cast(mu, mu_dtype),
            leaves.factors,
        )

    return optax.GradientTransformation(init, update)


def merged_to_matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    """Merges all axes but the last, or all but the first if that is less wide."""
    tall = math.prod(shape[:-1]), shape[-1]
    wide = shape[0], math.prod(shape[1:])
    return tall if tall[1] - tall[0] <= wide[1] - wide[0] else wide


def _diagonals(shape: tuple[int, ...], mode: MemorySaveMode | None) -> list[bool]:
    """The axes with diagonal factors."""
    if mode is None or not shape:
        return [False] * len(shape)
    if mode == "all_diag":
        return [True] * len(shape)
    longest = max(range(len(shape)), key=lambda axis: (shape[axis], axis))
    is_longer = len(shape) > 1 and shape.count(shape[longest]) == 1
    is_one = mode == "one_diag" or is_longer
    return [is_one and axis == longest for axis in range(len(shape))]


def _fit(key: Array, factors: Factors, signal: Array, step_size: Scalar) -> Factors:
    """Moves the factors towards those that whiten the signal."""
    noise = jax.random.normal(key, signal.shape, signal.dtype)
    signal = signal + SQRT_EPS * jnp.mean(jnp.abs(signal)) * noise
    for axis, factor in enumerate(factors):
        signal = multiply(factor, signal, axis)
        noise = _divide(noise, factor, axis)
    moved = []
    for axis, factor in enumerate(factors):
        ours, ideal = gram(signal, axis, factor), gram(noise, axis, factor)
        move = step_size * (ours - ideal) / _size(ours + ideal)
        turn = jnp.triu(move) @ factor if factor.ndim == 2 else move * factor
        moved.append((factor - turn).astype(factor.dtype))
    return tuple(moved)


def _divide(x: Array, factor: Array, axis: int) -> Array:
    """Multiplies by the inverse of the transposed factor, along an axis."""
    if factor.ndim < 2:
        return multiply(1 / factor, x, axis)
    x = jnp.moveaxis(x, axis, 0)
    wide = jnp.promote_types(factor.dtype, jnp.float32)
    divided = jax.scipy.linalg.solve_triangular(
        factor.astype(wide), x.reshape(len(x), -1).astype(wide), trans="T"
    )
    return jnp.moveaxis(divided.reshape(x.shape).astype(x.dtype), 0, axis)


def _size(x: Array) -> Array:
    """A lower bound of the spectral norm, which costs two matrix-vector products."""
    tiny = jnp.finfo(x.dtype).tiny
    largest = jnp.max(jnp.abs(x))
    if x.ndim == 2:
        x = x / jnp.where(largest > 0, largest, 1)
        column = x[:, jnp.argmax(jnp.sum(jnp.square(x), 0))] @ x
        unit = column / jnp.maximum(jnp.linalg.norm(column), tiny)
        largest = largest * jnp.linalg.norm(x @ unit)
    return jnp.maximum(largest, tiny)
