"""Which axes of a parameter are the rows and columns of a matrix."""

from collections.abc import Callable
from typing import Any

import jax
import optax
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
        is_leaf=_is_numbers,
    )


def of_each(numbers: DimensionNumbers) -> Callable[[PyTree], PyTree]:
    """A function from matrices, with holes for the rest, to their numbers."""

    def of(params: PyTree) -> PyTree:
        given: Any = numbers(params) if callable(numbers) else numbers
        given = MuonDimensionNumbers() if given is None else given
        return jax.tree.map(
            lambda given, own: jax.tree.map(lambda _: given, own),
            *(given, params),
            is_leaf=_is_numbers,
        )

    return of


def _is_numbers(node: Any) -> bool:
    is_one = isinstance(node, MuonDimensionNumbers)
    return node is None or is_one or isinstance(node, optax.MaskedNode)
