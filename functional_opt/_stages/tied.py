"""The gradients of parameters that several stages own, summed over their owners."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Sharding
from jaxtyping import PyTree

from .functions import Leaves, StagedFunction
from .runners import Runners
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
        leaves, owners = jax.tree.leaves(shapes), [params.places[i] for i in tied]
        names = [params.paths[i] for i in tied]
        given = [(i, stage) for i in tied for stage in sorted(params.places[i])]
        summands = Cut.of(
            [leaves[i] for i, _ in given],
            [frozenset({stage}) for _, stage in given],
            params.num_stages,
        ).named([params.paths[i] for i, _ in given])
        sums = Cut.of([leaves[i] for i in tied], owners, params.num_stages).named(names)

        def add(summands: Sequence[Any]) -> list[Any]:
            rest = iter(summands)
            return [
                functools.reduce(jnp.add, [next(rest) for _ in owner])
                for owner in owners
            ]

        closed = jax.make_jaxpr(add)([leaves[i] for i, _ in given])
        function = StagedFunction.of(
            closed,
            {"grads": summands},
            {"grads": sums},
            partial=range(len(given)),
            purpose="the sums of the gradients of tied parameters",
        )
        positions = tuple(
            tuple(k for k, i in enumerate(held) if len(params.places[i]) > 1)
            for held in params.held
        )
        return cls(Runners.of(function), positions)

    def sum(
        self,
        arguments: Sequence[Mapping[str, Leaves]],
        placements: Sequence[Sharding | None],
    ) -> list[dict[str, Leaves]]:
        """The arguments of all stages, with sums in place of summands."""
        summands = [self.summands(s, given) for s, given in enumerate(arguments)]
        sums = self.runners.run(("grads",), summands, placements)
        return [
            self.replace(stage, given, sums[stage][0])
            for stage, given in enumerate(arguments)
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
