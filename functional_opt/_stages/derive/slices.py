"""The slice of a function that one stage computes at a time, as a pure function."""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Sharding

from ..._slicing.slicing import Program
from .packing import Packing


# All leaves of a stage, in the order of the arguments of the function.
Leaves = Sequence[Any]
# The vectors that the senders of one round sent: a list, or the rows of a matrix.
# Inside a larger program, a list of unpacked values in place of each vector.
Inbox = Any


@dataclass(frozen=True, eq=False)
class StageSlice:
    """The slice of a function that computes a stage's message of a round or results.

    **Attributes:**

    - `stage`: the stage.
    - `program`: computes the values from inputs and messages.
    - `reads`: the positions, among the leaves of the stage, of the leaves that the
        slice is called with; None for all of them.
    - `inputs`: for each input of the program, its position among these leaves.
    - `rounds`: the rounds of the inboxes that the slice is called with.
    - `vectors`: for each vector that the slice reads, its inbox and its row there.
    - `packings`: the packing of each of these vectors.
    - `received`: for each message that the program reads, its vector and its position
        in the vector.
    - `packing`, `num_words`: the packing of the values into a message; None for
        results.
    - `likes`: for each result, the position of the leaf that determines its sharding.
    - `key`: equal for slices that compute the same function.
    """

    stage: int
    program: Program
    reads: tuple[int, ...] | None
    inputs: tuple[int, ...]
    rounds: tuple[int, ...]
    vectors: tuple[tuple[int, int], ...]
    packings: tuple[Packing, ...]
    received: tuple[tuple[int, int], ...]
    packing: Packing | None
    num_words: int
    likes: tuple[int | None, ...]
    key: Hashable

    def __call__(
        self, leaves: Leaves, inboxes: Sequence[Inbox], *, packed: bool = True
    ) -> Any:
        for number, text in self.misfits(leaves):
            raise ValueError(f"Input {number} {text}.")
        values = [
            _unpacked(packing, inboxes[inbox], row) if packed else inboxes[inbox][row]
            for packing, (inbox, row) in zip(self.packings, self.vectors, strict=True)
        ]
        inputs = map(_or_zeros, self._read(leaves), self.program.closed.in_avals)
        results = self.program(list(inputs), [values[v][k] for v, k in self.received])
        if self.packing is None or not packed:
            return tuple(results)
        return self.packing.pack(results, self.num_words)

    def compute(self, leaves: Leaves, inboxes: Sequence[Inbox]) -> Any:
        """Calls the slice with all leaves of its stage and all inboxes."""
        given = leaves if self.reads is None else [leaves[i] for i in self.reads]
        return self(given, [inboxes[round] for round in self.rounds])

    def shardings(self, leaves: Leaves, default: Sharding) -> tuple[Sharding, ...]:
        """For each result, the sharding of its leaf in `likes`, or `default`."""
        return tuple(
            default if like is None else getattr(leaves[like], "sharding", default)
            for like in self.likes
        )

    def misfits(self, leaves: Leaves) -> Iterator[tuple[int, str]]:
        """The positions of leaves of another shape or dtype, and what is wrong."""
        avals = self.program.closed.in_avals
        for position, expected in zip(self.inputs, avals, strict=False):
            if leaves[position] is not None:
                text = misfit_text(leaves[position], expected)
                if text:
                    yield position, text

    def _read(self, leaves: Leaves) -> list[Any]:
        return [leaves[position] for position in self.inputs]


def _unpacked(packing: Packing, inbox: Inbox, row: int) -> list[Any]:
    if isinstance(inbox, Sequence):
        return packing.unpack(inbox[row])
    return packing.unpack(inbox.reshape(-1), row * inbox.shape[1])


def misfit_text(leaf: Any, expected: Any) -> str | None:
    """An error about the shape or dtype of a leaf; None if both are right."""
    found = jax.typeof(leaf)
    if (found.shape, found.dtype) == (expected.shape, expected.dtype):
        return None
    return (
        f"must be {expected.str_short()}, as when `stage_local` was called, got "
        f"{found.str_short()}"
    )


def _or_zeros(leaf: Any, aval: Any) -> Any:
    """Zeros in place of a gradient that is None.

    The barrier hides their value from the compiler. The pass `algsimp` of XLA would
    otherwise drop `x + 0.0`, but `-0.0 + 0.0` is `0.0`: the sign would differ.
    """
    if leaf is not None:
        return leaf
    return jax.lax.optimization_barrier(jnp.zeros(aval.shape, aval.dtype))
