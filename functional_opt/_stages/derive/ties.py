"""Sums of tied gradients: the gradients of parameters that several stages own.

They are computed in a round of their own before all other rounds. The pure functions of
a stage send the summands as messages; `StageLocal` sums them shard by shard on the
devices of the owners (`run/sums.py`). Both add in the order of the owners, since
floating-point addition is not associative.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, UInt32

from .functions import SplitFunction
from .packing import Packing
from .slices import Leaves


@dataclass(frozen=True, eq=False)
class Ties:
    """The tied gradients of each stage, and their sums as messages.

    **Attributes:**

    - `owners`: for each tied parameter the stages that own it, in order.
    - `avals`: the shape and dtype of the gradient of each.
    - `params`, `grads`: for each stage, the positions of each tied parameter that it
        owns, and of its gradient, among the leaves of the stage.
    """

    owners: tuple[tuple[int, ...], ...]
    avals: tuple[Any, ...]
    params: tuple[dict[int, int], ...]
    grads: tuple[dict[int, int], ...]

    @classmethod
    def of(cls, step: SplitFunction) -> "Ties | None":
        """The tied gradients of a step; None if every parameter has one owner."""
        split = step.arguments["grads"]
        tied = [i for i, stages in enumerate(split.stage_sets) if len(stages) > 1]
        if not tied:
            return None
        number = {i: k for k, i in enumerate(tied)}

        def positions(name: str) -> tuple[dict[int, int], ...]:
            return tuple(
                {number[i]: k for i, k in zip(held, where, strict=True) if i in number}
                for stage, held in enumerate(split.held)
                for where in [step.positions(stage, name)]
            )

        params, grads = positions("params"), positions("grads")
        avals = dict(
            (k, step.avals[held[position]])
            for stage, held in enumerate(step.held)
            for k, position in grads[stage].items()
        )
        owners = tuple(tuple(sorted(split.stage_sets[i])) for i in tied)
        return cls(owners, tuple(avals[k] for k in number.values()), params, grads)

    def by_owners(self) -> dict[tuple[int, ...], list[int]]:
        """For each set of owners, the tied parameters that they share."""
        together: dict[tuple[int, ...], list[int]] = {}
        for k, owners in enumerate(self.owners):
            together.setdefault(owners, []).append(k)
        return together

    def bytes_sent(self, stage: int) -> int:
        """The bytes of the summands of a stage, which the other owners receive."""
        avals = (self.avals[k] for k in self.grads[stage])
        return sum(aval.size * aval.dtype.itemsize for aval in avals)

    def summands_text(self) -> list[str]:
        """The shape and dtype of every summand."""
        return [
            aval.str_short()
            for aval, owners in zip(self.avals, self.owners, strict=True)
            for _ in owners
        ]

    def message(self, stage: int, leaves: Leaves) -> UInt32[Array, " words"]:
        """The summands of a stage, packed into one vector."""
        num_words = max(self._packing(s).num_words for s in range(len(self.grads)))
        summands = [leaves[position] for position in self.grads[stage].values()]
        return self._packing(stage).pack(summands, num_words)

    def sums(self, stage: int, leaves: Leaves, vectors: Sequence[Any]) -> list[Any]:
        """The leaves of a stage, with sums in place of summands."""
        others = {owner for k in self.grads[stage] for owner in self.owners[k]}
        values = {
            owner: dict(zip(self.grads[owner], packed, strict=True))
            for owner in others
            for packed in [self._packing(owner).unpack(vectors[owner])]
        }
        return self.replaced(
            stage,
            leaves,
            {
                k: in_order([values[s][k] for s in self.owners[k]])
                for k in self.grads[stage]
            },
        )

    def filled(self, stage: int, leaves: Leaves) -> Leaves:
        """The leaves of a stage, with zeros for tied gradients that are None."""
        missing = [k for k, i in self.grads[stage].items() if leaves[i] is None]
        if not missing:
            return leaves
        zeros = {
            k: jnp.zeros_like(param, self.avals[k].dtype)
            for k in missing
            for param in [leaves[self.params[stage][k]]]
        }
        return self.replaced(stage, leaves, zeros)

    def replaced(self, stage: int, leaves: Leaves, grads: dict[int, Any]) -> list[Any]:
        """The leaves of a stage, with some of its tied gradients replaced."""
        new = list(leaves)
        for k, grad in grads.items():
            new[self.grads[stage][k]] = grad
        return new

    def _packing(self, stage: int) -> Packing:
        avals = (self.avals[k] for k in self.grads[stage])
        return Packing(tuple(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in avals))


def in_order(summands: Sequence[Any]) -> Any:
    """The sum of the summands, in the order of the owners."""
    return functools.reduce(jnp.add, summands)
