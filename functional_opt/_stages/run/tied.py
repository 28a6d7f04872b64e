"""The gradients of parameters that several stages own, summed over their owners."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from ..._slicing.stage_sets import StageSet as Place
from ..derive.functions import Leaves, StagedFunction
from ..trees import Cut
from .running import Arguments, Placements, Runners
from .summing import ShardedSum


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
        if all(placements[stage] for owners in self._together for stage in owners):
            sums = self._sum_shards(summands, placements)
        else:
            sums = self.runners.at(placements).run(("grads",), summands)
        return [
            None if given is None or own is None else self.replace(stage, given, *own)
            for stage, (given, own) in enumerate(zip(arguments, sums, strict=True))
        ]

    def _sum_shards(
        self, summands: Sequence[Arguments], placements: Placements
    ) -> list[tuple[Leaves, ...] | None]:
        """One sum for all parameters of the same owners."""
        held = [
            {} if given is None else dict(zip(held, given["grads"], strict=True))
            for held, given in zip(self.sums.held, summands, strict=True)
        ]
        for owners, numbers in self._together.items():
            given = {
                k: [held[stage][i] for i in numbers]
                for k, stage in enumerate(owners)
                if held[stage]
            }
            for k, totals in self._adding(owners, placements)(given).items():
                held[owners[k]].update(zip(numbers, totals, strict=True))
        return [
            None if given is None else (list(own.values()),)
            for given, own in zip(summands, held, strict=True)
        ]

    @property
    def sums(self) -> Cut:
        return self.runners.function.results["grads"]

    @functools.cached_property
    def _together(self) -> dict[tuple[int, ...], list[int]]:
        """Which of the sums have the same owners."""
        together: dict[tuple[int, ...], list[int]] = {}
        for i, place in enumerate(self.sums.places):
            together.setdefault(tuple(sorted(place)), []).append(i)
        return together

    @functools.cached_property
    def _adding(self) -> Callable[[tuple[int, ...], Placements], ShardedSum]:
        def adding(owners: tuple[int, ...], placements: Placements) -> ShardedSum:
            wheres = tuple(where for s in owners if (where := placements[s]))
            avals = self.runners.function.slices.source.out_avals
            shapes = [avals[i].shape for i in self._together[owners]]
            return ShardedSum(wheres, shapes)

        return functools.cache(adding)

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
        marks=[(True,) * len(leaves[i].shape) for i, _ in given],
        summands=range(len(given)),
        purpose="the sums of the gradients of tied parameters",
    )
