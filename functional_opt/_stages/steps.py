"""The public object of an Optax transformation that is split into stages."""

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
# Builds a piece from the leaves of its parameters.
Put = Callable[[Leaves], PyTree]


@dataclass(frozen=True, eq=False)
class StageLocal:
    """An Optax transformation, split into stages. Returned by `stage_local`.

    Trees are passed and returned as tuples with one piece per stage, as
    `partition.split` returns them.

    **Attributes:**

    - `partition`: the stages that own each parameter.
    - `programs`: for each stage its `StageProgram`.
    - `local_stages`: the stages with a device in this process; all stages if there is
        only one process.
    - `tied_grads`: the argument of `stage_local`.

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
        """The same update for whole trees, with each leaf on the devices of its stage.

        **Raises:** `ValueError` with several processes: none of them holds whole trees.
        """
        if len(self.local_stages) < self.partition.num_stages:
            raise ValueError(
                "`whole` requires all stages in one process, but process "
                f"{jax.process_index()} has {stages_text(self.local_stages)}. Use "
                "`step` with one tree per stage."
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
        """The state of `tx.init`, with the piece of each stage on its own devices.

        **Arguments:**

        - `params_by_stage`: the parameters of each stage.
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

        - `grads_by_stage`: the gradients of each stage. None in place of a gradient
            counts as zeros; leaves that are not parameters are ignored. The gradients
            of a tied parameter are summed over its owners, in the order of the stages,
            unless `tied_grads` is "summed".
        - `states`: the states that `init` or the last step returned.
        - `params_by_stage`: the parameters of each stage.
        - `extra_args`: the extra arguments that were declared to `stage_local`. Those
            of a stage of another process may be omitted.

        With several processes, the pieces of stages of other processes are None, in
        arguments and results.

        **Returns:** the new parameters and the new states.

        **Raises:** `ValueError` with the stage and the first path that does not fit.
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

        The arguments and errors are those of `step`. An update has None in place of
        leaves that are not parameters, as `equinox.apply_updates` expects. `donate`
        donates only the buffers of `states`.
        """
        leaves, _ = self._take(grads_by_stage, states, params_by_stage, extra_args)
        unflatten = self.partition.params.unflatten
        puts = {s: functools.partial(unflatten, s) for s in self.local_stages}
        return self._pieces(self._update.run(UPDATE, leaves), puts)

    @typed
    def over_axis(self, axis_name: Hashable) -> StageAxis:
        """The step of uniform stages inside `jax.shard_map`, one stage per slice.

        **Arguments:**

        - `axis_name`: the name of a mesh axis with one slice per stage.

        **Raises:** `ValueError` if the leaves of the stages differ in shape or dtype,
        or if a parameter is tied.
        """
        return StageAxis(self.programs, axis_name)

    @shown_short
    def merge_state(self, states: States) -> PyTree:
        """Merges the states of all stages into the state of `tx` for the whole tree.

        This requires all stages to be on devices of this process.
        """
        check_stages("states", states, self.partition.num_stages)
        return self._state.merge(
            [self._state.flatten("states", s, piece) for s, piece in enumerate(states)]
        )

    @typed
    def split_state(
        self, state: PyTree, params_by_stage: Pieces | None = None
    ) -> tuple[PyTree, ...]:
        """Splits a whole state into one state per stage: the inverse of `merge_state`.

        **Arguments:**

        - `state`: a state that `tx.init` or `tx.update` returned for the whole tree.
        - `params_by_stage`: the parameters of each stage. If given, each leaf of the
            state is sharded like its parameter, on the devices of its stage, as `init`
            does. If omitted, it is replicated on `meshes`, or stays where it is if
            `stage_local` was called without.
        """
        split, shardings = self._state, self._state_shardings(params_by_stage)
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

    def _state_shardings(
        self, params_by_stage: Pieces | None
    ) -> Mapping[int, Sequence[Sharding]] | None:
        """The shardings of the state of each stage; None if they are unknown."""
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
        # It is immutable but for its compiled programs, which copies may share.
        return self

    def __reduce__(self) -> Any:
        raise TypeError(
            "A `StageLocal` cannot be pickled, because it holds compiled functions. "
            "Pickle the arguments of `stage_local`, such as a `Recipe`, and call it "
            "again."
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
        """The pieces of the parameters or updates, and of the state, of each stage."""
        first: list[PyTree] = [None] * len(results)
        states: list[PyTree] = [None] * len(results)
        for stage in self.local_stages:
            leaves, state = self.programs[stage].parts(results[stage] or ())
            first[stage] = puts[stage](leaves)
            states[stage] = self._state.unflatten(stage, state)
        return tuple(first), tuple(states)
