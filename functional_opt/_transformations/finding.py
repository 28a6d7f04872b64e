"""Finds the states of one type inside a state."""

from typing import Any, TypeVar

import jax
from jaxtyping import PyTree


T = TypeVar("T")


def find_all(state: PyTree, kind: type[T]) -> list[T]:
    """The nodes of this type, in a state of the whole tree or of one stage."""

    def is_found(node: Any) -> bool:
        return isinstance(node, kind)

    return [x for x in jax.tree.leaves(state, is_leaf=is_found) if is_found(x)]
