"""An Optax transformation as one program a stage."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, Sharding
from jaxtyping import PyTree

from .._types import typed
from .exchange import gather, on_mesh, placement_of
from .explain import table
from .functions import Leaves, StagedFunction
from .ownership import owners_by_init, owners_by_use
from .partition import StagePartition
from .program import StageProgram, StageRunner
from .tracing import check_transformation, shapes_of_params, trace_update
from .trees import check_stages, Cut, Pieces


@typed
def stage_local(
    tx: Any,
    params: PyTree,
    partition: StagePartition,
    *,
    meshes: Sequence[Mesh | jax.Device] | None = None,
    donate: bool = False,
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
        If left out, a stage is where the parameters given to `step` are.
    - `donate`: whether `step` may reuse the memory of the parameters and the state
        that it is given, which are lost then.

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
    shapes = shapes_of_params(params, partition)
    state = jax.eval_shape(tx.init, shapes)
    update = trace_update(tx, shapes, state)
    cut = partition.params
    owners = owners_by_init(tx, shapes, cut, state)
    if owners is None:
        first = 2 * len(cut.paths)
        owners = owners_by_use(update, cut, first, len(jax.tree.leaves(state)))
    state_cut = Cut.of(
        state, owners, partition.num_stages, "the state of this transformation"
    )
    step = StagedFunction.of(
        update,
        {"grads": cut, "state": state_cut, "params": cut},
        {"updates": cut, "params": cut, "state": state_cut},
    )
    init = StagedFunction.of(
        jax.make_jaxpr(tx.init)(shapes), {"params": cut}, {"state": state_cut}
    )
    stages = range(partition.num_stages)
    donated = frozenset({"params", "state"} if donate else ())
    runners = [StageRunner(step, stage, donated) for stage in stages]
    return StageLocal(
        partition,
        tuple(StageProgram(partition, state_cut, runner) for runner in runners),
        tuple(StageRunner(init, stage) for stage in stages),
        state_cut,
        None if meshes is None else _placements(meshes, partition.num_stages),
    )


@dataclass(frozen=True, eq=False)
class StageLocal:
    """An Optax transformation, cut into stages. Made by `stage_local`.

    Trees are given and returned as tuples of one piece a stage, as `partition.split`
    makes them.

    **Attributes:**

    - `partition`: which stages own which parameter.
    - `programs`: for each stage its `StageProgram`.
    """

    partition: StagePartition
    programs: tuple[StageProgram, ...]
    _init: tuple[StageRunner, ...]
    _state: Cut
    _placements: tuple[Sharding, ...] | None

    @property
    def rounds(self) -> int:
        """How many rounds of exchange a step takes."""
        return self._step[0].function.num_rounds

    def init(self, params_by_stage: Pieces) -> tuple[PyTree, ...]:
        """The state that `tx.init` makes, each stage's piece on its own devices.

        **Arguments:**

        - `params_by_stage`: each stage's parameters.
        """
        check_stages("params_by_stage", params_by_stage, self.partition.num_stages)
        arguments = [
            {"params": self.partition.take("params", stage, piece)[0]}
            for stage, piece in enumerate(params_by_stage)
        ]
        states = [state for (state,) in self._run(self._init, ("state",), arguments)]
        if self._placements is not None:
            states = jax.device_put(states, list(self._placements))
        return self._state_pieces(states)

    def step(
        self,
        grads_by_stage: Pieces,
        states: Pieces,
        params_by_stage: Pieces,
    ) -> tuple[tuple[PyTree, ...], tuple[PyTree, ...]]:
        """Updates the parameters: `tx.update` and `optax.apply_updates`.

        **Arguments:**

        - `grads_by_stage`: the gradients of each stage's parameters. Other leaves may
            be there or be None.
        - `states`: as `init` or the last step returned them.
        - `params_by_stage`: each stage's parameters.

        **Returns:** the new parameters and the new states.

        **Raises:** `ValueError` naming the stage and the first path that does not fit.
        """
        arguments, puts = self._take(grads_by_stage, states, params_by_stage)
        results = self._run(self._step, ("params", "state"), arguments)
        params = tuple(put(new) for put, (new, _) in zip(puts, results, strict=True))
        return params, self._state_pieces([state for _, state in results])

    def update(
        self,
        grads_by_stage: Pieces,
        states: Pieces,
        params_by_stage: Pieces,
    ) -> tuple[tuple[PyTree, ...], tuple[PyTree, ...]]:
        """The updates, not yet applied, and the new states: `tx.update`.

        Takes and raises what `step` does. An update has None where there is no
        parameter, as `equinox.apply_updates` wants it.
        """
        arguments, _ = self._take(grads_by_stage, states, params_by_stage)
        results = self._run(self._step, ("updates", "state"), arguments)
        updates = tuple(
            self.partition.params.unflatten(stage, leaves)
            for stage, (leaves, _) in enumerate(results)
        )
        return updates, self._state_pieces([state for _, state in results])

    def merge_state(self, states: Pieces) -> PyTree:
        """The very state that `tx.update` would have made of the whole tree."""
        check_stages("states", states, self.partition.num_stages)
        return self._state.merge(
            [self._state.flatten("states", s, piece) for s, piece in enumerate(states)]
        )

    @typed
    def split_state(self, state: PyTree) -> tuple[PyTree, ...]:
        """Cuts a whole state, so that one checkpoint fits any number of stages."""
        pieces = self._state.split(self._state.flatten_whole("state", state))
        if self._placements is not None:
            return jax.device_put(pieces, self._placements)
        # What several stages hold must not be one buffer: donation would give it away.
        return pieces[:1] + jax.tree.map(jnp.copy, pieces[1:])

    def __str__(self) -> str:
        return table(self._step[0].function)

    @property
    def _step(self) -> tuple[StageRunner, ...]:
        return tuple(program.runner for program in self.programs)

    def _state_pieces(self, states: Sequence[Leaves]) -> tuple[PyTree, ...]:
        return tuple(map(self._state.unflatten, range(len(states)), states))

    def _take(
        self,
        grads_by_stage: Pieces,
        states: Pieces,
        params_by_stage: Pieces,
    ) -> tuple[list[dict[str, Leaves]], list[Callable[[Leaves], PyTree]]]:
        num_stages = self.partition.num_stages
        check_stages("grads_by_stage", grads_by_stage, num_stages)
        check_stages("states", states, num_stages)
        check_stages("params_by_stage", params_by_stage, num_stages)
        taken = [
            program.take(*pieces)
            for program, *pieces in zip(
                self.programs, grads_by_stage, states, params_by_stage, strict=True
            )
        ]
        return [arguments for arguments, _ in taken], [put for _, put in taken]

    def _run(
        self,
        runners: Sequence[StageRunner],
        names: tuple[str, ...],
        arguments: Sequence[Mapping[str, Leaves]],
    ) -> list[tuple[list[Any], ...]]:
        """All rounds, and then for each stage the named results."""
        placements = self._placements or tuple(map(_placement, arguments))
        gathered: list[list[Any]] = [[] for _ in runners]
        for round in range(runners[0].function.num_rounds):
            messages = [
                runner.say(round, leaves, heard)
                for runner, leaves, heard in zip(
                    runners, arguments, gathered, strict=True
                )
            ]
            received = gather(messages, placements)
            for heard, vectors in zip(gathered, received, strict=True):
                heard.append(vectors)
        return [
            runner.finish(names, leaves, heard)
            for runner, leaves, heard in zip(runners, arguments, gathered, strict=True)
        ]


def _placement(arguments: Mapping[str, Leaves]) -> Sharding | None:
    leaves = (leaf for leaves in arguments.values() for leaf in leaves)
    return placement_of(next(leaves, None))


def _placements(
    meshes: Sequence[Mesh | jax.Device], num_stages: int
) -> tuple[Sharding, ...]:
    if len(meshes) != num_stages:
        raise ValueError(
            f"`meshes` must have one mesh or device for each of the {num_stages} "
            f"stages, got {len(meshes)}."
        )
    return tuple(map(on_mesh, meshes))
