"""Stage-local updates for the trainer of EasyDeL, in place of its own optimizers.

EasyDeL's trainer holds one tree, with each leaf on the devices of its stage. It calls
three functions of its optimizer, with arguments by keyword:

- `init(params)`, also under `jax.eval_shape`;
- `update(updates, state, params)`;
- `apply_gradients_stage_local(params, grads, opt_state, learning_rate_fn,
  delete_grads)`, which returns the new parameters and the new state.

To use this, override `get_optimizer_and_scheduler` of its `TrainingArguments` to return
`stage_local_optimizer(tx)` and the schedule in `tx`.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import functional_opt as fo
import jax
import optax
from jax.core import Tracer
from jaxtyping import PyTree


class StageLocalOptimizer(NamedTuple):
    """What EasyDeL's trainer expects of its optimizer."""

    init: Callable[..., PyTree]
    update: Callable[..., tuple[PyTree, PyTree]]
    apply_gradients_stage_local: Callable[..., tuple[PyTree, PyTree]]


def is_concrete(x: Any) -> bool:
    return isinstance(x, jax.Array) and not isinstance(x, Tracer)


def stage_local_optimizer(
    tx: optax.GradientTransformation, **options: Any
) -> StageLocalOptimizer:
    """An optimizer for EasyDeL; `options` are those of `fo.stage_local`."""

    @functools.cache
    def split(structure: Any, leaves: tuple[Any, ...]) -> fo.WholeTransformation:
        params = jax.tree.unflatten(structure, leaves)
        partition = fo.partition_by_devices(params)
        return fo.stage_local(tx, params, partition, **options).whole

    def whole(params: PyTree) -> Any:
        leaves, structure = jax.tree.flatten(params)
        if not all(map(is_concrete, leaves)):
            return tx
        placed = [
            jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding) for x in leaves
        ]
        return split(structure, tuple(placed))

    def apply_gradients(
        *,
        params: PyTree,
        grads: PyTree,
        opt_state: PyTree,
        learning_rate_fn: Any = None,
        delete_grads: bool = False,
    ) -> tuple[PyTree, PyTree]:
        del learning_rate_fn  # the schedule is in `tx`
        results = whole(params).step(grads, opt_state, params)
        if delete_grads:
            jax.tree.map(lambda grad: grad.delete(), grads)
        return results

    return StageLocalOptimizer(
        lambda params: whole(params).init(params),
        lambda updates, state, params: whole(params).update(updates, state, params),
        apply_gradients,
    )
