"""Adam in the eigenbases of Shampoo's preconditioner."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from .._types import Scalar
from .leafwise import leafwise


Matrices = tuple[Array | None, ...]  # One for each axis, or None where it has none.


class ScaleBySOAPState(NamedTuple):
    """State of `scale_by_soap`.

    **Attributes:**

    - `count`: the number of completed updates.
    - `mu`: the moving average of the gradient.
    - `nu`: the moving average of the square of the gradient in the eigenbases.
    - `covariances`: for each axis of a parameter, the moving average of $G G^T$.
    - `bases`: the eigenvectors of these, as columns.
    """

    count: Any  # pyright: ignore[reportIncompatibleMethodOverride]
    mu: PyTree
    nu: PyTree
    covariances: PyTree
    bases: PyTree


class _Leaf(NamedTuple):
    update: Array
    mu: Array
    nu: Array
    covariances: Matrices
    bases: Matrices


def scale_by_soap(
    b1: Scalar,
    b2: Scalar,
    shampoo_beta: Scalar,
    eps: Scalar,
    precondition_frequency: int,
    max_precond_dim: int,
    merge_dims: bool,
    precondition_1d: bool,
    normalize_grads: bool,
    correct_bias: bool,
    mu_dtype: jax.typing.DTypeLike | None,
) -> optax.GradientTransformation:
    """Algorithms 3 and 4 of [SOAP](https://arxiv.org/abs/2409.11321).

    As in the code of the authors, the first update is 0 and only initializes the
    eigenbases, so that no gradient is projected on a basis computed from itself.
    """

    def view(shape: tuple[int, ...]) -> tuple[int, ...]:
        merge = merge_dims and len(shape) > 1
        return merged_shape(shape, max_precond_dim) if merge else shape

    def zeros(leaf: Array) -> Matrices:
        dtype = jnp.promote_types(leaf.dtype, jnp.float32)
        largest = 0 if leaf.ndim == 1 and not precondition_1d else max_precond_dim
        return tuple(
            jnp.zeros((size, size), dtype) if size <= largest else None
            for size in view(leaf.shape)
        )

    def init(params: PyTree) -> ScaleBySOAPState:
        return ScaleBySOAPState(
            count=jnp.zeros((), jnp.int32),
            mu=optax.tree.zeros_like(params, dtype=mu_dtype),
            nu=optax.tree.zeros_like(params),
            covariances=jax.tree.map(zeros, params),
            bases=jax.tree.map(zeros, params),
        )

    def adam(count: Array, mu: Array, nu: Array, bases: Matrices) -> Array:
        step = _turn_back(_turn(mu, bases) / (jnp.sqrt(nu) + eps), bases)
        if normalize_grads:
            step = step / (jnp.sqrt(jnp.mean(jnp.square(step))) + 1e-30)
        if correct_bias:
            step = step * jnp.sqrt(1 - b2**count) / (1 - b1**count)
        return step

    def update_leaf(
        count: Array,
        update: Array,
        mu: Array,
        nu: Array,
        covariances: Matrices,
        bases: Matrices,
    ) -> _Leaf:
        is_first = count == 0
        grad, mean, square = (x.reshape(view(x.shape)) for x in (update, mu, nu))
        turned = _turn(grad, bases)
        mean = jnp.where(is_first, mean, b1 * mean + (1 - b1) * grad)
        square = jnp.where(is_first, square, b2 * square + (1 - b2) * turned**2)
        step = adam(jnp.maximum(count, 1), mean, square, bases)
        covariances = tuple(
            None
            if old is None
            else shampoo_beta * old + (1 - shampoo_beta) * _outer_product(grad, axis)
            for axis, old in enumerate(covariances)
        )
        is_due = count % precondition_frequency == 0
        bases, square = jax.lax.switch(
            jnp.where(is_first, 0, jnp.where(is_due, 1, 2)),
            [_eigenvectors, _power_iteration, lambda _, *unchanged: unchanged],
            *(covariances, bases, square),
        )
        return _Leaf(
            jnp.where(is_first, 0, step).reshape(update.shape).astype(update.dtype),
            mean.reshape(mu.shape).astype(mu.dtype),
            square.reshape(nu.shape).astype(nu.dtype),
            covariances,
            bases,
        )

    def update(
        updates: PyTree, state: Any, params: PyTree | None = None
    ) -> tuple[PyTree, ScaleBySOAPState]:
        del params
        function = functools.partial(update_leaf, state.count)
        leaves = leafwise(_Leaf, function, updates, *state[1:])
        count = optax.safe_increment(state.count)
        return leaves.update, ScaleBySOAPState(count, *leaves[1:])

    return optax.GradientTransformation(init, update)


def merged_shape(shape: Sequence[int], largest: int) -> tuple[int, ...]:
    """Merges neighbouring axes as long as their product is not larger."""
    merged = [1]
    for size in shape:
        if merged[-1] * size <= largest:
            merged[-1] *= size
        else:
            merged.append(size)
    return tuple(size for size in merged if size > 1) or (1,)


def _turn(x: Array, bases: Matrices, axis: int = 0) -> Array:
    """Writes an array in other bases, one for each axis."""
    for basis in bases:  # Each takes the first axis and leaves it as the last.
        if basis is None:
            x = jnp.moveaxis(x, 0, -1)
        else:
            x = jnp.tensordot(x, basis, ((0,), (axis,)))
    return x


def _turn_back(x: Array, bases: Matrices) -> Array:
    return _turn(x, bases, axis=1)


def _outer_product(grad: Array, axis: int) -> Array:
    """The product of a gradient with itself along all axes but one."""
    others = tuple(other for other in range(grad.ndim) if other != axis)
    return jnp.tensordot(grad, grad, (others, others))


def _eigenvectors(
    covariances: Matrices, bases: Matrices, square: Array
) -> tuple[Matrices, Array]:
    """Starts the bases, the largest eigenvalue first."""
    bases = tuple(
        None if covariance is None else jnp.linalg.eigh(covariance)[1][:, ::-1]
        for covariance in covariances
    )
    return bases, square


def _power_iteration(
    covariances: Matrices, bases: Matrices, square: Array
) -> tuple[Matrices, Array]:
    """Algorithm 4, with `square` following the order of the eigenvalues."""
    turned = []
    for axis, (covariance, basis) in enumerate(zip(covariances, bases, strict=True)):
        if covariance is not None and basis is not None:
            eigenvalues = jnp.einsum("ij,ik,kj->j", basis, covariance, basis)
            order = jnp.argsort(eigenvalues, descending=True)
            basis = jnp.linalg.qr(covariance @ basis[:, order])[0]
            square = jnp.take(square, order, axis)
        turned.append(basis)
    return tuple(turned), square
