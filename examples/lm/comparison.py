"""Compares two models."""

import hashlib
from typing import NamedTuple

import equinox as eqx
import jax
import numpy as np
from jaxtyping import PyTree


# The largest difference between stage-local and whole-tree updates, relative to the
# largest entry of a leaf: the guarantee of the library for float32.
BOUND = 1e-6


class Difference(NamedTuple):
    """The leaf with the largest difference between two trees."""

    identical: bool
    largest: float
    path: str

    @property
    def within_bound(self) -> bool:
        """Whether the difference is within the guarantee of the library."""
        return self.identical or self.largest <= BOUND

    def __str__(self) -> str:
        if self.identical:
            return "identical bit for bit"
        verdict = "within" if self.within_bound else "OUTSIDE"
        return (
            f"{self.largest:.1e} of the largest entry of {self.path}, "
            f"{verdict} the bound of {BOUND:.0e}"
        )


def checksum(tree: PyTree) -> str:
    """The same for trees of the same bits."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(eqx.filter(tree, eqx.is_array)):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()[:16]


def difference(actual: PyTree, expected: PyTree) -> Difference:
    """Compares two trees of the same structure, array by array."""
    paths_and_leaves = jax.tree_util.tree_leaves_with_path(
        eqx.filter(expected, eqx.is_array)
    )
    leaves = jax.tree.leaves(eqx.filter(actual, eqx.is_array))
    compared = [
        _compare(jax.tree_util.keystr(path), np.asarray(ours), np.asarray(theirs))
        for (path, theirs), ours in zip(paths_and_leaves, leaves, strict=True)
    ]
    worst = max(compared, key=lambda one: (not one.identical, one.largest))
    return worst


def _compare(path: str, ours: np.ndarray, theirs: np.ndarray) -> Difference:
    identical = (
        ours.dtype == theirs.dtype
        and ours.shape == theirs.shape
        and ours.tobytes() == theirs.tobytes()
    )
    if identical:
        return Difference(True, 0.0, path)
    off, largest = np.abs(ours - theirs).max(), np.abs(theirs).max()
    part = off / largest if np.isfinite(off) and largest > 0 else np.inf
    return Difference(False, float(part), path)
