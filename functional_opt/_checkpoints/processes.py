"""Communication between the processes of a run about a checkpoint."""

import json
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils


TIMEOUT = 6 * 60 * 60 * 1000  # ms; a process that dies is noticed long before
LONGEST = 4096  # bytes of a message


def from_first(message: dict[str, Any]) -> dict[str, Any]:
    """Broadcasts a value of the first process. All processes must call it together."""
    if jax.process_count() == 1:
        return message
    text = json.dumps(message).encode()
    return json.loads(_text(multihost_utils.broadcast_one_to_all(_row(text))))


def from_all(text: str) -> list[str]:
    """Gathers the values of all processes. All must call it together."""
    if jax.process_count() == 1:
        return [text]
    rows = multihost_utils.process_allgather(_row(text.encode()))
    return list(map(_text, np.asarray(rows)))


def barrier(name: str) -> None:
    """Waits for all processes; safe to call in a thread during a training step.

    A barrier on devices would be interleaved with the operations of the step, in an
    order that differs between processes.
    """
    if jax.process_count() > 1:
        ocp.multihost.get_barrier_sync_fn()(key=name, timeout_ms=TIMEOUT)


def _row(text: bytes) -> np.ndarray:
    return np.frombuffer(text[:LONGEST].ljust(LONGEST), np.uint8)


def _text(row: Any) -> str:
    return np.asarray(row).tobytes().decode(errors="replace").rstrip(" ")
