"""Leaves as arrays on disk, each in a directory named by its path."""

import asyncio
import hashlib
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote

import jax
import jax.numpy as jnp
import numpy as np
import tensorstore
from etils import epath
from jax.sharding import Sharding
from orbax.checkpoint import serialization

from .errors import DamagedError
from .records import is_array, is_key, Record, record_of


LEAVES_AT_ONCE = 16  # that are read or written, and are on the host meanwhile

# Orbax and TensorStore have no class of their own for what they cannot do.
_STORAGE_ERRORS = (OSError, RuntimeError, ValueError)


def write_leaves(directory: epath.Path, leaves: Mapping[str, Any]) -> dict[str, Record]:
    """Writes the shards that this process has, and returns the leaves' records."""
    written = [_write(directory, path, leaf) for path, leaf in leaves.items()]
    return dict(zip(leaves, _run(_all(written)), strict=True))


def read_leaves(
    directory: epath.Path,
    leaves: Sequence[tuple[str, Any]],
    records: Mapping[str, Record],
) -> list[Any]:
    """Reads what is to replace leaves, in their places. Without a record they stay."""
    read = [_read(directory, path, leaf, records.get(path)) for path, leaf in leaves]
    return _run(_all(read))


def digest(leaf: Any) -> str | None:
    """What equal leaves have in common. None if no process has all of this one."""
    if isinstance(leaf, bool | int | float | str):
        return repr(leaf)
    if is_key(leaf):
        leaf = jax.random.key_data(leaf)
    if isinstance(leaf, jax.Array):
        if not (leaf.is_fully_addressable or leaf.is_fully_replicated):
            return None
    return hashlib.sha256(np.asarray(leaf).tobytes()).hexdigest()


async def _write(directory: epath.Path, path: str, leaf: Any) -> Record:
    record = record_of(leaf)
    assert record is not None
    if not is_array(record):
        return record
    if is_key(leaf):
        record["impl"] = str(jax.random.key_impl(leaf))
        leaf = jax.random.key_data(leaf)
    try:
        await _write_array(directory, path, leaf)
    except _STORAGE_ERRORS as error:
        raise ValueError(f"`{path}` cannot be written: {_cause(error)}") from error
    return record


async def _write_array(directory: epath.Path, path: str, leaf: Any) -> None:
    if not isinstance(leaf, jax.Array):
        leaf = np.asarray(leaf)
        store = await tensorstore.open(_new(directory, path, leaf, leaf.shape))
        await store.write(leaf)
        return
    shard_shape = leaf.sharding.shard_shape(leaf.shape)
    processes = {device.process_index for device in leaf.sharding.device_set}
    await serialization.async_serialize(
        leaf,
        _new(directory, path, leaf, shard_shape),
        primary_host=min(processes),
        use_replica_parallel=False,
    )


async def _read(
    directory: epath.Path, path: str, leaf: Any, record: Record | None
) -> Any:
    if record is None:
        return leaf
    if not is_array(record):
        return record["value"]
    try:
        array = await _read_array(directory, path, leaf, record)
    except _STORAGE_ERRORS as error:
        raise DamagedError(f"`{path}` cannot be read: {_cause(error)}") from error
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


def _new(
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


def _cause(error: Exception) -> str:
    return str(error.__cause__ or error).partition("\n")[0]


async def _all(work: Sequence[Coroutine[Any, Any, Any]]) -> list[Any]:
    """All results, or the first error, once nothing is under way any more."""
    free = asyncio.Semaphore(LEAVES_AT_ONCE)

    async def wait(one: Coroutine[Any, Any, Any]) -> Any:
        async with free:
            return await one

    results = await asyncio.gather(*map(wait, work), return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


def _run(work: Coroutine[Any, Any, Any]) -> Any:
    """Runs a coroutine, also within an event loop such as that of a notebook."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()
