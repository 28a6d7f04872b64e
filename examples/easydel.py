"""Stage-local updates for the trainer of EasyDeL, in place of its own optimizers.

EasyDeL's trainer holds one tree, with each leaf on the devices of its stage. It calls
three functions of its optimizer, with arguments by keyword:

- `init(params)`, also under `jax.eval_shape`;
- `update(updates, state, params)`;
- `apply_gradients_stage_local(params, grads, opt_state, learning_rate_fn,
  delete_grads)`, which returns the new parameters and the new state.

To use this, override `get_optimizer_and_scheduler` of its `TrainingArguments` to return
`StageLocalOptimizer(tx)` and the schedule in `tx`.
"""

from typing import Any

import functional_opt as fo
import jax
import optax
from jax.core import Tracer


class StageLocalOptimizer:
    """What EasyDeL's trainer expects of its optimizer.

    **Arguments:**

    - `tx`: any Optax transformation, with its schedule.
    - `options`: those of `fo.stage_local`.
    """

    def __init__(self, tx: optax.GradientTransformation, **options: Any) -> None:
        self._tx, self._options = tx, options
        self._split: dict[Any, fo.WholeTransformation] = {}

    def init(self, params: Any) -> Any:
        return self._whole(params).init(params)

    def update(self, updates: Any, state: Any, params: Any) -> Any:
        return self._whole(params).update(updates, state, params)

    def apply_gradients_stage_local(
        self,
        *,
        params: Any,
        grads: Any,
        opt_state: Any,
        learning_rate_fn: Any = None,
        delete_grads: bool = False,
    ) -> tuple[Any, Any]:
        del learning_rate_fn  # the schedule is in `tx`
        results = self._whole(params).step(grads, opt_state, params)
        if delete_grads:
            jax.tree.map(lambda grad: grad.delete(), grads)
        return results

    def _whole(self, params: Any) -> Any:
        """The transformation, split once for the devices of these parameters."""
        leaves, structure = jax.tree.flatten(params)
        if not all(
            isinstance(x, jax.Array) and not isinstance(x, Tracer) for x in leaves
        ):
            return self._tx  # shapes only
        key = structure, tuple((x.shape, x.dtype, x.sharding) for x in leaves)
        if key not in self._split:
            partition = fo.partition_by_devices(params)
            staged = fo.stage_local(self._tx, params, partition, **self._options)
            self._split[key] = staged.whole
        return self._split[key]
