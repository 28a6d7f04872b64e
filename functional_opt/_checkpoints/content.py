"""The part of a checkpoint that a process writes."""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np

from .arrays import ArrayParts
from .names import folder_names
from .records import is_array, is_key, Record, record_of


class Copy(NamedTuple):
    """A leaf that several stages or processes hold, and that is stored once."""

    path: str
    holder: str
    leaf: Any


@dataclass(frozen=True)
class Content:
    """The part of a checkpoint that this process writes.

    **Attributes:**

    - `records`: the records of the leaves that it writes, by path.
    - `arrays`: the arrays among these.
    - `copies`: the leaves that other stages or processes hold too.
    - `paths`: the paths of all leaves of all processes, in order.
    - `required`: the paths among these that some process must write.
    - `header`: the fields of the manifest besides the leaves.
    """

    records: Mapping[str, Record]
    arrays: Mapping[str, ArrayParts]
    copies: Sequence[Copy]
    paths: Sequence[str]
    required: Collection[str]
    header: Mapping[str, Any]

    @classmethod
    def of(
        cls,
        written: Mapping[str, Any],
        copies: Sequence[Copy],
        paths: Sequence[str],
        required: Collection[str],
        header: Mapping[str, Any],
    ) -> "Content":
        folders = folder_names(paths)
        records, arrays = {}, {}
        for path, leaf in written.items():
            record = record_of(leaf)
            assert record is not None
            if is_array(record):
                arrays[path] = ArrayParts.of(leaf)
                record |= {"folder": folders[path]}
                record |= {"num_files": arrays[path].num_files}
            if is_array(record) and is_key(leaf):
                record["impl"] = str(jax.random.key_impl(leaf))
            records[path] = record
        return cls(records, arrays, copies, paths, required, header)

    def copied(self) -> "Content":
        """A copy of the content in its own memory, which no later step can reuse."""
        for parts in self.arrays.values():
            parts.start_copy()
        arrays = {path: parts.copied() for path, parts in self.arrays.items()}
        copies = [copy._replace(leaf=_on_host(copy.leaf)) for copy in self.copies]
        return Content(
            self.records, arrays, copies, self.paths, self.required, self.header
        )


def _on_host(leaf: Any) -> Any:
    """A copy of a leaf; None if no process holds the whole leaf."""
    if isinstance(leaf, bool | int | float | str):
        return leaf
    if is_key(leaf):
        leaf = jax.random.key_data(leaf)
    if isinstance(leaf, jax.Array):
        if not (leaf.is_fully_addressable or leaf.is_fully_replicated):
            return None
    return np.array(leaf, copy=True)


def digest_of(leaf: Any) -> str | None:
    """A digest that equal leaves share; None if no process holds the whole leaf."""
    if leaf is None or isinstance(leaf, bool | int | float | str):
        return None if leaf is None else repr(leaf)
    host = leaf if isinstance(leaf, np.ndarray) else _on_host(leaf)
    return None if host is None else hashlib.sha256(host.tobytes()).hexdigest()
