"""English text that is part of every Python installation, as bytes."""

import pydoc_data.topics
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8


Bytes = UInt8[np.ndarray, " _"]


class Batch(NamedTuple):
    """Input bytes, and the next byte at each position."""

    inputs: Int[np.ndarray, "microbatches sequences length"]
    targets: Int[np.ndarray, "microbatches sequences length"]


def load() -> Bytes:
    """The Python reference, its topics in alphabetical order."""
    topics = pydoc_data.topics.topics
    text = "\n\n".join(topics[name] for name in sorted(topics))
    return np.frombuffer(text.encode(), np.uint8)


def hold_out(text: Bytes, fraction: float = 0.1) -> tuple[Bytes, Bytes]:
    """Splits the end of the text off for validation."""
    cut = len(text) - round(len(text) * fraction)
    return text[:cut], text[cut:]


def random_batches(
    text: Bytes, shape: tuple[int, int, int], steps: int, seed: int
) -> Iterator[Batch]:
    """Sequences from random positions; equal seeds give equal sequences.

    **Arguments:**

    - `shape`: microbatches, sequences in each, bytes in each.
    """
    random = np.random.default_rng(seed)
    *counts, length = shape
    for _ in range(steps):
        starts = random.integers(len(text) - length, size=(*counts, 1))
        yield _windows(text, starts, length)


def every_byte(text: Bytes, sequences: int, length: int) -> Batch:
    """The whole text once, from start to end, in full microbatches."""
    microbatches = (len(text) - 1) // (sequences * length)
    starts = length * np.arange(microbatches * sequences)
    return _windows(text, starts.reshape(microbatches, sequences, 1), length)


def unigram_bits(train: Bytes, targets: Int[np.ndarray, "..."] | Bytes) -> float:
    """Bits per byte of a model of the byte frequencies in `train`.

    With add-one smoothing, so that no byte has probability 0.
    """
    counts = np.bincount(train, minlength=256) + 1
    bits = -np.log2(counts / counts.sum())
    return float(bits[targets].mean())


def _windows(text: Bytes, starts: np.ndarray, length: int) -> Batch:
    windows = text[starts + np.arange(length + 1)].astype(np.int32)
    return Batch(windows[..., :-1], windows[..., 1:])
