"""Leaves as Zarr arrays: one folder per leaf, one file per shard.

A shard is written as its plain little-endian bytes, so that the file is the shard and
nothing has to be encoded or copied. All files go through `etils.epath`, which writes
to whatever it has a backend for; TensorStore reads regions of an array from the files
that hold them. The checksums of the files are in the manifest of the checkpoint.
"""

import functools
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tensorstore
from etils import epath
from jax.sharding import Sharding

from .errors import DamagedError
from .files import checksum
from .records import is_key, Record


METADATA = "zarr.json"

Index = tuple[slice, ...]


@dataclass(frozen=True)
class Shard:
    """A part of a leaf that this process writes.

    **Attributes:**

    - `index`: its region of the leaf.
    - `key`: the name of its file in the folder of the leaf, as defined by Zarr.
    - `data`: an array on a device or on the host.
    """

    index: Index
    key: str
    data: Any

    def on_host(self) -> np.ndarray:
        """Its entries in C order, as little-endian bytes."""
        array = np.ascontiguousarray(self.data)
        if array.dtype.byteorder == ">":
            return array.astype(array.dtype.newbyteorder("<"))
        return array

    def copied(self) -> "Shard":
        """A copy of the shard in its own memory, which no later step can reuse."""
        return Shard(self.index, self.key, np.array(self.data, copy=True))


@dataclass(frozen=True)
class ArrayParts:
    """The part of a leaf that this process writes.

    **Attributes:**

    - `metadata`: the content of `zarr.json`; None if another process writes it.
    - `shards`: the shards that no process with a lower index holds.
    - `num_files`: the number of files that all processes write together.
    """

    metadata: bytes | None
    shards: tuple[Shard, ...]
    num_files: int

    @classmethod
    def of(cls, leaf: Any) -> "ArrayParts":
        if is_key(leaf):
            leaf = jax.random.key_data(leaf)
        if not isinstance(leaf, jax.Array):
            leaf = np.asarray(leaf)
            return cls._of(leaf, leaf.shape, [(_everything(leaf.shape), leaf)], True)
        processes = {device.process_index for device in leaf.sharding.device_set}
        shards = [
            (s.index, s.data) for s in leaf.addressable_shards if not s.replica_id
        ]
        is_first = jax.process_index() == min(processes)
        return cls._of(leaf, leaf.sharding.shard_shape(leaf.shape), shards, is_first)

    @classmethod
    def _of(
        cls,
        leaf: Any,
        shard_shape: Sequence[int],
        shards: Sequence[tuple[Index, Any]],
        is_first: bool,
    ) -> "ArrayParts":
        chunk_shape = [max(size, 1) for size in shard_shape]
        named = [
            Shard(index, _key(index, chunk_shape), data)
            for index, data in shards
            if leaf.size
        ]
        metadata = _metadata(leaf, chunk_shape) if is_first else None
        num_shards = sum(
            1 for _ in _keys(_everything(leaf.shape), leaf.shape, chunk_shape)
        )
        return cls(metadata, tuple(named), num_shards + 1)

    def copied(self) -> "ArrayParts":
        shards = tuple(shard.copied() for shard in self.shards)
        return ArrayParts(self.metadata, shards, self.num_files)

    def start_copy(self) -> None:
        """Starts the transfer to the host, so that all leaves travel together."""
        for shard in self.shards:
            if isinstance(shard.data, jax.Array):
                shard.data.copy_to_host_async()

    @property
    def nbytes(self) -> int:
        return sum(shard.data.nbytes for shard in self.shards)


def shard_bytes(shard: Shard) -> memoryview:
    """The content of a shard's file."""
    return shard.on_host().reshape(-1).view(np.uint8).data


