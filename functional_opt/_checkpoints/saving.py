"""One save, by all processes of a run together."""

import contextlib
import json
import logging
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
from etils import epath

from . import directory as directories
from .arrays import Shard, shard_bytes
from .content import Content, digest_of
from .directory import AbstractDirectory, ITEM, MARKER, PARTS
from .files import write_file
from .merging import merge_parts
from .processes import barrier
from .records import Record, to_bytes


FILES_AT_ONCE = 16  # that are written, and are on the host meanwhile
FAILED = "failed.json"
REPORT_EVERY = 10  # seconds between lines of the log

# Neither epath nor TensorStore has its own class for failed operations.
STORAGE_ERRORS = (OSError, RuntimeError, ValueError)

logger = logging.getLogger("functional_opt")


class Progress(NamedTuple):
    """The progress of a save in this process.

    **Attributes:**

    - `step`: the step that is being saved.
    - `written`: the bytes of arrays that are written.
    - `total`: the bytes of arrays that this process writes.
    """

    step: int
    written: int
    total: int


@dataclass
class Save:
    """A save in progress.

    **Attributes:**

    - `directory`, `step`: the directory of checkpoints and the step.
    - `draft`: the directory that it writes to.
    - `token`: a name for this save, unique and equal in all processes.
    - `keep`: the number of checkpoints to keep.
    """

    directory: AbstractDirectory
    step: int
    draft: epath.Path
    token: str
    keep: int | None
    content: Content
    _written: int = 0
    _reported: float = field(default_factory=time.monotonic)
    _lock: Any = field(default_factory=threading.Lock)

    @property
    def progress(self) -> Progress:
        total = sum(parts.nbytes for parts in self.content.arrays.values())
        return Progress(self.step, self._written, total)

    def run(self) -> None:
        """Writes and publishes the checkpoint, together with all other processes.

        If a process fails, it still takes part until the end, so that the others do not
        wait for it, and all of them fail.
        """
        own_error = self._write_part()
        barrier(f"{self.token} written")
        is_first = jax.process_index() == 0
        error = self._publish() if is_first else None
        barrier(f"{self.token} published")
        told = None if is_first else self._failure_of_first()
        failure = self._explained(own_error or error or told)
        barrier(f"{self.token} told")
        if is_first:
            self._clear_up(failure)
        if failure is not None:
            raise failure

    def _explained(self, error: Exception | None) -> Exception | None:
        """The error of a save; another one if another writer has removed the draft."""
        if error is None or (self.draft / MARKER).exists():
            return error
        lost = directories.overtaken(self.directory, self.step)
        lost.__cause__ = error
        return lost

    def _write_part(self) -> Exception | None:
        """Writes the part of this process, and a file that describes it."""
        own = self.draft / PARTS / f"{jax.process_index()}.json"
        try:
            records = self._write_leaves()
            copies = [
                (copy.path, copy.holder, found)
                for copy in self.content.copies
                if (found := digest_of(copy.leaf)) is not None
            ]
            write_file(own, to_bytes({"leaves": records, "copies": copies}))
        except Exception as error:
            with contextlib.suppress(OSError):
                write_file(own, to_bytes({"error": str(error)}))
            return error
        return None

    def _write_leaves(self) -> dict[str, Record]:
        records = {path: dict(record) for path, record in self.content.records.items()}
        with ThreadPoolExecutor(FILES_AT_ONCE) as threads:
            results = threads.map(self._write_task, list(self._tasks()))
            for path, key, digest in results:
                records[path].setdefault("files", {})[key] = digest
        return records

    def _tasks(self) -> Iterator[tuple[str, str, bytes | Shard]]:
        for path, parts in self.content.arrays.items():
            if parts.metadata is not None:
                yield path, "zarr.json", parts.metadata
            for shard in parts.shards:
                yield path, shard.key, shard

    def _write_task(self, task: tuple[str, str, Any]) -> tuple[str, str, str]:
        path, key, content = task
        file = self.draft / ITEM / self.content.records[path]["folder"] / key
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, Shard):
                content = shard_bytes(content)
            digest = write_file(file, content)
        except STORAGE_ERRORS as error:
            raise ValueError(f"`{path}` cannot be written: {error}") from error
        self._report(len(content) if key != "zarr.json" else 0)
        return path, key, digest

    def _report(self, size: int) -> None:
        with self._lock:
            self._written += size
            now = time.monotonic()
            if now - self._reported < REPORT_EVERY:
                return
            self._reported = now
        _, written, total = self.progress
        logger.info(
            "Saving step %s to `%s`: %.1f of %.1f GB are written.",
            *(self.step, self.directory.path, written / 1e9, total / 1e9),
        )

    def _publish(self) -> Exception | None:
        """Merges the parts of all processes into one checkpoint."""
        try:
            manifest = merge_parts(self.draft / PARTS, self.content)
            (self.draft / PARTS).rmtree()
            self.directory.publish(self.draft, self.step, to_bytes(manifest))
        except Exception as error:
            with contextlib.suppress(OSError):
                (self.draft / FAILED).write_bytes(json.dumps(str(error)).encode())
            return error
        return None

    def _failure_of_first(self) -> Exception | None:
        """The reason why no checkpoint was published, if so."""
        failed = self.draft / FAILED
        return ValueError(json.loads(failed.read_bytes())) if failed.exists() else None

    def _clear_up(self, error: Exception | None) -> None:
        if error is None:
            directories.sweep(self.directory, self.keep)
            return
        with contextlib.suppress(OSError):
            self.directory.remove(self.draft)
