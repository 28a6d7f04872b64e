"""Splits an Optax transformation into one program per pipeline stage."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh
from jaxtyping import PyTree

from .._types import check_transformation, Transformation, typed
from .hyperparameters import Hyperparameters
from .options import Donate, MeshAxes, StageOptions, TiedGrads
from .partition import StagePartition
from .splitting import split
from .steps import StageLocal


@typed
def stage_local(
    tx: Transformation,
    params: PyTree,
    partition: StagePartition,
    *,
    meshes: Sequence[Mesh | jax.Device] | None = None,
    donate: Donate = False,
    tied_grads: TiedGrads = "partial",
    shard_state: MeshAxes | None = None,
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

    - `tx`: any Optax transformation. Arrays that its functions close over are constants
        of the programs, while `build_mpmd` makes the arrays of a recipe inputs.
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
    - `shard_state`: the mesh axis, or axes, over which each leaf of the state is
        sharded, in addition to the sharding of its parameter: along the first dimension
        that is not sharded and that they divide. Leaves without one are replicated
        along them. Parameters keep their shardings.
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
    options = StageOptions(
        meshes=meshes,
        donate=donate,
        tied_grads=tied_grads,
        shard_state=shard_state,
        grads=grads,
        extra_args=extra_args,
        state_stage_of=state_stage_of,
        travel_limit=travel_limit,
        process_timeout=process_timeout,
    )
    check_transformation("tx", tx)
    return split(Hyperparameters.of(tx), params, partition, options)