class StoredArray:
    """An array in a checkpoint, of which regions can be read.

    **Arguments:**

    - `folder`: the folder of its files.
    - `record`: its record in the manifest.
    """

    def __init__(self, folder: epath.Path, record: Record):
        self._folder, self._record = folder, record
        self._context = tensorstore.Context()
        self._loaded: dict[str, bytes] = {}
        metadata = json.loads(self._load(METADATA))
        self._chunk_shape = metadata["chunk_grid"]["configuration"]["chunk_shape"]
        self.shape = tuple(metadata["shape"])
        self._check(metadata)

    def _check(self, metadata: dict[str, Any]) -> None:
        """Refuses metadata of another array."""
        if "impl" in self._record:
            return  # Its dtype and shape are those of the keys, not of their data.
        expected = _zarr_dtype(jnp.dtype(self._record["dtype"]))
        found = metadata["data_type"], list(self.shape)
        if found != (expected, self._record["shape"]):
            raise DamagedError(
                f"its `{METADATA}` is of {found[0]}{found[1]}, but the checkpoint has "
                f"{expected}{self._record['shape']} there"
            )

    @functools.cached_property
    def _store(self) -> tensorstore.TensorStore:
        spec = {"driver": "zarr3", "kvstore": {"driver": "memory"}}
        return tensorstore.open(spec, open=True, context=self._context).result()

    def read(self, index: Index | None = None) -> np.ndarray:
        """The entries of a region; of the whole array if `index` is None."""
        index = _everything(self.shape) if index is None else index
        for key in _keys(index, self.shape, self._chunk_shape):
            self._load(key)
        array = self._store[index].read().result()
        if "impl" in self._record:
            return array
        dtype = np.dtype(jnp.dtype(self._record["dtype"]))
        is_raw = _zarr_dtype(dtype) != dtype.name
        return array.view(dtype) if is_raw else array.astype(dtype, copy=False)

    def _load(self, key: str) -> bytes:
        """Checks a file against its checksum, and stores it for TensorStore."""
        if key not in self._loaded:
            content = (self._folder / key).read_bytes()
            files = self._record.get("files")  # not in the format of 0.1.0
            if files is not None and checksum(content) != files.get(key):
                raise DamagedError(f"its file `{key}` is not the one that was written")
            store = {"driver": "memory"}
            memory = tensorstore.KvStore.open(store, context=self._context).result()
            memory.write(key, content).result()
            self._loaded[key] = content if key == METADATA else b""
        return self._loaded[key]


def restored(stored: StoredArray, leaf: Any, record: Record) -> Any:
    """The value that replaces a leaf, with its type and its sharding."""
    sharding = _sharding_of(leaf)
    if sharding is None:
        array = stored.read()
    else:
        array = _on_devices(stored, sharding)
    if is_key(leaf):
        return jax.random.wrap_key_data(jnp.asarray(array), impl=record["impl"])
    if isinstance(leaf, np.generic):
        return array[()]
    return array if isinstance(leaf, np.ndarray) else jnp.asarray(array)


def _on_devices(stored: StoredArray, sharding: Sharding) -> jax.Array:
    known: dict[tuple[Any, ...], np.ndarray] = {}

    def read(index: Index | None) -> np.ndarray:
        index = _everything(stored.shape) if index is None else index
        bounds = tuple((part.start, part.stop) for part in index)
        if bounds not in known:  # Replicas are read once.
            known[bounds] = stored.read(index)
        return known[bounds]

    return jax.make_array_from_callback(stored.shape, sharding, read)


def _sharding_of(leaf: Any) -> Sharding | None:
    """The required sharding of a leaf; None for an uncommitted leaf."""
    if isinstance(leaf, jax.Array):
        return leaf.sharding if leaf.committed else None
    return getattr(leaf, "sharding", None)


def _everything(shape: Sequence[int]) -> Index:
    return tuple(slice(0, size) for size in shape)


def _key(index: Index, chunk_shape: Sequence[int]) -> str:
    starts = [part.start or 0 for part in index]
    numbers = [start // size for start, size in zip(starts, chunk_shape, strict=True)]
    return "/".join(["c", *map(str, numbers)])


def _keys(
    index: Index, shape: Sequence[int], chunk_shape: Sequence[int]
) -> Iterator[str]:
    """The files that overlap a region."""
    if math.prod(shape) == 0:
        return
    bounds = [part.indices(size) for part, size in zip(index, shape, strict=True)]
    counts = [
        range(start // size, -(-stop // size))
        for (start, stop, _), size in zip(bounds, chunk_shape, strict=True)
    ]
    for numbers in np.ndindex(*map(len, counts)):
        chosen = [span[i] for span, i in zip(counts, numbers, strict=True)]
        yield "/".join(["c", *map(str, chosen)])


@functools.cache
def _zarr_dtype(dtype: np.dtype) -> str:
    """The name of a dtype in Zarr, or of an unsigned integer of the same size."""
    try:
        tensorstore.dtype(dtype.name)
    except ValueError:
        return f"uint{8 * dtype.itemsize}"
    return dtype.name


def _metadata(leaf: Any, chunk_shape: Sequence[int]) -> bytes:
    dtype = np.dtype(leaf.dtype)
    name = _zarr_dtype(dtype)
    zero: Any = [0, 0] if dtype.kind == "c" else False if name == "bool" else 0
    content = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(leaf.shape),
        "data_type": name,
        "chunk_grid": {
            "name": "regular",
            "configuration": {"chunk_shape": chunk_shape},
        },
        "chunk_key_encoding": {"name": "default"},
        "fill_value": zero,
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
    }
    return json.dumps(content).encode()
