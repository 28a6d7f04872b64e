"""Functions of one parameter, over a whole tree of them."""

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import PyTree


def leafwise(
    kind: Any, function: Callable[..., Any], tree: PyTree, *rest: PyTree
) -> Any:
    """Maps a function that returns a NamedTuple; returns a NamedTuple of trees."""
    results = jax.tree.map(function, tree, *rest)

    def column(index: int) -> PyTree:
        return jax.tree.map(
            lambda result: result[index],
            results,
            is_leaf=lambda node: isinstance(node, kind),
        )

    return kind(*map(column, range(len(kind._fields))))
