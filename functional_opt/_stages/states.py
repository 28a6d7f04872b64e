"""The optimizer state of all stages: made, split and merged."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.sharding import Sharding
from jaxtyping import PyTree

from .derive.derive import INIT
from .derive.slices import Leaves
from .partition import StagePartition
from .run.devices import put
from .run.executor import Executors, is_traced
from .run.extra_args import ReplicatedArrays
from .trees import check_pieces, check_stages, Pieces, States, TreeSplit


@dataclass(frozen=True, eq=False)
class StageStates:
    """Makes, splits and merges the states of the stages.

    **Attributes:**

    - `partition`: the stages that own each parameter.
    - `tree`: the split of the state.
    - `here`: the stages of this process.
    - `meshes`: the shardings of the stages, if `meshes` of `stage_local` are set.
    - `run_init`: the programs of `init`.
    - `arrays`: the arrays of the recipe.
    """

    partition: StagePartition
    tree: TreeSplit
    here: frozenset[int]
    meshes: tuple[Sharding, ...] | None
    run_init: Executors
    arrays: ReplicatedArrays

    def init(self, params_by_stage: Pieces) -> tuple[PyTree, ...]:
        results = self.run_init.run(INIT, self._given(params_by_stage))
        states: list[PyTree] = [None] * len(results)
        for stage in self.here:
            states[stage] = self.tree.unflatten(stage, results[stage] or ())
        return tuple(states)

    def merge(self, states: States) -> PyTree:
        check_stages("states", states, self.partition.num_stages)
        return self.tree.merge(
            [self.tree.flatten("states", s, piece) for s, piece in enumerate(states)]
        )

    def split(
        self, state: PyTree, params_by_stage: Pieces | None
    ) -> tuple[PyTree, ...]:
        split, shardings = self.tree, self._shardings(params_by_stage)
        leaves = split.flatten_whole("state", state)
        pieces = split.pieces(leaves)
        if shardings is None or is_traced([leaves]):
            # Each stage requires its own buffer of a leaf that several stages hold:
            # the first stage to donate it would delete it for the others.
            return pieces[:1] + jax.tree.map(jnp.copy, pieces[1:])
        placed: list[PyTree] = [None] * len(pieces)
        for stage, wanted in shardings.items():
            leaves = map(put, split.flatten("state", stage, pieces[stage]), wanted)
            placed[stage] = split.unflatten(stage, list(leaves))
        return tuple(placed)

    def _shardings(
        self, params_by_stage: Pieces | None
    ) -> Mapping[int, Sequence[Sharding]] | None:
        """The shardings of the state of each stage; None if they are unknown."""
        if params_by_stage is not None:
            return self.run_init.shardings(INIT, self._given(params_by_stage))
        if self.meshes is None:
            return None
        held = self.partition.params.held
        return self.run_init.shardings(
            INIT,
            [
                [None] * len(own) if s in self.here else None
                for s, own in enumerate(held)
            ],
        )

    def _given(self, params_by_stage: Pieces) -> list[Leaves | None]:
        """The arguments of `init`: the parameters of each stage, and arrays."""
        check_pieces(
            "params_by_stage", params_by_stage, self.partition.params, self.here
        )
        leaves: list[Leaves | None] = [None] * self.partition.num_stages
        for stage in self.here:
            piece = params_by_stage[stage]
            own, _ = self.partition.take("params", stage, piece)
            mesh = None if self.meshes is None else self.meshes[stage]
            leaves[stage] = [*own, *self.arrays.at(own, mesh)]
        return leaves
