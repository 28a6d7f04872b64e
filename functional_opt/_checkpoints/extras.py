"""The values of a run that are saved besides parameters and optimizer state."""

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from .._paths import path_text
from .errors import DifferentError
from .records import is_array, is_key, Record, record_of
from .trees import check_saved


# A tree as JSON describes it: {"dict": {...}}, {"list": [...]}, {"tuple": [...]},
# {"leaf": kind}, null, or {"opaque": class} for a custom node.
Structure = Any


@dataclass(frozen=True)
class Extra:
    """The values of `extra`, with the paths of their leaves.

    **Attributes:**

    - `leaves`: the leaves of this process by path.
    - `structure`: for each name, the structure of its tree.
    """

    leaves: Mapping[str, Any]
    structure: Mapping[str, Structure]

    @classmethod
    def of(cls, extra: Mapping[str, Any]) -> "Extra":
        leaves = dict(named_leaves(extra))
        for path, leaf in leaves.items():
            check_saved(path, leaf)
        structure = {name: _structure(tree) for name, tree in extra.items()}
        return cls(leaves, structure)

    @property
    def written(self) -> dict[str, Any]:
        """The leaves that this process writes; the first writes all local ones."""
        if jax.process_index() == 0:
            return dict(self.leaves)
        return {path: leaf for path, leaf in self.leaves.items() if _is_global(leaf)}

    @property
    def copies(self) -> list[tuple[str, str, Any]]:
        """The leaves that must be equal in all processes."""
        if jax.process_count() == 1:
            return []
        holder = f"process {jax.process_index()}"
        structure = json.dumps(self.structure)
        return [("extra", holder, structure)] + [
            (path, holder, leaf) for path, leaf in self.leaves.items()
        ]


class RestoredExtra(Mapping[str, Any]):
    """The values of `extra`, under the names they were saved with."""

    def __init__(
        self,
        names: Collection[str],
        values: Mapping[str, Any],
        opaque: Mapping[str, str],
    ):
        self._names, self._values, self._opaque = names, values, opaque

    def __getitem__(self, name: str) -> Any:
        if name in self._opaque:
            raise ValueError(
                f"`extra[{name!r}]` contains a `{self._opaque[name]}`, of which a "
                "checkpoint holds only the leaves. Pass a value of the same structure: "
                f"`restore(..., extra={{{name!r}: ...}})`."
            )
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __repr__(self) -> str:
        return f"RestoredExtra({', '.join(self)})"


def targets_of(
    given: Mapping[str, Any], manifest: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, str]]:
    """For each name the tree to replace; and the names for which no tree was passed.

    **Raises:** `DifferentError` for a name or a leaf that is not in the checkpoint.
    """
    structures, records = manifest.get("extra", {}), manifest["leaves"]
    targets, opaque = {}, {}
    for name, structure in structures.items():
        if name in given:
            targets[name] = given[name]
        elif (unknown := _opaque_in(structure)) is not None:
            opaque[name] = unknown
        else:
            targets[name] = _target(structure, f"extra[{name!r}]", records)
    for name in given:
        if name not in structures:
            known = ", ".join(map(repr, structures)) or "nothing"
            raise DifferentError(
                f"`extra[{name!r}]` is not in the checkpoint, which has {known}"
            )
    return targets, opaque


def named_leaves(extra: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The paths and leaves of all values, in the order of JAX."""
    try:
        leaves = jax.tree.leaves_with_path(dict(extra))
    except ValueError as error:  # JAX sorts keys without naming the dict.
        raise ValueError(
            f"`extra` holds a dict whose keys cannot be sorted: {error} Use strings."
        ) from error
    return [(f"extra{path_text(path)}", leaf) for path, leaf in leaves]


def is_under(path: str, name: str) -> bool:
    """Whether a path belongs to the value with this name."""
    start = f"extra[{name!r}]"
    return path == start or path.startswith((f"{start}.", f"{start}["))


def _structure(tree: Any) -> Structure:
    if tree is None:
        return None
    if type(tree) is dict and all(isinstance(key, str) for key in tree):
        return {"dict": {key: _structure(child) for key, child in tree.items()}}
    if type(tree) in (list, tuple):
        return {type(tree).__name__: list(map(_structure, tree))}
    if record_of(tree) is None:
        return {"opaque": type(tree).__name__}
    if isinstance(tree, np.generic):
        return {"leaf": "scalar"}
    return {"leaf": "numpy" if isinstance(tree, np.ndarray) else "jax"}


def _opaque_in(structure: Structure) -> str | None:
    """The first class of a structure that exists in Python only."""
    if structure is None or "leaf" in structure:
        return None
    ((kind, children),) = structure.items()
    if kind == "opaque":
        return children
    nodes = children.values() if kind == "dict" else children
    return next(filter(None, map(_opaque_in, nodes)), None)


def _target(structure: Structure, path: str, records: Mapping[str, Record]) -> Any:
    """A placeholder tree with the structure, to be filled with leaves."""
    if structure is None:
        return None
    ((kind, children),) = structure.items()
    if kind == "leaf":
        return _target_leaf(children, records[path])
    if kind == "dict":
        return {
            key: _target(child, f"{path}[{key!r}]", records)
            for key, child in children.items()
        }
    items = [_target(x, f"{path}[{i}]", records) for i, x in enumerate(children)]
    return tuple(items) if kind == "tuple" else items


def _target_leaf(kind: str, record: Record) -> Any:
    if not is_array(record):
        return record["value"]
    if "impl" in record:
        dtype = jax.random.key(0, impl=record["impl"]).dtype
        return jax.ShapeDtypeStruct(tuple(record["shape"]), dtype)
    if kind == "jax":
        return jax.ShapeDtypeStruct(tuple(record["shape"]), record["dtype"])
    empty = np.broadcast_to(np.zeros((), record["dtype"]), record["shape"])
    return empty[()] if kind == "scalar" else empty


def _is_global(leaf: Any) -> bool:
    if is_array(record_of(leaf)) and is_key(leaf):
        leaf = jax.random.key_data(leaf)
    return isinstance(leaf, jax.Array) and not leaf.is_fully_addressable
