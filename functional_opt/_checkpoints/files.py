"""Writes files durably, with checksums."""

import hashlib
import os
from collections.abc import Iterator
from typing import Any

from etils import epath


def is_local(path: epath.Path) -> bool:
    """Whether a path is on a local file system, which can rename atomically."""
    return type(path) is type(epath.Path()) and "://" not in os.fspath(path)


def entries(path: epath.Path) -> Iterator[epath.Path]:
    """The content of a directory; empty if it does not exist."""
    if not path.exists():
        return iter(())
    if not path.is_dir():
        raise NotADirectoryError(f"`{path}` is not a directory.")
    return iter(path.iterdir())


def checksum(content: Any) -> str:
    return hashlib.sha256(content).hexdigest()


def write_file(path: epath.Path, content: Any) -> str:
    """Writes a file, and returns its checksum."""
    with path.open("wb") as file:
        file.write(content)
        # A directory that is renamed must not reach the disk before its files.
        if is_local(path):
            file.flush()
            os.fsync(file.fileno())
    return checksum(content)


def sync_directory(path: epath.Path) -> None:
    """Writes the names in a directory of this machine through to the disk."""
    if os.name == "nt":  # Windows cannot open a directory.
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
