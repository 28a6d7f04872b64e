"""The pure functions of one stage, and the leaves of its trees."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jax.sharding import Sharding
from jaxtyping import Array, PyTree, UInt32

from .._signatures import shown_short
from .derive.derive import STEP, UPDATE
from .derive.functions import Gathered, SplitFunction
from .derive.slices import Leaves
from .derive.ties import Ties
from .partition import StagePartition
from .run.extra_args import placed_extra_args, ReplicatedArrays
from .trees import Pieces, TreeSplit


# Builds a piece from the leaves of its parameters.
Put = Callable[[Leaves], PyTree]


@dataclass(frozen=True, eq=False)
class StageProgram:
    """The update of one stage as pure functions, for authors of pipeline runtimes.

    `grads`, `state` and `params` are the pieces of the stage. `gathered` holds the
    results of `message` on all stages: for each round so far, one vector per stage. The
    vectors of a round have equal lengths, so a matrix with one row per stage, as
    returned by `jax.lax.all_gather`, is also accepted.

    **Attributes:**

    - `stage`: the number of the stage, from 0.
    - `state`, `extra_args`: the splits of these trees.
    - `arrays`: the arrays of the recipe that was split, if any. See
        `StageLocal.with_hyperparameters`.

    !!! Example

        >>> import functional_opt as fo, jax.numpy as jnp, optax
        >>> params = {"embed": jnp.ones((8, 2)), "head": jnp.ones((2, 8))}
        >>> partition = fo.partition(params, {"embed": 0, "head": 1})
        >>> tx = optax.clip_by_global_norm(1.0)
        >>> staged = fo.stage_local(tx, params, partition)
        >>> pieces = partition.split(params)
        >>> stages = [*zip(staged.programs, pieces, staged.init(pieces), pieces)]
        >>> gathered = [[program.message(0, *trees) for program, *trees in stages]]
        >>> updated = [program.update(*trees, gathered) for program, *trees in stages]
        >>> float(optax.tree.norm([update for update, _ in updated]).round(3))
        1.0
    """

    stage: int
    partition: StagePartition
    state: TreeSplit
    extra_args: TreeSplit
    function: SplitFunction
    ties: Ties | None
    arrays: Leaves

    @property
    def bytes_sent(self) -> int:
        """The bytes that the stage sends per step."""
        sums = 0 if self.ties is None else self.ties.bytes_sent(self.stage)
        return sums + self.function.bytes_sent(self.stage)

    @property
    def rounds(self) -> int:
        """The number of rounds of exchange before `step` or `update`."""
        return (self.ties is not None) + len(self.function.rounds)

    @shown_short
    def message(
        self,
        round: int,
        grads: PyTree,
        state: PyTree,
        params: PyTree,
        gathered: Gathered = (),
        **extra_args: Any,
    ) -> UInt32[Array, " words"]:
        """The packed vector that the stage sends to all other stages in a round."""
        leaves, _ = self._take_all(grads, state, params, extra_args)
        self.function.check(self.stage, leaves)
        if self.ties is not None:
            if round == 0:
                return self.ties.message(self.stage, leaves)
            leaves, gathered = self._summed(leaves, gathered)
            round -= 1
        messages = self.function.rounds[round]
        message = messages.slices[self.stage]
        if message is None:
            return messages.nothing()
        return message.compute(leaves, self.function.inboxes(gathered))

    @shown_short
    def step(
        self,
        grads: PyTree,
        state: PyTree,
        params: PyTree,
        gathered: Gathered = (),
        **extra_args: Any,
    ) -> tuple[PyTree, PyTree]:
        """The new parameters and the new state of the stage, after all rounds."""
        leaves, put = self._take_all(grads, state, params, extra_args)
        new, new_state = self._finish(STEP, leaves, gathered)
        return put(new), self.state.unflatten(self.stage, new_state)

    @shown_short
    def update(
        self,
        grads: PyTree,
        state: PyTree,
        params: PyTree,
        gathered: Gathered = (),
        **extra_args: Any,
    ) -> tuple[PyTree, PyTree]:
        """The updates and the new state of the stage, after all rounds."""
        leaves, _ = self._take_all(grads, state, params, extra_args)
        updates, new_state = self._finish(UPDATE, leaves, gathered)
        updates = self.partition.params.unflatten(self.stage, updates)
        return updates, self.state.unflatten(self.stage, new_state)

    def _finish(
        self, names: tuple[str, ...], leaves: Leaves, gathered: Gathered
    ) -> tuple[Leaves, Leaves]:
        self.function.check(self.stage, leaves)
        if self.ties is not None:
            leaves, gathered = self._summed(leaves, gathered)
        finish = self.function.finish[names][self.stage]
        inboxes = self.function.inboxes(gathered)
        results = () if finish is None else finish.compute(leaves, inboxes)
        return self.parts(results)

    def _summed(self, leaves: Leaves, gathered: Gathered) -> tuple[Leaves, Gathered]:
        """Sums tied gradients, which are the messages of the first round."""
        assert self.ties is not None
        return self.ties.sums(self.stage, leaves, gathered[0]), gathered[1:]

    def parts(self, results: Leaves) -> tuple[Leaves, Leaves]:
        """Splits results into leaves of parameters (or updates) and of the state."""
        count = len(self.partition.params.held[self.stage])
        return results[:count], results[count:]

    def _take_all(self, *trees: PyTree) -> tuple[Leaves, Put]:
        leaves, put = self.take(*trees)
        return [*leaves, *self.arrays], put

    def take(
        self,
        grads: PyTree,
        state: PyTree,
        params: PyTree,
        extra_args: Mapping[str, PyTree],
    ) -> tuple[Leaves, Put]:
        """The leaves of all pieces, and a function that replaces the parameters."""
        leaves, put = self.partition.take("params", self.stage, params)
        leaves += self.state.flatten("states", self.stage, state)
        leaves += self.partition.take_gradients(self.stage, grads)
        if extra_args or self.extra_args.paths:
            leaves += self.extra_args.flatten("extra_args", self.stage, extra_args)
        if self.ties is not None:
            leaves = self.ties.filled(self.stage, leaves)
        return leaves, put


@dataclass(frozen=True, eq=False)
class StageTrees:
    """The trees of the stages of this process, as leaves on their devices.

    **Attributes:**

    - `programs`: the programs of all stages.
    - `here`: the stages of this process.
    - `arrays`: the arrays of the recipe.
    - `meshes`: the shardings of the stages, if `meshes` of `stage_local` are set.
    """

    programs: tuple[StageProgram, ...]
    here: frozenset[int]
    arrays: ReplicatedArrays
    meshes: tuple[Sharding, ...] | None

    def extra_args(
        self, extra_args: Mapping[str, Any], params_by_stage: Pieces
    ) -> Sequence[PyTree]:
        """The extra arguments of each stage, on its own devices."""
        split = self.programs[0].extra_args
        return placed_extra_args(
            split, extra_args, self.here, params_by_stage, self.meshes
        )

    def take(
        self, stage: int, grads: PyTree, state: PyTree, params: PyTree, extra: PyTree
    ) -> tuple[Leaves, Put]:
        """The leaves of a stage, and a function that replaces its parameters."""
        leaves, put = self.programs[stage].take(grads, state, params, extra)
        if not self.arrays.values:
            return leaves, put
        mesh = None if self.meshes is None else self.meshes[stage]
        return [*leaves, *self.arrays.at(leaves, mesh)], put
