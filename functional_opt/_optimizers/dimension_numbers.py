"""Which axes of a parameter are the rows and columns of a matrix."""

from collections.abc import Callable

import jax
from jaxtyping import PyTree
from optax.contrib import MuonDimensionNumbers


DimensionNumbers = MuonDimensionNumbers | Callable[[PyTree], PyTree] | None


def labels_of(numbers: DimensionNumbers, params: PyTree) -> PyTree[str]:
    """ "muon" for matrices, and "adam" for the other parameters."""
    if numbers is None:
        return jax.tree.map(lambda leaf: "muon" if leaf.ndim == 2 else "adam", params)
    if callable(numbers):
        numbers = numbers(params)
    return jax.tree.map(
        lambda given, own: jax.tree.map(
            lambda _: "adam" if given is None else "muon", own
        ),
        *(numbers, params),
        is_leaf=lambda x: x is None or isinstance(x, MuonDimensionNumbers),
    )
