"""Derives the programs of a transformation, and builds a `StageLocal`."""

import jax
from jaxtyping import PyTree

from .._types import check_transformation
from .derive.derive import derive, INIT, STEP, UPDATE
from .hyperparameters import Hyperparameters
from .options import StageOptions
from .partition import StagePartition
from .program import StageProgram, StageTrees
from .run.building import ExecutorBuilder
from .run.compiling import CompileCache
from .run.counters import Counters
from .run.devices import shardings_on
from .run.executor import Executors
from .run.extra_args import ReplicatedArrays
from .run.processes import check_same_plan, local_stages
from .run.state_sharding import StateAxes
from .run.views import Copies
from .states import StageStates
from .steps import StageLocal
from .whole_trees import WholeTrees


def split(
    hyperparameters: Hyperparameters,
    params: PyTree,
    partition: StagePartition,
    options: StageOptions,
) -> StageLocal:
    """The implementation of `stage_local` and `build_mpmd`."""
    check_transformation("tx", hyperparameters.tx)
    derived = derive(
        hyperparameters,
        params,
        partition,
        options.grads,
        options.extra_args or {},
        options.state_stage_of,
        options.travel_limit,
    )
    step, stages, donate = derived.step, range(partition.num_stages), options.donate
    meshes = options.meshes
    shardings = None if meshes is None else shardings_on(meshes, len(stages))
    axes = StateAxes.of(options.shard_state)
    for stage, sharding in enumerate(shardings or ()):
        axes.check(stage, sharding)
    here = frozenset(stages) if shardings is None else local_stages(shardings)
    if shardings is not None and jax.process_count() > 1:
        check_same_plan(step, shardings, hyperparameters, options)

    cache, ties = CompileCache(), derived.ties
    state, extra = step.arguments["state"], step.arguments["extra_args"]
    donated = {STEP: STEP, UPDATE: ("state",)} if donate else {STEP: (), UPDATE: ()}

    def updating(are_summed: bool) -> Executors:
        builder = ExecutorBuilder(step, here, donated, cache, ties, are_summed)
        return builder.executors(shardings, "grads" if donate == "all" else None)

    making = ExecutorBuilder(derived.init, here, {INIT: ()}, cache)
    init = making.executors(shardings, state_axes=axes)
    are_summed = options.tied_grads == "summed" or ties is None
    update = updating(are_summed)
    summed = update if are_summed else updating(True)
    ties = None if are_summed else ties
    counters, values = Counters(step, here), hyperparameters.arrays
    arrays = ReplicatedArrays(values)
    run = counters.runner(update)
    programs = tuple(
        StageProgram(s, partition, state, extra, step, ties, values) for s in stages
    )
    return StageLocal(
        partition,
        programs,
        here,
        options.tied_grads,
        update,
        counters,
        run,
        hyperparameters,
        StageStates(partition, state, here, shardings, init, arrays),
        StageTrees(programs, here, arrays, shardings),
        WholeTrees(
            hyperparameters,
            arrays,
            partition,
            state,
            extra,
            bool(donate),
            init,
            summed,
            counters,
            Copies(),
            shardings,
        ),
    )
