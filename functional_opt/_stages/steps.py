"""The public object of an Optax transformation that is split into stages."""

import dataclasses
import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jaxtyping import PyTree

from .._signatures import shown_short
from .._slicing.stage_sets import stages_text
from .._types import typed
from .axis import StageAxis
from .derive.derive import STEP, UPDATE
from .derive.slices import Leaves
from .hyperparameters import Hyperparameters
from .open_step import OpenStep
from .options import TiedGrads
from .partition import StagePartition
from .program import Put, StageProgram, StageTrees
from .report import as_text
from .run.counters import Counters
from .run.executor import Executors
from .run.extra_args import ReplicatedArrays
from .run.layout import LeavesByStage
from .states import StageStates
from .trees import check_pieces, Pieces, States
from .whole import WholeTransformation
from .whole_trees import WholeTrees


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
    _update: Executors
    _counters: Counters
    _run: Callable[[tuple[str, ...], LeavesByStage], list[Any]]
    _hyperparameters: Hyperparameters
    _states: StageStates
    _trees: StageTrees
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
        """The bytes that each stage sends in a step.

        Steps that do not require a round skip it: with `accumulate` of a recipe, only
        the last gradient of each update starts an exchange.
        """
        return tuple(program.bytes_sent for program in self.programs)

    @shown_short
    def init(self, params_by_stage: Pieces) -> tuple[PyTree, ...]:
        """The state of `tx.init`, with the piece of each stage on its own devices.

        **Arguments:**

        - `params_by_stage`: the parameters of each stage.
        """
        return self._states.init(params_by_stage)

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
        return self._pieces(self._run(STEP, leaves), puts)

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
        return self._pieces(self._run(UPDATE, leaves), puts)

    @shown_short
    def begin(
        self, states: States, params_by_stage: Pieces, **extra_args: Any
    ) -> OpenStep:
        """Begins a step whose stages start as soon as their gradients are computed.

        The arguments and errors are those of `step`. `start(stage, grads)` of the
        result passes the gradients of a stage and sends its messages;
        `finish(stage)` returns its new parameters and its new state.
        """
        return OpenStep(
            self._trees,
            self._update,
            self._counters,
            states,
            params_by_stage,
            extra_args,
        )

    def with_hyperparameters(self, *configs: Any) -> "StageLocal":
        """The same programs with other values of hyperparameters that are arrays.

        Nothing is traced or compiled again. The arrays may be traced: derivatives with
        respect to them, and `jax.vmap`, work like those with respect to gradients.

        **Arguments:**

        - `configs`: what `build_mpmd` was called for, but for its arrays: the recipe;
            or the optimizer and its `schedule`. A number may stand for an array.

        **Raises:** `ValueError` naming the first field that differs in anything but
        the values of an array; or if `build_mpmd` found no array.
        """
        new = self._hyperparameters.replaced(configs)
        arrays = ReplicatedArrays(new.arrays)
        replaced = functools.partial(dataclasses.replace, arrays=arrays)
        each = (dataclasses.replace(p, arrays=new.arrays) for p in self.programs)
        programs = tuple(each)
        return dataclasses.replace(
            self,
            programs=programs,
            _hyperparameters=new,
            _trees=replaced(self._trees, programs=programs),
            _states=replaced(self._states),
            _whole=replaced(self._whole, hyperparameters=new),
        )

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
        return self._states.merge(states)

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
        return self._states.split(state, params_by_stage)

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

    def _take(
        self,
        grads_by_stage: Pieces,
        states: States,
        params_by_stage: Pieces,
        extra_args: Mapping[str, Any],
    ) -> tuple[list[Leaves | None], dict[int, Put]]:
        here, params = self.local_stages, self.partition.params
        check_pieces("grads_by_stage", grads_by_stage, params, here)
        check_pieces("states", states, self._states.tree, here)
        check_pieces("params_by_stage", params_by_stage, params, here)
        extra: Sequence[PyTree] = [{}] * len(self.programs)
        if extra_args or self.programs[0].extra_args.paths:
            extra = self._trees.extra_args(extra_args, params_by_stage)
        leaves: list[Leaves | None] = [None] * len(self.programs)
        puts: dict[int, Put] = {}
        for stage in here:
            leaves[stage], puts[stage] = self._trees.take(
                stage,
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
            states[stage] = self._states.tree.unflatten(stage, state)
        return tuple(first), tuple(states)
