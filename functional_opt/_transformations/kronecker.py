"""Kronecker products of factors, one for each axis of an array.

A factor is a matrix, or a vector that stands for a diagonal one. A scalar has one
factor, a scalar.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree


Factors = tuple[Array, ...]


def keys_like(key: Array, tree: PyTree) -> PyTree:
    """A key for each leaf of the whole tree, whichever stage it is on."""
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(key, max(len(leaves), 1))
    return jax.tree.unflatten(structure, [keys[i] for i in range(len(leaves))])


def multiply(factor: Array, x: Array, axis: int) -> Array:
    if factor.ndim == 2:
        return jnp.moveaxis(jnp.tensordot(factor, x, ((1,), (axis,))), 0, axis)
    others = tuple(other for other in range(x.ndim) if other != axis)
    return jnp.expand_dims(factor, others) * x


def precondition(factors: Factors, x: Array) -> Array:
    """Multiplies by $Q^T Q$, with $Q$ the product of the factors."""
    for axis, factor in enumerate(factors):
        x = multiply(factor.T, multiply(factor, x, axis), axis)
    return x


def gram(x: Array, axis: int, like: Array) -> Array:
    """The product of an array with itself along all axes but one.

    Its diagonal alone, where the factor `like` is a diagonal one.
    """
    others = tuple(other for other in range(x.ndim) if other != axis)
    if like.ndim == 2:
        return jnp.tensordot(x, x, (others, others))
    return jnp.sum(jnp.square(x), others)


def balance(factors: Factors) -> Factors:
    """Makes the largest entries of all factors the same, and the product no other."""
    largest = jnp.stack([jnp.max(jnp.abs(factor)) for factor in factors])
    mean = jnp.exp(jnp.mean(jnp.log(largest)))
    return tuple(
        factor * (mean / size) for factor, size in zip(factors, largest, strict=True)
    )
