"""An Optax transformation that is split into stages, as its users call it."""

import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import Sharding
from jaxtyping import PyTree

from .._signatures import shown_short
from .._slicing.stage_sets import stages_text
from .._types import typed
from .axis import StageAxis
from .derive.derive import INIT, STEP, UPDATE
from .derive.slices import Leaves
from .partition import StagePartition
from .program import StageProgram
from .report import as_text
from .run.devices import put
from .run.executor import Executors, is_traced
from .run.extra_args import placed_extra_args
from .run.processes import check_pieces_here
from .trees import check_stages, Pieces, States, TreeSplit
from .whole import WholeTransformation, WholeTrees


Donate = bool | Literal["all"]
TiedGrads = Literal["partial", "summed"]
# Makes a piece of the leaves of the parameters in it.
Put = Callable[[Leaves], PyTree]


@dataclass(frozen=True, eq=False)
class StageLocal:
    """An Optax transformation, split into stages. Made by `stage_local`.

    Trees are given and returned as tuples of one piece per stage, as `partition.split`
    makes them.

    **Attributes:**

    - `partition`: which stages own which parameter.
    - `programs`: for each stage its `StageProgram`.
    - `local_stages`: the stages that have a device in this process: all of them, if
        there is only one.
    - `tied_grads`: as `stage_local` was given it.

    !!! Example

        >>> import functional_opt as fo, jax.numpy as jnp, optax
        >>> params = {"embed": jnp.ones((8, 2)), "head": jnp.ones((2, 8))}
        >>> partition = fo.partition(params, {"embed": 0, "head": 1})
        >>> clipped = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1))
        >>> staged = fo.stage_local(clipped, params, partition)
        >>> staged.rounds, len(staged.programs)
        (1, 2)
    """

    partition: StagePartition
    programs: tuple[StageProgram, ...]
    local_stages: frozenset[int]
    tied_grads: TiedGrads
    _init: Executors
    _update: Executors
    _state: TreeSplit
    _meshes: tuple[Sharding, ...] | None
    _whole: WholeTrees

    @functools.cached_property
    def whole(self) -> WholeTransformation:
        """The same update for whole trees whose leaves lie where their stages are.

        **Raises:** `ValueError` with several processes, which hold no whole trees.
        """
        if len(self.local_stages) < self.partition.num_stages:
            raise ValueError(
                "`whole` is for one process that has all stages; here, "
                f"process {jax.process_index()} has "
                f"{stages_text(self.local_stages)}. Use `step` with each stage's trees."
            )
        return WholeTransformation.of(self._whole)

    @property
    def rounds(self) -> int:
        """The number of rounds of exchange in a step."""
        return self.programs[0].rounds

    @property
    def bytes_sent(self) -> tuple[int, ...]:
        """The bytes that each stage sends in a step."""
        return tuple(program.bytes_sent for program in self.programs)

    @shown_short
    def init(self, params_by_stage: Pieces) -> tuple[PyTree, ...]:
        """The state that `tx.init` makes, each stage's piece on its own devices.

        **Arguments:**

        - `params_by_stage`: each stage's parameters.
        """
        leaves = self._params_of(params_by_stage)
        results = self._init.run(INIT, leaves)
        states: list[PyTree] = [None] * len(results)
        for stage in self.local_stages:
            states[stage] = self._state.unflatten(stage, results[stage] or ())
        return tuple(states)

    def _params_of(self, params_by_stage: Pieces) -> list[Leaves | None]:
        self._check("params_by_stage", params_by_stage, self.partition.params)
        leaves: list[Leaves | None] = [None] * self.partition.num_stages
        for stage in self.local_stages:
            piece = params_by_stage[stage]
            leaves[stage], _ = self.partition.take("params", stage, piece)
        return leaves

    @shown_short
    def step(
        self,
        grads_by_stage: Pieces,
        states: States,
        params_by_stage: Pieces,
        **extra_args: Any,
    ) -> tuple[tuple[PyTree, ...], tuple[PyTree, ...]]:
        """Updates the parameters: `tx.update` and `optax.apply_updates`.

        **Arguments:**

        - `grads_by_stage`: the gradients of each stage's parameters. One that is None
            counts as zeros; other leaves may be there or be None. Gradients of a
            parameter that several stages own are summed over its owners, in their
            order, unless `tied_grads` is "summed".
        - `states`: as `init` or the last step returned them.
        - `params_by_stage`: each stage's parameters.
        - `extra_args`: the extra arguments that `stage_local` was told of. Those of a
            stage of another process may be left out.

        In many processes the pieces of other processes' stages are None, here and in
        what is returned.

        **Returns:** the new parameters and the new states.

        **Raises:** `ValueError` naming the stage and the first path that does not fit.
        """
        leaves, puts = self._take(grads_by_stage, states, params_by_stage, extra_args)
        return self._pieces(self._update.run(STEP, leaves), puts)

    @shown_short
    def update(
        self,
        grads_by_stage: Pieces,
        states: States,
        params_by_stage: Pieces,
        **extra_args: Any,
    ) -> tuple[tuple[PyTree, ...], tuple[PyTree, ...]]:
        """The updates, not yet applied, and the new states: `tx.update`.

        Takes and raises what `step` does. An update has None where there is no
        parameter, as `equinox.apply_updates` expects. Only the buffers of `states` are
        donated, if any.
        """
        leaves, _ = self._take(grads_by_stage, states, params_by_stage, extra_args)
        unflatten = self.partition.params.unflatten
        puts = {s: functools.partial(unflatten, s) for s in self.local_stages}
        return self._pieces(self._update.run(UPDATE, leaves), puts)

    @typed
    def over_axis(self, axis_name: Hashable) -> StageAxis:
        """The step of uniform stages inside `jax.shard_map`, one for each slice.

        **Arguments:**

        - `axis_name`: of a mesh axis that has as many slices as there are stages.

        **Raises:** `ValueError` if the stages' leaves differ in shape or dtype, or if a
        parameter is tied.
        """
        return StageAxis(self.programs, axis_name)

    @shown_short
    def merge_state(self, states: States) -> PyTree:
        """The very state that `tx.update` would have made of the whole tree.

        One process has all of it only if all stages are on its devices.
        """
        check_stages("states", states, self.partition.num_stages)
        return self._state.merge(
            [self._state.flatten("states", s, piece) for s, piece in enumerate(states)]
        )

    @typed
    def split_state(
        self, state: PyTree, params_by_stage: Pieces | None = None
    ) -> tuple[PyTree, ...]:
        """Splits a whole state, so that one checkpoint fits any number of stages.

        **Arguments:**

        - `state`: as `tx.init` and `tx.update` of the whole tree return it.
        - `params_by_stage`: each stage's parameters. If given, the state goes where
            `init` puts it: to its stage's devices, sharded like its parameter. If left
            out, to the devices of `meshes`, if there are any, a copy on each.
        """
        split, shardings = self._state, self._state_shardings(params_by_stage)
        leaves = split.flatten_whole("state", state)
        pieces = split.pieces(leaves)
        if shardings is None or is_traced([leaves]):
            # What several stages hold must not be one buffer: it would be donated once
            # for all of them.
            return pieces[:1] + jax.tree.map(jnp.copy, pieces[1:])
        placed: list[PyTree] = [None] * len(pieces)
        for stage, wanted in shardings.items():
            leaves = map(put, split.flatten("state", stage, pieces[stage]), wanted)
            placed[stage] = split.unflatten(stage, list(leaves))
        return tuple(placed)

    def _state_shardings(
        self, params_by_stage: Pieces | None
    ) -> Mapping[int, Sequence[Sharding]] | None:
        """How the leaves of each stage's state are sharded; None if on no devices."""
        if params_by_stage is not None:
            return self._init.shardings(INIT, self._params_of(params_by_stage))
        if self._meshes is None:
            return None
        held = self._state.held
        return {s: [self._meshes[s]] * len(held[s]) for s in self.local_stages}

    def __str__(self) -> str:
        return as_text(self.programs[0].function, self.programs[0].ties)

    def __copy__(self) -> "StageLocal":
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> "StageLocal":
        # Nothing in it changes, but for what it has compiled, which copies may share.
        return self

    def __reduce__(self) -> Any:
        raise TypeError(
            "A `StageLocal` cannot be pickled: it holds traced functions. Pickle what "
            "it is made of, such as a `Recipe`, and call `stage_local` again."
        )

    def _check(self, name: str, pieces: Pieces, split: TreeSplit) -> None:
        check_stages(name, pieces, self.partition.num_stages)
        if len(self.local_stages) < len(pieces):
            check_pieces_here(name, pieces, self.local_stages, split)

    def _take(
        self,
        grads_by_stage: Pieces,
        states: States,
        params_by_stage: Pieces,
        extra_args: Mapping[str, Any],
    ) -> tuple[list[Leaves | None], dict[int, Put]]:
        self._check("grads_by_stage", grads_by_stage, self.partition.params)
        self._check("states", states, self._state)
        self._check("params_by_stage", params_by_stage, self.partition.params)
        extra: list[Mapping[str, PyTree]] = [{}] * len(self.programs)
        split = self.programs[0].extra_args
        if extra_args or split.paths:
            extra = placed_extra_args(
                split, extra_args, self.local_stages, params_by_stage, self._meshes
            )
        leaves: list[Leaves | None] = [None] * len(self.programs)
        puts: dict[int, Put] = {}
        for stage in self.local_stages:
            leaves[stage], puts[stage] = self.programs[stage].take(
                grads_by_stage[stage],
                states[stage],
                params_by_stage[stage],
                extra[stage],
            )
        return leaves, puts

    def _pieces(
        self,
        results: Sequence[Leaves | None],
        puts: Mapping[int, Put],
    ) -> tuple[tuple[PyTree, ...], tuple[PyTree, ...]]:
        """Trees of parameters, or of their updates, and of the state."""
        first: list[PyTree] = [None] * len(results)
        states: list[PyTree] = [None] * len(results)
        for stage in self.local_stages:
            leaves, state = self.programs[stage].parts(results[stage] or ())
            first[stage] = puts[stage](leaves)
            states[stage] = self._state.unflatten(stage, state)
        return tuple(first), tuple(states)
