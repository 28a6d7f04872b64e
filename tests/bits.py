"""What equal means: exact, or close."""

import jax
import numpy as np
from jaxtyping import PyTree


def assert_same_bits(one: PyTree, other: PyTree) -> None:
    """The same structure, dtypes, shapes and bytes."""
    for x, y in _pairs(one, other):
        assert x.tobytes() == y.tobytes(), f"{x} and {y}"


def assert_close(one: PyTree, other: PyTree) -> None:
    """Float32 leaves that differ by at most 1e-6 of the largest entry."""
    for x, y in _pairs(one, other):
        assert np.abs(x - y).max() <= 1e-6 * np.abs(y).max(), f"{x} and {y}"


def _pairs(one: PyTree, other: PyTree) -> list[tuple[np.ndarray, np.ndarray]]:
    assert jax.tree.structure(one) == jax.tree.structure(other)
    leaves = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    pairs = [(np.asarray(x), np.asarray(y)) for x, y in leaves]
    for x, y in pairs:
        assert (x.dtype, x.shape) == (y.dtype, y.shape)
    return pairs
