"""The gradients of parameters that several stages own, summed over their owners."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from .functions import Leaves, StagedFunction
from .placing import Place
from .running import Arguments, Placements, Runners
from .trees import Cut


@dataclass(frozen=True, eq=False)
class TiedGradients:
    """A sum for each tied parameter, of one summand from each owner.

    It is a function of its own: fused into the update it would round differently.

    **Attributes:**

    - `runners`: of the function from the stages' summands to the sums, on all owners.
    - `positions`: for each stage, which of its gradients are tied.
    """

    runners: Runners
    positions: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, params: Cut, shapes: PyTree) -> "TiedGradients | None":
        """None if every parameter has one owner."""
        tied = [i for i, place in enumerate(params.places) if len(place) > 1]
        if not tied:
            return None
        function = _sums(params, jax.tree.leaves(shapes), tied)
        positions = tuple(
            tuple(k for k, i in enumerate(held) if len(params.places[i]) > 1)
            for held in params.held
        )
        return cls(Runners.of(function), positions)

    def sum(
        self, arguments: Sequence[Arguments], placements: Placements
    ) -> list[Arguments]:
        """The arguments of all stages, with sums in place of summands."""
        summands = [
            None if given is None else self.summands(stage, given)
            for stage, given in enumerate(arguments)
        ]
        results = self.runners.at(placements).run(("grads",), summands)
        return [
            None if given is None or result is None else self.replace(s, given, *result)
            for s, (given, result) in enumerate(zip(arguments, results, strict=True))
        ]

    def summands(
        self, stage: int, arguments: Mapping[str, Leaves]
    ) -> dict[str, Leaves]:
        grads = arguments["grads"]
        return {"grads": [grads[position] for position in self.positions[stage]]}

    def replace(
        self, stage: int, arguments: Mapping[str, Leaves], sums: Leaves
    ) -> dict[str, Leaves]:
        """The arguments of the update, with the sums in place of the summands."""
        grads = list(arguments["grads"])
        for position, total in zip(self.positions[stage], sums, strict=True):
            grads[position] = total
        return {**arguments, "grads": grads}


def _sums(params: Cut, leaves: Leaves, tied: Sequence[int]) -> StagedFunction:
    """From a summand of each owner of each tied parameter to the sums."""
    owners = [sorted(params.places[i]) for i in tied]
    given = [(i, owner) for i in tied for owner in sorted(params.places[i])]

    def add(summands: Sequence[Any]) -> list[Any]:
        rest = iter(summands)
        return [
            functools.reduce(jnp.add, [next(rest) for _ in each]) for each in owners
        ]

    def cut(indices: Sequence[int], places: Sequence[Place]) -> Cut:
        whole = Cut.of([leaves[i] for i in indices], places, params.num_stages)
        return whole.named([params.paths[i] for i in indices])

    summands = cut([i for i, _ in given], [frozenset({owner}) for _, owner in given])
    likes = tuple(
        tuple(("grads", k) for k, (summand, _) in enumerate(given) if summand == i)
        for i in tied
    )
    return StagedFunction.of(
        jax.make_jaxpr(add)([leaves[i] for i, _ in given]),
        {"grads": summands},
        {"grads": cut(tied, [params.places[i] for i in tied])},
        {"grads": likes},
        partial=range(len(given)),
        purpose="the sums of the gradients of tied parameters",
    )
