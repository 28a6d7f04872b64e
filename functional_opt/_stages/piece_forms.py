"""Builds the piece of a stage without visiting all that is empty."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jaxtyping import PyTree


class PieceForm:
    """The structure of a piece, in which its empty parts count as leaves.

    A piece has None in place of the leaves of all other stages. JAX visits each of
    them: with 64 stages it would spend more time on them than on the leaves of the
    stage. Parts that consist of dicts, lists, tuples and None alone are therefore
    copied as a whole. For a piece of the second of three stages:

        piece          {"a": [None, None], "b": [w, v], "c": [None]}
        its structure  {"a": *, "b": [*, *], "c": *}
        empty parts    [None, None] and [None]

    **Arguments:**

    - `structure`: the structure of the piece.

    **Attributes:**

    - `num_nodes`: the number of nodes, with each empty part as one.
    """

    def __init__(self, structure: jax.tree_util.PyTreeDef) -> None:
        tree = jax.tree.unflatten(structure, [object()] * structure.num_leaves)
        parts, self._structure = jax.tree.flatten(tree, is_leaf=_is_empty)
        are_empty = list(map(_is_empty, parts))
        self._held = [i for i, is_empty in enumerate(are_empty) if not is_empty]
        empty = [i for i, is_empty in enumerate(are_empty) if is_empty]
        self._copies = [(i, _copier(parts[i])) for i in empty]
        self._template = [None] * len(parts)
        self.num_nodes = self._structure.num_nodes

    def unflatten(self, leaves: Sequence[Any]) -> PyTree:
        """The piece with these leaves."""
        parts = self._template.copy()
        for i, leaf in zip(self._held, leaves, strict=True):
            parts[i] = leaf
        for i, copy in self._copies:
            parts[i] = copy()
        return jax.tree.unflatten(self._structure, parts)


def form_of(structure: jax.tree_util.PyTreeDef) -> PieceForm | None:
    """The form of a piece; None if a visit of all nodes is faster."""
    form = PieceForm(structure)
    return form if 2 * form.num_nodes < structure.num_nodes else None


def _is_empty(node: Any) -> bool:
    """Whether a container consists of dicts, lists, tuples and None alone."""
    if type(node) is dict:
        return all(child is None or _is_empty(child) for child in node.values())
    if type(node) in (list, tuple):
        return all(child is None or _is_empty(child) for child in node)
    return False


def _copier(part: Any) -> Callable[[], Any]:
    """Copies an empty part; a caller may change the containers of its pieces."""
    children = part.values() if isinstance(part, dict) else part
    if any(child is not None for child in children):
        return functools.partial(_copied, part)
    return (lambda: part) if isinstance(part, tuple) else part.copy


def _copied(part: Any) -> Any:
    if part is None:
        return None
    if isinstance(part, dict):
        return {key: _copied(child) for key, child in part.items()}
    return type(part)(map(_copied, part))
