"""Records of leaves in a checkpoint, and how a training run differs from them."""

import hashlib
import json
import re
from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


# As JSON: {"dtype": ..., "shape": ...} for an array, with the "impl" of a typed PRNG
# key, and {"value": ...} for a Python number or string. In the manifest an array also
# has its "folder" and the checksums of its "files".
Record = dict[str, Any]


def record_of(leaf: Any) -> Record | None:
    """The record of a leaf; None if checkpoints do not store it, such as a function."""
    if hasattr(leaf, "dtype") and hasattr(leaf, "shape"):
        return {"dtype": str(leaf.dtype), "shape": list(leaf.shape)}
    if isinstance(leaf, bool | int | float | str):
        return {"value": leaf}
    return None


def is_key(leaf: Any) -> bool:
    """Whether a leaf is an array of typed PRNG keys."""
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def is_storable(dtype: Any) -> bool:
    """Whether arrays of this dtype can be written."""
    if jnp.issubdtype(dtype, jax.dtypes.prng_key):
        return True
    is_number = jnp.issubdtype(dtype, np.number) or jnp.issubdtype(dtype, np.bool_)
    return is_number and not dtype == np.longdouble


def is_array(record: Record | None) -> bool:
    """Whether a record describes an array."""
    return record is not None and "dtype" in record


def to_bytes(content: Mapping[str, Any]) -> bytes:
    """JSON with its own checksum."""
    return json.dumps({**content, "sha256": _digest(content)}, indent=1).encode()


def from_bytes(text: bytes) -> dict[str, Any]:
    """Reads what `to_bytes` wrote. `ValueError` if it has changed."""
    content = json.loads(text)
    expected = content.pop("sha256", None) if isinstance(content, dict) else None
    if expected is None or expected != _digest(content):
        raise ValueError("its checksum does not match")
    return content


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def difference_text(
    paths: Collection[str],
    required: Collection[str],
    here: Mapping[str, Record | None],
    saved: Mapping[str, Record],
) -> str | None:
    """The first path at which a training run and a checkpoint differ, in words.

    **Arguments:**

    - `paths`: the paths of all leaves of the run, in order.
    - `required`: the paths that the checkpoint must contain.
    - `here`: the records of the leaves that this process holds.
    - `saved`: the records of the checkpoint.
    """
    known = set(paths)
    if text := _forgotten_text(known, saved):
        return text
    extra = [p for p, theirs in saved.items() if p not in known and counts(p, theirs)]
    for path in paths:
        mine, theirs = here.get(path), saved.get(path)
        if theirs is None and (path in required or counts(path, mine)):
            other = f", which has `{extra[0]}` instead" if extra else ""
            return f"`{path}` is {_text(mine)} here, and not in the checkpoint{other}"
        if theirs is not None and path in here and not fits(path, mine, theirs):
            return (
                f"`{path}` is {_text(mine)} here, and {_text(theirs)} in the checkpoint"
            )
    if extra:
        return f"`{extra[0]}` is {_text(saved[extra[0]])} in the checkpoint only"
    return None


def _forgotten_text(known: Collection[str], saved: Mapping[str, Record]) -> str | None:
    """The error for pieces that were saved as if they were a whole tree."""
    numbered = re.compile(r"(params|state)\[\d+\](.*)", re.DOTALL)
    found = [(path, match) for path in saved if (match := numbered.fullmatch(path))]
    whole = {match[1] + match[2] for _, match in found}
    if not known or not found or len(found) < len(saved) or not whole <= set(known):
        return None
    return (
        f"it has `{found[0][0]}`: the pieces were saved without `staged`, as if their "
        "tuple were the whole tree. Restore them in the same way, and merge them"
    )


def counts(path: str, record: Record | None) -> bool:
    """Whether a leaf must be on both sides. Numbers of a model may be left out."""
    return is_array(record) or (record is not None and not path.startswith("params"))


def fits(path: str, mine: Record | None, theirs: Record) -> bool:
    if mine is None or is_array(mine) != is_array(theirs):
        return False
    if is_array(mine):
        return (mine["dtype"], mine["shape"]) == (theirs["dtype"], theirs["shape"])
    if counts(path, theirs):
        return type(mine["value"]) is type(theirs["value"])
    return repr(mine["value"]) == repr(theirs["value"])


def _text(record: Record | None) -> str:
    if record is None:
        return "another leaf"
    if not is_array(record):
        return repr(record["value"])
    return f"{record['dtype']}{record['shape']}"
