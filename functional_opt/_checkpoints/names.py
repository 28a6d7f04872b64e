"""The folders of leaves."""

import hashlib
from collections.abc import Sequence
from urllib.parse import quote

from .records import Record


LIMIT = 120  # bytes; file systems allow 143 or more


def folder_names(paths: Sequence[str]) -> dict[str, str]:
    """For each path a folder name that is valid on any file system.

    Some file systems ignore case: of names that differ only in case, only the first one
    is kept unchanged.
    """
    names: dict[str, str] = {}
    taken: set[str] = set()
    for path in paths:
        name = _quoted(path)
        if len(name) > LIMIT or name.casefold() in taken:
            digest = hashlib.sha256(path.encode(errors="surrogatepass")).hexdigest()
            name = f"{name[: LIMIT - 20]}#{digest[:16]}"
        names[path] = name
        taken.add(name.casefold())
    return names


def folder_of(path: str, record: Record) -> str:
    """The folder of a leaf. 0.1.0 knew only one kind of name."""
    return record.get("folder", _quoted(path))


def _quoted(path: str) -> str:
    return quote(path, safe="[]'., ", errors="surrogatepass")
