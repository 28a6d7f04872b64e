"""Checkpoints on disk: an array a leaf, under its path, written and read by Orbax.

Every process writes the shards that it has, and says in a file of its own what it
wrote. Orbax renames the directory once all of them are done.
"""

import asyncio
from collections.abc import Collection, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import tensorstore
from etils import epath
from jax.sharding import Sharding
from orbax.checkpoint import serialization

from .errors import DamagedError, DifferentError
from .records import (
    difference_text,
    from_bytes,
    is_array,
    is_key,
    Record,
    record_of,
    to_bytes,
)


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
        records = {}
        for leaves in args.by_stage:
            records.update(_run(_write_all(directory, leaves)))
        own = directory / f"{jax.process_index()}.{MANIFEST}"
        own.write_bytes(to_bytes(records))

    def finalize(self, directory: epath.Path) -> None:
        """Makes one list of what all processes wrote. The first of them is to do it."""
        found: dict[str, Record] = {}
        parts = [p for p in directory.iterdir() if p.name.endswith(f".{MANIFEST}")]
        for part in parts:
            found.update(from_bytes(part.read_bytes()))
        for path in self._paths:
            if path in self._required and path not in found:
                raise ValueError(
                    f"No process has given `{path}`, so there is no checkpoint. Give "
                    "`save` the pieces of all stages that the process owns."
                )
        records = {path: found[path] for path in self._paths if path in found}
        (directory / MANIFEST).write_bytes(to_bytes(records))
        for part in parts:
            part.unlink()

    def restore(self, directory: epath.Path, args: "Restore") -> list[list[Any]]:
        """Reads what takes the places of the leaves of this process."""
        records = _records(directory)
        different = difference_text(self._paths, self._required, args.records, records)
        if different is not None:
            raise DifferentError(different)
        return [_run(_read_all(directory, held, records)) for held in args.by_stage]


@ocp.args.register_with_handler(LeavesHandler, for_save=True)
@dataclass
class Save(ocp.args.CheckpointArgs):
    """For each stage the leaves to write, by path."""

    by_stage: Sequence[Mapping[str, Any]]


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


def _records(directory: epath.Path) -> dict[str, Record]:
    try:
        return from_bytes((directory / MANIFEST).read_bytes())
    except (OSError, ValueError) as error:
        raise DamagedError(f"`{MANIFEST}` cannot be read: {error}") from error


async def _write_all(
    directory: epath.Path, leaves: Mapping[str, Any]
) -> dict[str, Record]:
    written = [_write(directory, path, leaf) for path, leaf in leaves.items()]
    return dict(zip(leaves, await _all(written), strict=True))


async def _write(directory: epath.Path, path: str, leaf: Any) -> Record:
    record = record_of(leaf)
    assert record is not None
    if not is_array(record):
        return record
    if is_key(leaf):
        record["impl"] = str(jax.random.key_impl(leaf))
        leaf = jax.random.key_data(leaf)
    if not isinstance(leaf, jax.Array):
        leaf = np.asarray(leaf)
        store = await tensorstore.open(_spec(directory, path, leaf, leaf.shape))
        await store.write(leaf)
        return record
    shard_shape = leaf.sharding.shard_shape(leaf.shape)
    processes = {device.process_index for device in leaf.sharding.device_set}
    await serialization.async_serialize(
        leaf,
        _spec(directory, path, leaf, shard_shape),
        primary_host=min(processes),
        use_replica_parallel=False,
    )
    return record


async def _read_all(
    directory: epath.Path,
    leaves: Sequence[tuple[str, Any]],
    records: Mapping[str, Record],
) -> list[Any]:
    read = [_read(directory, path, leaf, records.get(path)) for path, leaf in leaves]
    return await _all(read)


async def _all(work: Sequence[Coroutine[Any, Any, Any]]) -> list[Any]:
    """All results, or the first error, once nothing is under way any more."""
    results = await asyncio.gather(*work, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


async def _read(
    directory: epath.Path, path: str, leaf: Any, record: Record | None
) -> Any:
    if record is None:
        return leaf
    if not is_array(record):
        return record["value"]
    try:
        array = await _read_array(directory, path, leaf, record)
    # Orbax and TensorStore have no class of their own for what they cannot read.
    except Exception as error:
        cause = str(error.__cause__ or error).splitlines()[0]
        raise DamagedError(f"`{path}` cannot be read: {cause}") from error
    if is_key(leaf):
        return jax.random.wrap_key_data(jnp.asarray(array), impl=record["impl"])
    if isinstance(leaf, np.generic):
        return array[()]
    return array if isinstance(leaf, np.ndarray) else jnp.asarray(array)


async def _read_array(
    directory: epath.Path, path: str, leaf: Any, record: Record
) -> jax.Array | np.ndarray:
    """An array with the leaf's sharding, or on the host if that has none."""
    spec = _stored(directory, path)
    shape = None if is_key(leaf) else tuple(record["shape"])
    sharding = _sharding_of(leaf)
    if sharding is not None:
        array, _ = await serialization.async_deserialize(sharding, spec, shape)
        return array
    store = await tensorstore.open(spec, open=True, shape=shape)
    return await store.read()


def _sharding_of(leaf: Any) -> Sharding | None:
    """Where a leaf has to be. None if JAX may move it: it may be on any device."""
    if isinstance(leaf, jax.Array):
        return leaf.sharding if leaf.committed else None
    return getattr(leaf, "sharding", None)


def _stored(directory: epath.Path, path: str) -> dict[str, Any]:
    name = quote(path, safe="[]'., ")
    return {
        "driver": "zarr3",
        "kvstore": {"driver": "file", "path": f"{directory / name}/"},
        # A file that got lost must not be read as zeros.
        "store_data_equal_to_fill_value": True,
        "fill_missing_data_reads": False,
    }


def _spec(
    directory: epath.Path, path: str, leaf: Any, shard_shape: Sequence[int]
) -> dict[str, Any]:
    chunk_shape = [max(size, 1) for size in shard_shape]
    little_endian = {"name": "bytes", "configuration": {"endian": "little"}}
    return {
        **_stored(directory, path),
        "create": True,
        "dtype": leaf.dtype.name,
        "metadata": {
            "shape": list(leaf.shape),
            "chunk_grid": {
                "name": "regular",
                "configuration": {"chunk_shape": chunk_shape},
            },
            "codecs": [little_endian, {"name": "crc32c"}],
        },
    }


def _run(work: Coroutine[Any, Any, Any]) -> Any:
    """Runs a coroutine, also within an event loop such as that of a notebook."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()
