"""Reading the leaves of a checkpoint."""

import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from etils import epath

from .arrays import restored, StoredArray
from .directory import ITEM, MANIFEST
from .errors import DamagedError
from .names import folder_of
from .records import from_bytes, is_array, Record
from .saving import STORAGE_ERRORS


FORMAT = 2  # of what this version writes; 0.1.0 wrote 1, without saying so
LEAVES_AT_ONCE = 16  # that are read, and are on the host meanwhile


def read_manifest(path: epath.Path, step: int) -> dict[str, Any]:
    """The manifest of a checkpoint.

    **Raises:** `DamagedError` if it belongs to another step; `ValueError` if only a
    later version of this library can read it.
    """
    try:
        manifest = from_bytes((path / ITEM / MANIFEST).read_bytes())
    except STORAGE_ERRORS as error:
        raise DamagedError(f"`{MANIFEST}` cannot be read: {error}") from error
    if (written := manifest.setdefault("format", 1)) > FORMAT:
        raise ValueError(
            f"`{path}` has format {written}, and this version of functional_opt reads "
            f"formats up to {FORMAT}. Install a later version."
        )
    if (other := manifest.setdefault("step", step)) != step:
        raise DamagedError(f"`{MANIFEST}` is of step {other}")
    return manifest


def read_leaves(
    path: epath.Path,
    leaves: Iterable[tuple[str, Any]],
    records: Mapping[str, Record],
) -> list[Any]:
    """Reads the values that replace leaves. Leaves without a record are unchanged."""

    def read(named: tuple[str, Any]) -> Any:
        name, leaf = named
        record = records.get(name)
        return leaf if record is None else read_leaf(path / ITEM, name, leaf, record)

    with ThreadPoolExecutor(LEAVES_AT_ONCE) as threads:
        return list(threads.map(read, leaves))


def read_leaf(item: epath.Path, path: str, leaf: Any, record: Record) -> Any:
    if not is_array(record):
        return record["value"]
    try:
        stored = StoredArray(item / folder_of(path, record), record)
        return restored(stored, leaf, record)
    except (*STORAGE_ERRORS, KeyError, TypeError, json.JSONDecodeError) as error:
        raise DamagedError(f"`{path}` cannot be read: {_cause(error)}") from error


def _cause(error: Exception) -> str:
    return str(error.__cause__ or error).partition("\n")[0]
