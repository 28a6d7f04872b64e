"""PSGD with Kronecker factors that are fitted without inverses."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from .._types import Scalar
from .geometry import AbstractGeometry
from .kronecker import balance, Factors, gram, keys_like, precondition
from .leafwise import leafwise


BALANCE_EVERY = 100
LEAST_LR = 0.3
LIPSCHITZ_DECAY = 0.95


class ScaleByWhiteningState(NamedTuple):
    """State of `scale_by_whitening`.

    **Attributes:**

    - `count`: the number of completed updates.
    - `key`: the PRNG key.
    - `mu`: the moving average of the gradient.
    - `factors`: the factors of the preconditioner of each parameter.
    - `lipschitz`: for each factor, the Lipschitz constant of the gradient of its fit.
    """

    count: Any  # pyright: ignore[reportIncompatibleMethodOverride]
    key: Array
    mu: PyTree
    factors: PyTree
    lipschitz: PyTree


class _Leaf(NamedTuple):
    update: Array
    factors: Factors
    lipschitz: Factors


def scale_by_whitening(
    geometry: AbstractGeometry,
    momentum: Scalar,
    max_size_dense: int,
    max_skew_dense: float | None,
    preconditioner_lr: Scalar,
    preconditioner_init_scale: Scalar | None,
    noise_scale: Scalar,
    dtype: jax.typing.DTypeLike | None,
    seed: int,
) -> optax.GradientTransformation:
    """Preconditioner $Q^T Q$, fitted as section IV of
    [Li 2024](https://arxiv.org/abs/2402.11858) does."""

    def is_dense(size: int, shape: tuple[int, ...]) -> bool:
        is_skew = max_skew_dense is not None and size > max_skew_dense * (
            math.prod(shape) / size
        )
        return len(shape) > 1 and size <= max_size_dense and not is_skew

    def identity(leaf: Array) -> Factors:
        kind = dtype or leaf.dtype
        scale = 1.0 if preconditioner_init_scale is None else preconditioner_init_scale
        if not leaf.shape:
            return (jnp.full((), scale, kind),)
        shape = nearest_to_square(leaf.shape)
        return tuple(
            jnp.asarray(scale, kind) * jnp.eye(size, dtype=kind)
            if is_dense(size, shape)
            else jnp.full(size, scale, kind)
            for size in shape
        )

    def init(params: PyTree) -> ScaleByWhiteningState:
        factors = jax.tree.map(identity, params)
        return ScaleByWhiteningState(
            count=jnp.zeros((), jnp.int32),
            key=jax.random.key(seed),
            mu=optax.tree.zeros_like(params, dtype=dtype),
            factors=factors,
            lipschitz=jax.tree.map(lambda factor: jnp.zeros((), factor.dtype), factors),
        )

    def start(grad: Array, factors: Factors) -> Factors:
        """Brings the preconditioned gradient to a size of about 1."""
        if preconditioner_init_scale is not None:
            return factors
        power = 1 / (8 if len(factors) > 1 else 4)
        square = jnp.mean(jnp.square(grad)) + noise_scale**2
        return tuple((factor / square**power).astype(grad.dtype) for factor in factors)

    def fit(
        key: Array, grad: Array, factors: Factors, lipschitz: Factors, lr: Array
    ) -> tuple[Factors, Factors]:
        for_noise, *keys = jax.random.split(key, 1 + len(factors))
        noise = jax.random.normal(for_noise, grad.shape, grad.dtype)
        white = precondition(factors, grad + noise_scale * noise)
        moved, changes = [], []
        for axis, factor in enumerate(factors):
            square = gram(white, axis, factor)
            for_bound, for_move = jax.random.split(keys[axis])
            ideal = white.size / factor.shape[0] if factor.ndim else 1.0
            bound = geometry.bound(for_bound, square) + ideal
            decayed = LIPSCHITZ_DECAY * lipschitz[axis] + (1 - LIPSCHITZ_DECAY) * bound
            change = jnp.maximum(decayed, bound)
            next_factor = geometry.move(for_move, factor, square, ideal, lr / change)
            moved.append(next_factor.astype(factor.dtype))
            changes.append(change.astype(factor.dtype))
        return tuple(moved), tuple(changes)

    def update_leaf(
        count: Any,
        update: Array,
        mean: Array,
        key: Array,
        factors: Factors,
        lipschitz: Factors,
    ) -> _Leaf:
        grad = mean.reshape(nearest_to_square(mean.shape))
        choose = functools.partial(jnp.where, count == 1)
        factors = jax.tree.map(choose, start(grad, factors), factors)
        if len(factors) > 1:
            is_due = count % BALANCE_EVERY == 0
            factors = jax.lax.cond(is_due, balance, lambda same: same, factors)
        lr = preconditioner_lr / jnp.sqrt(1 + count / 10_000)
        lr = jnp.maximum(lr, LEAST_LR)
        factors, lipschitz = fit(key, grad, factors, lipschitz, lr)
        white = precondition(factors, grad).reshape(update.shape)
        return _Leaf(white.astype(update.dtype), factors, lipschitz)

    def update(
        updates: PyTree, state: Any, params: PyTree | None = None
    ) -> tuple[PyTree, ScaleByWhiteningState]:
        del params
        count = optax.safe_increment(state.count)
        decay = jnp.where(count == 1, 0, momentum)
        mu = optax.tree.update_moment(updates, state.mu, decay, 1)
        mu = jax.tree.map(lambda new, old: new.astype(old.dtype), mu, state.mu)
        key, for_leaves = jax.random.split(state.key)
        leaves = leafwise(
            _Leaf,
            functools.partial(update_leaf, count),
            updates,
            *(mu, keys_like(for_leaves, updates), state.factors, state.lipschitz),
        )
        state = ScaleByWhiteningState(count, key, mu, leaves.factors, leaves.lipschitz)
        return leaves.update, state

    return optax.GradientTransformation(init, update)


def nearest_to_square(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Merges axes into a matrix, or a vector if but one is longer than 1."""
    if len(shape) > 1 and math.prod(shape) == max(shape):
        return (max(shape),)
    if len(shape) <= 2:
        return shape
    splits = [
        (math.prod(shape[:at]), math.prod(shape[at:])) for at in range(1, len(shape))
    ]
    return min(splits, key=lambda split: max(split) / min(split))
