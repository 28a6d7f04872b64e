"""States of one kind, wherever in a state they are."""

from typing import Any, TypeVar

import jax
from jaxtyping import PyTree


T = TypeVar("T")


def find_all(state: PyTree, kind: type[T]) -> list[T]:
    """The nodes of this kind, in a whole state or in a stage's piece of one."""

    def is_found(node: Any) -> bool:
        return isinstance(node, kind)

    return [x for x in jax.tree.leaves(state, is_leaf=is_found) if is_found(x)]
