"""Splits an Optax transformation into one program per pipeline stage."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh
from jaxtyping import PyTree

from .._types import Transformation, typed
from .derive.derive import derive, INIT, STEP, UPDATE
from .derive.tracing import check_transformation
from .partition import StagePartition
from .program import StageProgram
from .run.building import ExecutorBuilder
from .run.compiling import CompileCache
from .run.devices import shardings_on
from .run.executor import Executors
from .run.processes import check_same_plan, local_stages
from .steps import Donate, StageLocal, TiedGrads
from .whole import WholeTrees


@typed
def stage_local(
    tx: Transformation,
    params: PyTree,
    partition: StagePartition,
    *,
    meshes: Sequence[Mesh | jax.Device] | None = None,
    donate: Donate = False,
    tied_grads: TiedGrads = "partial",
    grads: PyTree | None = None,
    extra_args: Mapping[str, Any] | None = None,
    state_stage_of: Callable[[tuple[Any, ...], Any], Any] | None = None,
    travel_limit: int = 0,
    process_timeout: float | int = 300,
) -> StageLocal:
    """Splits an Optax transformation into one program per pipeline stage.

    Together, the programs compute the same result as a jitted `tx.update` followed by
    `optax.apply_updates` on the whole tree. Stages exchange only the values that the
    transformation combines across stages, such as the sums of squares of a global norm.
    `print` the result to see these values.

    **Arguments:**

    - `tx`: any Optax transformation.
    - `params`: the tree that was partitioned, or its shapes and dtypes.
    - `partition`: the stages that own each parameter.
    - `meshes`: for each stage its device, or the mesh that its parameters are sharded
        on. If omitted, a stage runs on the devices of the parameters passed to `step`.
        Required with several processes, and equal in all of them: each process runs the
        stages on its devices.
    - `donate`: if true, `step` donates the buffers of `params_by_stage` and `states`,
        and `update` those of `states`; do not use them afterwards. If "all", both also
        delete the gradients.
    - `tied_grads`: the form of the gradients of tied parameters. If "partial", each
        owner passes the gradient of its own use, and `step` sums them. If "summed",
        they are summed already, as by many pipeline runtimes. Then each owner passes
        the sum, which may be one array on the devices of all owners, or one owner
        passes it and the others pass None.
    - `grads`: gradients, or their shapes and dtypes, if these differ from those of the
        parameters: one gradient per example, or another dtype.
    - `extra_args`: examples, or shapes and dtypes, of the extra arguments of
        `tx.update`, such as the `value` of `optax.polyak_sgd`. They are replicated on
        every stage, except for those in an `OnStage`.
    - `state_stage_of`: like `stage_of` of `partition`, for the leaves of the state. If
        omitted, or where it returns None, the owner of a leaf is inferred from
        `tx.init` and `tx.update`.
    - `travel_limit`: by default, stages exchange only values that have no dimension of
        a parameter, such as norms, counters, scale factors and short histories. If
        set, they also exchange any value of at most this many bytes, so that
        transformations that mix small tensors of several stages are accepted.
    - `process_timeout`: with several processes, the number of seconds to wait for the
        others to call `stage_local`.

    **Returns:** a `StageLocal`.

    **Raises:** `CrossStageError` if the transformation mixes whole tensors of
    different stages; `ValueError` if an update changes a shape or dtype of the state;
    with several processes, `ValueError` if their arguments differ, and `RuntimeError`
    if one of them does not call `stage_local` in time.

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
    step, stages = derived.step, range(partition.num_stages)
    shardings = None if meshes is None else shardings_on(meshes, len(stages))
    here = frozenset(stages) if shardings is None else local_stages(shardings)
    if shardings is not None and jax.process_count() > 1:
        options = {"donate": donate, "tied_grads": tied_grads}
        check_same_plan(step, shardings, options, process_timeout)

    cache = CompileCache()
    state, extra = step.arguments["state"], step.arguments["extra_args"]
    donated = {STEP: STEP, UPDATE: ("state",)} if donate else {STEP: (), UPDATE: ()}

    def updating(are_summed: bool) -> Executors:
        builder = ExecutorBuilder(step, here, donated, cache, derived.ties, are_summed)
        return builder.executors(shardings, "grads" if donate == "all" else None)

    init = ExecutorBuilder(derived.init, here, {INIT: ()}, cache).executors(shardings)
    are_summed = tied_grads == "summed" or derived.ties is None
    update = updating(are_summed)
    summed = update if are_summed else updating(True)
    ties = None if are_summed else derived.ties
    return StageLocal(
        partition,
        tuple(StageProgram(s, partition, state, extra, step, ties) for s in stages),
        here,
        tied_grads,
        init,
        update,
        state,
        shardings,
        WholeTrees(tx, partition, state, extra, bool(donate), init, summed, shardings),
    )
