"""Averages of the parameters over the run."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree
from optax.contrib import schedule_free_eval_params, ScheduleFreeState

from .._types import Scalar
from .finding import find_all


class ParamsEmaState(NamedTuple):
    """The exponential moving average of the parameters, in float32 or wider."""

    ema: PyTree


def params_ema(decay: Scalar) -> optax.GradientTransformation:
    """Tracks the exponential moving average of the updated parameters.

    It must be last in a chain: it is `optax.incremental_update` of the result of
    `optax.apply_updates`, starting with the initial parameters.
    """

    def init(params: Any) -> ParamsEmaState:
        return ParamsEmaState(jax.tree.map(_wide, params))

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        if params is None:
            raise ValueError(
                "An average of the parameters needs them: `update(grads, state, "
                "params)`."
            )
        applied = optax.apply_updates(params, updates)
        ema = optax.incremental_update(
            jax.tree.map(_wide, applied), state.ema, 1 - decay
        )
        return updates, ParamsEmaState(ema)

    return optax.GradientTransformation(init, update)


def _wide(leaf: Any) -> jax.Array:
    # A copy, so that parameters and state can both be donated.
    return jnp.array(leaf, jnp.promote_types(leaf.dtype, jnp.float32))


def averaged_params(state: PyTree, params: PyTree) -> PyTree:
    """The parameters, replaced by their averages if the state has any."""
    for found in find_all(state, ParamsEmaState):
        params = _replaced(params, found.ema, lambda ema, x: ema.astype(x.dtype))
    for found in find_all(state, ScheduleFreeState):
        params = _replaced(
            params,
            found.z,
            lambda z, x, found=found: schedule_free_eval_params(
                found._replace(z=z), x
            ).astype(x.dtype),
        )
    return params


def _replaced(params: PyTree, tree: PyTree, function: Any) -> PyTree:
    """Applies a function where the tree has an entry, and returns the others as is."""
    return jax.tree.map(
        lambda leaf, param: param if _is_nothing(leaf) else function(leaf, param),
        tree,
        params,
        is_leaf=_is_nothing,
    )


def _is_nothing(node: Any) -> bool:
    return node is None or isinstance(node, optax.MaskedNode)
