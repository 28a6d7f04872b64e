"""Merges the parts that all processes wrote into one checkpoint."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from .arrays import ArrayParts, StoredArray
from .content import Content
from .names import folder_of
from .records import from_bytes, is_array, Record


def merge_parts(parts: epath.Path, content: Content) -> dict[str, Any]:
    """The manifest of the parts of all processes."""
    found: dict[str, Record] = {}
    copies: list[tuple[str, str, str]] = []
    for process in range(jax.process_count()):
        part = _part(parts, process)
        for path, record in part["leaves"].items():
            known = found.setdefault(path, record)
            known.setdefault("files", {}).update(record.get("files", {}))
        copies += map(tuple, part["copies"])
    for path in content.required:
        record = found.get(path)
        complete = record and len(record["files"]) == record.get("num_files", 0)
        if not complete:
            raise ValueError(
                f"Not all of `{path}` has been written to `{parts.parent}`, so there "
                "is no checkpoint. All processes must see the same directory."
            )
    _check_copies(copies)
    leaves = {path: _plain(found[path]) for path in content.paths if path in found}
    return {**content.header, "leaves": leaves}


def _part(parts: epath.Path, process: int) -> dict[str, Any]:
    try:
        part = from_bytes((parts / f"{process}.json").read_bytes())
    except OSError as error:
        raise ValueError(
            f"Process {process} has written nothing to `{parts.parent}`, so there is "
            "no checkpoint. All processes must see the same directory, and be allowed "
            "to write to it."
        ) from error
    if "error" in part:
        raise ValueError(f"Process {process}: {part['error']}")
    return part


def _plain(record: Record) -> Record:
    """A record without the fields that are only used while saving."""
    kept = {name: value for name, value in record.items() if name != "num_files"}
    return kept if is_array(record) else {"value": record["value"]}


def _check_copies(copies: Iterable[tuple[str, str, str]]) -> None:
    """Checks that copies are equal: a leaf that several stages hold is stored once.

    **Arguments:**

    - `copies`: the path, the holder and the digest of each copy.
    """
    first: dict[str, tuple[str, str]] = {}
    for path, holder, found in copies:
        other, expected = first.setdefault(path, (holder, found))
        if found != expected:
            raise ValueError(
                f"`{path}` is not the same on {other} and {holder}, so no checkpoint "
                "was saved, which stores it once. Update shared leaves only with the "
                "results of `step`."
            )


def first_difference(
    item: epath.Path, content: Content, manifest: Mapping[str, Any]
) -> str | None:
    """The path of the first leaf that differs from a checkpoint."""
    saved = manifest["leaves"]
    for path, record in content.records.items():
        if not _is_same(item, path, record, content.arrays.get(path), saved):
            return path
    for name in ("extra", "recipe"):
        if content.header.get(name) != manifest.get(
            name, {} if name == "extra" else None
        ):
            return name
    known = set(content.paths)
    return next((path for path in saved if path not in known), None)


def _is_same(
    item: epath.Path,
    path: str,
    record: Record,
    parts: ArrayParts | None,
    saved: Mapping[str, Record],
) -> bool:
    theirs = saved.get(path, {})
    if any(record.get(x) != theirs.get(x) for x in ("dtype", "shape", "impl")):
        return False
    if parts is None:
        return repr(record["value"]) == repr(theirs["value"])
    stored = StoredArray(item / folder_of(path, theirs), theirs)
    return all(
        stored.read(shard.index).tobytes() == np.asarray(shard.data).tobytes()
        for shard in parts.shards
    )
