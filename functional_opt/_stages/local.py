"""An Optax transformation as one program a stage."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, Sharding
from jaxtyping import PyTree

from .._types import typed
from .axis import StageAxis
from .derive.derive import derive
from .derive.functions import Leaves
from .derive.tracing import check_transformation
from .extra import split_extra_args, values_of
from .partition import is_param, StagePartition
from .program import StageProgram
from .report import table
from .run.exchange import devices_text, place, placement_of, placements_on, put
from .run.processes import check_pieces_here, check_same_plan, local_stages
from .run.running import Arguments, PlacedRunners, Placements, placements_of, Runners
from .run.tied import TiedGradients
from .trees import check_stages, Cut, Pieces


@typed
def stage_local(
    tx: Any,
    params: PyTree,
    partition: StagePartition,
    *,
    meshes: Sequence[Mesh | jax.Device] | None = None,
    donate: bool = False,
    grads: PyTree | None = None,
    extra_args: Mapping[str, Any] | None = None,
    state_stage_of: Callable[[tuple[Any, ...], Any], Any] | None = None,
    travel_limit: int = 0,
) -> "StageLocal":
    """Cuts an Optax transformation into one program a stage.

    The programs give what `tx.update` and `optax.apply_updates`, jitted on the whole
    tree, give. Stages exchange only what the transformation mixes, such as the sum of
    squares of a global norm. `print` the result to see what that is.

    **Arguments:**

    - `tx`: any Optax transformation.
    - `params`: the tree that was partitioned. Shapes and dtypes suffice.
    - `partition`: which stages own which parameter.
    - `meshes`: for each stage its device, or the mesh its parameters are sharded on.
        If left out, a stage is where the parameters given to `step` are. Many processes
        need it, the same in each of them: a process has the stages on its devices.
    - `donate`: whether `step` may reuse the memory of the parameters and the state
        that it is given, which are lost then.
    - `grads`: gradients, or their shapes and dtypes, where these are not those of the
        parameters: for one gradient an example, or for another dtype.
    - `extra_args`: examples, or shapes and dtypes, of the extra arguments of
        `tx.update`, such as the `value` of `optax.polyak_sgd`. Every stage is given
        them, but for those in an `OnStage`.
    - `state_stage_of`: like `stage_of` of `partition`, for the leaves of the state.
        Where it returns None, or is left out, whose a leaf is follows from how `tx`
        makes and uses it.
    - `travel_limit`: stages exchange only values without a dimension of a parameter:
        norms, counters, factors, small histories. If given, they also exchange any
        value of at most this many bytes, so that transformations that mix small
        tensors of several stages are accepted.

    **Returns:** a `StageLocal`.

    **Raises:** `CrossStageError` if the transformation mixes whole tensors of
    different stages; `ValueError` if its state would change shape or dtype from step
    to step.

    !!! Example

        >>> import functional_opt as fo, jax, jax.numpy as jnp, optax
        >>> params = {"embed": jnp.ones((8, 2)), "head": jnp.ones((2, 8))}
        >>> partition = fo.partition(params, {"embed": 0, "head": 1})
        >>> staged = fo.stage_local(optax.adam(1e-3), params, partition)
        >>> params_by_stage = partition.split(params)
        >>> states = staged.init(params_by_stage)
        >>> grads_by_stage = jax.tree.map(jnp.ones_like, params_by_stage)
        >>> params_by_stage, states = staged.step(
        ...     grads_by_stage, states, params_by_stage
        ... )
    """
    check_transformation(tx)
    derived = derive(
        tx,
        params,
        partition,
        grads,
        extra_args or {},
        state_stage_of,
        travel_limit,
    )
    step, num_stages = derived.step, partition.num_stages
    placements = None if meshes is None else placements_on(meshes, num_stages)
    here = None if placements is None else local_stages(placements)
    if placements is not None and jax.process_count() > 1:
        check_same_plan(step, placements, donate)
    runners = Runners.of(step, {"params", "state"} if donate else ())
    state, extra = step.arguments["state"], step.arguments["extra_args"]
    return StageLocal(
        partition,
        tuple(
            StageProgram(partition, state, extra, derived.tied, runner)
            for runner in runners.stages
        ),
        here or frozenset(range(num_stages)),
        Runners.of(derived.init),
        runners,
        derived.tied,
        state,
        placements,
    )


@dataclass(frozen=True, eq=False)
class StageLocal:
    """An Optax transformation, cut into stages. Made by `stage_local`.

    Trees are given and returned as tuples of one piece a stage, as `partition.split`
    makes them.

    **Attributes:**

    - `partition`: which stages own which parameter.
    - `programs`: for each stage its `StageProgram`.
    - `local_stages`: the stages that have a device in this process: all of them, if
        there is only one.
    """

    partition: StagePartition
    programs: tuple[StageProgram, ...]
    local_stages: frozenset[int]
    _init: Runners
    _step: Runners
    _tied: TiedGradients | None
    _state: Cut
    _placements: tuple[Sharding, ...] | None

    @property
    def rounds(self) -> int:
        """How many rounds of exchange a step takes."""
        return self.programs[0].rounds

    def init(self, params_by_stage: Pieces) -> tuple[PyTree, ...]:
        """The state that `tx.init` makes, each stage's piece on its own devices.

        **Arguments:**

        - `params_by_stage`: each stage's parameters.
        """
        runners, arguments = self._init_of(params_by_stage)
        return self._state_pieces(runners.run(("state",), arguments), 0)

    def _init_of(
        self, params_by_stage: Pieces
    ) -> tuple[PlacedRunners, list[Arguments]]:
        self._check("params_by_stage", params_by_stage)
        arguments: list[Arguments] = [
            None
            if piece is None
            else {"params": self.partition.take("params", stage, piece)[0]}
            for stage, piece in enumerate(params_by_stage)
        ]
        return self._init.at(self._placements_of(arguments)), arguments

    def step(
        self,
        grads_by_stage: Pieces,
        states: Pieces,
        params_by_stage: Pieces,
        **extra_args: Any,
    ) -> tuple[tuple[PyTree, ...], tuple[PyTree, ...]]:
        """Updates the parameters: `tx.update` and `optax.apply_updates`.

        **Arguments:**

        - `grads_by_stage`: the gradients of each stage's parameters. Other leaves may
            be there or be None. Those of a parameter that several stages own are
            summed over its owners, in their order.
        - `states`: as `init` or the last step returned them.
        - `params_by_stage`: each stage's parameters.
        - `extra_args`: the extra arguments that `stage_local` was told of. Those of a
            stage of another process may be left out.

        In many processes the pieces of other processes' stages are None, here and in
        what is returned.

        **Returns:** the new parameters and the new states.

        **Raises:** `ValueError` naming the stage and the first path that does not fit.
        """
        arguments, puts = self._take(
            grads_by_stage, states, params_by_stage, extra_args
        )
        results = self._update(("params", "state"), arguments)
        params = tuple(
            None if put is None or result is None else put(result[0])
            for put, result in zip(puts, results, strict=True)
        )
        return params, self._state_pieces(results, 1)

    def update(
        self,
        grads_by_stage: Pieces,
        states: Pieces,
        params_by_stage: Pieces,
        **extra_args: Any,
    ) -> tuple[tuple[PyTree, ...], tuple[PyTree, ...]]:
        """The updates, not yet applied, and the new states: `tx.update`.

        Takes and raises what `step` does. An update has None where there is no
        parameter, as `equinox.apply_updates` wants it.
        """
        arguments, _ = self._take(grads_by_stage, states, params_by_stage, extra_args)
        results = self._update(("updates", "state"), arguments)
        updates = tuple(
            None
            if result is None
            else self.partition.params.unflatten(stage, result[0])
            for stage, result in enumerate(results)
        )
        return updates, self._state_pieces(results, 1)

    def over_axis(self, axis_name: Hashable) -> StageAxis:
        """The step of uniform stages inside `jax.shard_map`, one for each slice.

        **Arguments:**

        - `axis_name`: of a mesh axis that has as many slices as there are stages.

        **Raises:** `ValueError` if the stages' leaves differ in shape or dtype, or if a
        parameter is tied.
        """
        return StageAxis(self.programs, axis_name)

    def merge_state(self, states: Pieces) -> PyTree:
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
        """Cuts a whole state, so that one checkpoint fits any number of stages.

        **Arguments:**

        - `state`: as `tx.init` and `tx.update` of the whole tree return it.
        - `params_by_stage`: each stage's parameters. If given, the state goes where
            `init` puts it: to its stage's devices, sharded like its parameter. If left
            out, to the devices of `meshes`, if there are any, a copy on each.
        """
        pieces = self._state.split(self._state.flatten_whole("state", state))
        if params_by_stage is None and self._placements is None:
            # What several stages hold must not be one buffer: it would be donated once
            # for all of them.
            return pieces[:1] + jax.tree.map(jnp.copy, pieces[1:])
        shardings = self._state_shardings(params_by_stage)
        return tuple(
            None if wanted is None else self._put_state(stage, piece, wanted)
            for stage, (piece, wanted) in enumerate(zip(pieces, shardings, strict=True))
        )

    def _state_shardings(
        self, params_by_stage: Pieces | None
    ) -> list[Sequence[Sharding] | None]:
        if params_by_stage is None:
            placements = self._placements or ()
            return [
                [where] * len(held) if stage in self.local_stages else None
                for stage, (held, where) in enumerate(
                    zip(self._state.held, placements, strict=True)
                )
            ]
        runners, arguments = self._init_of(params_by_stage)
        return [
            None if given is None else runners.shardings("state", stage, given)
            for stage, given in enumerate(arguments)
        ]

    def _put_state(
        self, stage: int, piece: PyTree, shardings: Sequence[Sharding]
    ) -> PyTree:
        leaves = map(put, self._state.flatten("state", stage, piece), shardings)
        return self._state.unflatten(stage, list(leaves))

    def __str__(self) -> str:
        sums = [] if self._tied is None else [self._tied.runners.function]
        return table(self._step.function, sums)

    def _check(self, name: str, pieces: Pieces) -> None:
        num_stages = self.partition.num_stages
        check_stages(name, pieces, num_stages)
        check_pieces_here(name, pieces, self.local_stages, num_stages)

    def _placed_extra_args(
        self, extra_args: Mapping[str, Any], params_by_stage: Pieces
    ) -> Sequence[PyTree]:
        """Each stage's extra arguments, on its own devices."""
        cut, here = self.programs[0].extra_args, self.local_stages
        pieces = split_extra_args(cut, extra_args, here)
        if not cut.paths:
            return pieces
        placements = self._placements or [
            placement_of(next(filter(is_param, jax.tree.leaves(piece)), None))
            for piece in params_by_stage
        ]
        return [
            place(piece, where) if stage in here else None
            for stage, (piece, where) in enumerate(zip(pieces, placements, strict=True))
        ]

    def _state_pieces(
        self, results: Sequence[Sequence[Leaves] | None], number: int
    ) -> tuple[PyTree, ...]:
        return tuple(
            None if result is None else self._state.unflatten(stage, result[number])
            for stage, result in enumerate(results)
        )

    def _take(
        self,
        grads_by_stage: Pieces,
        states: Pieces,
        params_by_stage: Pieces,
        extra_args: Mapping[str, Any],
    ) -> tuple[list[Arguments], list[Callable[[Leaves], PyTree] | None]]:
        self._check("grads_by_stage", grads_by_stage)
        self._check("states", states)
        self._check("params_by_stage", params_by_stage)
        extra = self._placed_extra_args(values_of(extra_args), params_by_stage)
        arguments: list[Arguments] = [None] * len(self.programs)
        puts: list[Callable[[Leaves], PyTree] | None] = [None] * len(self.programs)
        for stage in sorted(self.local_stages):
            arguments[stage], puts[stage] = self.programs[stage].take(
                grads_by_stage[stage],
                states[stage],
                params_by_stage[stage],
                extra[stage],
            )
        return arguments, puts

    def _update(
        self, names: tuple[str, ...], arguments: list[Arguments]
    ) -> list[tuple[Leaves, ...] | None]:
        """Sums tied gradients first, and then computes the named results."""
        placements = self._placements_of(arguments)
        if self._tied is not None:
            try:
                arguments = self._tied.sum(arguments, placements)
            except ValueError:
                self._step.check(names, arguments)
                raise
        return self._step.at(placements).run(names, arguments)

    def _placements_of(self, arguments: Sequence[Arguments]) -> Placements:
        found = placements_of(arguments)
        if self._placements is None:
            return found
        for stage, (wanted, given) in enumerate(
            zip(self._placements, found, strict=True)
        ):
            if given is not None and given.device_set != wanted.device_set:
                raise ValueError(
                    f"`meshes` has stage {stage} on {devices_text(wanted.device_set)}, "
                    f"but what it is given is on {devices_text(given.device_set)}. Use "
                    "`jax.device_put`."
                )
        return self._placements
