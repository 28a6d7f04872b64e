"""Checkpoints on disk: an array a leaf, under its path, written and read by Orbax.

Every process writes the shards that it has, and says in a file of its own what it
wrote. Orbax renames the directory once all of them are done.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from .arrays import digest, read_leaves, write_leaves
from .errors import DamagedError, DifferentError
from .records import difference_text, from_bytes, Record, to_bytes


MANIFEST = "leaves.json"


class LeavesHandler(ocp.CheckpointHandler):
    """Writes and reads the leaves of one checkpoint, when Orbax's manager asks for it.

    **Arguments:**

    - `paths`: of all leaves, in order.
    - `required`: those that the checkpoint must have.
    """

    def __init__(self, paths: Sequence[str] = (), required: Collection[str] = ()):
        self._paths = paths
        self._required = required

    def save(self, directory: epath.Path, args: "Save") -> None:
        """Writes what this process has, a stage at a time."""
        records: dict[str, Record] = {}
        for leaves in args.written:
            records.update(write_leaves(directory, leaves))
        copies = [
            (path, stage, found)
            for stage, leaves in enumerate(args.copies)
            for path, leaf in leaves.items()
            if (found := digest(leaf)) is not None
        ]
        own = directory / f"{jax.process_index()}.{MANIFEST}"
        own.write_bytes(to_bytes({"leaves": records, "copies": copies}))

    def finalize(self, directory: epath.Path) -> None:
        """Makes one list of what all processes wrote. The first of them is to do it."""
        parts = [p for p in directory.iterdir() if p.name.endswith(f".{MANIFEST}")]
        contents = [from_bytes(part.read_bytes()) for part in parts]
        found = {k: v for content in contents for k, v in content["leaves"].items()}
        for path in self._paths:
            if path in self._required and path not in found:
                raise ValueError(
                    f"No process has written `{path}` to `{directory}`, so there is "
                    "no checkpoint. All processes must see the same directory."
                )
        _check_copies(tuple(c) for content in contents for c in content["copies"])
        records = {path: found[path] for path in self._paths if path in found}
        (directory / MANIFEST).write_bytes(to_bytes({"leaves": records}))
        for part in parts:
            part.unlink()

    def restore(self, directory: epath.Path, args: "Restore") -> list[list[Any]]:
        """Reads what takes the places of the leaves of this process."""
        records = _records(directory)
        different = difference_text(self._paths, self._required, args.records, records)
        if different is not None:
            raise DifferentError(different)
        return [read_leaves(directory, held, records) for held in args.by_stage]


@ocp.args.register_with_handler(LeavesHandler, for_save=True)
@dataclass
class Save(ocp.args.CheckpointArgs):
    """For each stage, by path, the leaves to write, and those that others have too."""

    written: Sequence[Mapping[str, Any]]
    copies: Sequence[Mapping[str, Any]]


@ocp.args.register_with_handler(LeavesHandler, for_restore=True)
@dataclass
class Restore(ocp.args.CheckpointArgs):
    """For each stage the leaves to replace, with their paths, and all their records."""

    by_stage: Sequence[Sequence[tuple[str, Any]]]
    records: Mapping[str, Record | None]


def open_manager(
    directory: Path, handler: LeavesHandler, keep: int | None, create: bool
) -> ocp.CheckpointManager:
    """Orbax's manager of a directory: it knows what is complete, and what to remove."""
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep,
        create=create,
        cleanup_tmp_directories=create,
        enable_async_checkpointing=False,
        lightweight_initialize=True,
        save_root_metadata=False,
    )
    return ocp.CheckpointManager(directory, item_handlers=handler, options=options)


def of_first_process(step: int) -> int:
    """Its step, for all: a file system may show others the last one late."""
    return int(ocp.multihost.broadcast_one_to_all(np.int32(step)))


def _records(directory: epath.Path) -> dict[str, Record]:
    try:
        return from_bytes((directory / MANIFEST).read_bytes())["leaves"]
    except (OSError, ValueError) as error:
        raise DamagedError(f"`{MANIFEST}` cannot be read: {error}") from error


def _check_copies(copies: Iterable[tuple[str, int, str]]) -> None:
    """What several stages hold is stored once, so that it must be the same on each.

    **Arguments:**

    - `copies`: the path, the stage and the digest of each copy.
    """
    first: dict[str, tuple[int, str]] = {}
    for path, stage, found in sorted(copies):
        other, expected = first.setdefault(path, (stage, found))
        if found != expected:
            raise ValueError(
                f"`{path}` is not the same on stages {other} and {stage}, so there is "
                "no checkpoint, which would have it once. Of what several stages hold, "
                "only what `step` returns may change."
            )
