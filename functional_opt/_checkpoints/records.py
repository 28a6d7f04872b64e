"""What a checkpoint says of its leaves, and where a training differs from that."""

import hashlib
import json
from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp


# What JSON has of it: {"dtype": ..., "shape": ...} for an array, with the "impl" of a
# typed PRNG key, and {"value": ...} for a number or a string of Python.
Record = dict[str, Any]


def record_of(leaf: Any) -> Record | None:
    """The record of a leaf. None for what no checkpoint holds, such as a function."""
    if hasattr(leaf, "dtype") and hasattr(leaf, "shape"):
        return {"dtype": str(leaf.dtype), "shape": list(leaf.shape)}
    if isinstance(leaf, bool | int | float | str):
        return {"value": leaf}
    return None


def is_key(leaf: Any) -> bool:
    """Whether a leaf is an array of typed PRNG keys."""
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def is_array(record: Record | None) -> bool:
    """Whether a record is of an array."""
    return record is not None and "dtype" in record


def to_bytes(records: Mapping[str, Record]) -> bytes:
    """Records as JSON that shows whether it is whole."""
    content = {"leaves": records, "sha256": _digest(records)}
    return json.dumps(content, indent=1).encode()


def from_bytes(text: bytes) -> dict[str, Record]:
    """Reads records. `ValueError` if they are not as `to_bytes` wrote them."""
    content = json.loads(text)
    if not isinstance(content, dict) or set(content) != {"leaves", "sha256"}:
        raise ValueError("it is no list of leaves")
    if content["sha256"] != _digest(content["leaves"]):
        raise ValueError("its checksum does not fit")
    return content["leaves"]


def _digest(records: Mapping[str, Record]) -> str:
    return hashlib.sha256(json.dumps(records).encode()).hexdigest()


def difference_text(
    paths: Collection[str],
    required: Collection[str],
    here: Mapping[str, Record | None],
    saved: Mapping[str, Record],
) -> str | None:
    """Says at which path a training and a checkpoint first differ, if they do.

    **Arguments:**

    - `paths`: of all leaves of the training, in order.
    - `required`: those of them that the checkpoint must have.
    - `here`: the records of the leaves that this process has.
    - `saved`: the records of the checkpoint.
    """
    known = set(paths)
    extra = [path for path in saved if path not in known and _is_kept(path, saved)]
    for path in paths:
        mine, theirs = here.get(path), saved.get(path)
        if theirs is None and (path in required or is_array(mine)):
            other = f", which has `{extra[0]}` instead" if extra else ""
            return f"`{path}` is {_text(mine)} here, and not in the checkpoint{other}"
        if theirs is not None and path in here and not _fits(path, mine, theirs):
            return (
                f"`{path}` is {_text(mine)} here, and {_text(theirs)} in the checkpoint"
            )
    if extra:
        return f"`{extra[0]}` is {_text(saved[extra[0]])} in the checkpoint only"
    return None


def is_restored(path: str, record: Record) -> bool:
    """Whether a leaf is the checkpoint's: numbers of the model are its own."""
    return is_array(record) or path.startswith("state")


def _is_kept(path: str, saved: Mapping[str, Record]) -> bool:
    return is_restored(path, saved[path])


def _fits(path: str, mine: Record | None, theirs: Record) -> bool:
    if mine is None or is_array(mine) != is_array(theirs):
        return False
    if is_array(mine):
        return (mine["dtype"], mine["shape"]) == (theirs["dtype"], theirs["shape"])
    if is_restored(path, theirs):
        return type(mine["value"]) is type(theirs["value"])
    return repr(mine["value"]) == repr(theirs["value"])


def _text(record: Record | None) -> str:
    if record is None:
        return "another leaf"
    if not is_array(record):
        return repr(record["value"])
    return f"{record['dtype']}{record['shape']}"
