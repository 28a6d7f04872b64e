"""Flattens and unflattens the piece of a stage without visiting all that is empty."""

import functools
import marshal
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jaxtyping import PyTree


class PieceForm:
    """The structure of a piece, in which its empty parts count as leaves.

    A piece has None in place of the leaves of all other stages. JAX visits each of
    them: with 64 stages it would spend more time on them than on the leaves of the
    stage. Parts that consist of dicts, lists, tuples and None alone are therefore
    compared and copied as a whole. For a piece of the second of three stages:

        piece          {"a": [None, None], "b": [w, v], "c": [None]}
        its structure  {"a": *, "b": [*, *], "c": *}
        empty parts    [None, None] and [None]

    **Arguments:**

    - `structure`: the structure of the piece.

    **Attributes:**

    - `num_nodes`: the number of nodes, with each empty part as one.
    - `is_exact`: whether all empty parts can be compared.
    """

    def __init__(self, structure: jax.tree_util.PyTreeDef) -> None:
        self._whole = structure
        tree = jax.tree.unflatten(structure, [object()] * structure.num_leaves)
        parts, self._structure = jax.tree.flatten(tree, is_leaf=_is_empty)
        are_empty = list(map(_is_empty, parts))
        empty = [i for i, is_empty in enumerate(are_empty) if is_empty]
        self._held = [i for i, is_empty in enumerate(are_empty) if not is_empty]
        self._empty = _as_bytes([parts[i] for i in empty])
        self.is_exact = self._empty is not None
        self._copies = [(i, _copier(parts[i])) for i in empty]
        self._template = [None] * len(parts)
        self.num_nodes = self._structure.num_nodes
        self._pick_held, self._pick_empty = _picker(self._held), _picker(empty)

    def flatten(self, piece: PyTree) -> list[Any] | None:
        """The leaves of a piece; None if it has another structure."""
        try:
            parts = self._structure.flatten_up_to(piece)
        except (TypeError, ValueError):
            return None
        if _as_bytes(self._pick_empty(parts)) != self._empty:
            # Keys in another order, a part of another type, or one that is not empty.
            leaves, structure = jax.tree.flatten(piece)
            return leaves if structure == self._whole else None
        leaves = self._pick_held(parts)
        return leaves if jax.tree_util.all_leaves(leaves) else None

    def unflatten(self, leaves: Sequence[Any]) -> PyTree:
        """The piece with these leaves."""
        parts = self._template.copy()
        for i, leaf in zip(self._held, leaves, strict=True):
            parts[i] = leaf
        for i, copy in self._copies:
            parts[i] = copy()
        return jax.tree.unflatten(self._structure, parts)


def form_of(structure: jax.tree_util.PyTreeDef) -> PieceForm | None:
    """The form of a piece; None if a visit of all nodes is faster, or required."""
    form = PieceForm(structure)
    is_faster = 2 * form.num_nodes < structure.num_nodes
    return form if is_faster and form.is_exact else None


def _picker(positions: Sequence[int]) -> Callable[[list[Any]], list[Any]]:
    if len(positions) < 2:
        return lambda parts: [parts[i] for i in positions]
    pick = operator.itemgetter(*positions)
    return lambda parts: list(pick(parts))


def _as_bytes(parts: list[Any]) -> bytes | None:
    """Bytes that are equal only for parts of equal types; None for other objects.

    Comparing parts themselves would ignore types: `OrderedDict() == {}`.
    """
    try:
        # Later versions would write whether objects are shared.
        return marshal.dumps(parts, 2)
    except ValueError:
        return None


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
