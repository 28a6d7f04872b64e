"""Traces the whole-tree update to a jaxpr, and checks the transformation."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import optax
from jax.extend.core import ClosedJaxpr
from jaxtyping import PyTree

from ..hyperparameters import Hyperparameters
from ..partition import only_params, StagePartition
from ..trees import difference_text, leaf_paths


def shapes_of_params(
    tree: PyTree, partition: StagePartition, name: str = "params"
) -> PyTree:
    """The shapes and dtypes of the parameters, or of their gradients."""
    form = partition.form_of(tree)
    form.flatten_whole(name, tree)
    return jax.tree.map(
        # Without `jax_enable_x64`, JAX turns a float64 array of NumPy into float32.
        lambda leaf: jax.ShapeDtypeStruct(
            leaf.shape, jax.dtypes.canonicalize_dtype(leaf.dtype)
        ),
        only_params(tree),
    )


def trace_init(hyperparameters: Hyperparameters, params: PyTree) -> ClosedJaxpr:
    """Traces the state of the whole tree."""

    def init(params: PyTree, arrays: Sequence[Any]) -> PyTree:
        return hyperparameters.tx_of(arrays).init(params)

    return jax.make_jaxpr(init)(params, hyperparameters.arrays)


def trace_update(
    hyperparameters: Hyperparameters,
    params: PyTree,
    state: PyTree,
    grads: PyTree,
    extra_args: Mapping[str, PyTree],
) -> ClosedJaxpr:
    """Traces the updates, the new parameters and the new state of the whole tree."""

    def update(
        params: PyTree,
        state: PyTree,
        grads: PyTree,
        extra_args: PyTree,
        arrays: Sequence[Any],
    ) -> Any:
        extended = optax.with_extra_args_support(hyperparameters.tx_of(arrays))
        updates, new_state = extended.update(grads, state, params, **extra_args)
        _check_structure("updates", params, updates)
        _check_structure("the state", state, new_state)
        return updates, optax.apply_updates(params, updates), new_state

    arrays = hyperparameters.arrays
    closed = jax.make_jaxpr(update)(params, state, grads, dict(extra_args), arrays)
    num_params = len(jax.tree.leaves(params))
    _check_stable("parameter", params, closed.out_avals[num_params:])
    _check_stable("state leaf", state, closed.out_avals[2 * num_params :])
    return closed


def _check_structure(name: str, expected: PyTree, found: PyTree) -> None:
    structure = jax.tree.structure(expected)
    if jax.tree.structure(found) != structure:
        difference = difference_text(structure, leaf_paths(expected), found)
        raise ValueError(
            f"`tx.update` returns {name} with a different structure than it received: "
            f"{difference}."
        )


def _check_stable(kind: str, before: PyTree, after: Sequence[Any]) -> None:
    """Refuses a change of shape or dtype, which would recompile the next step."""
    for path, old, new in zip(
        leaf_paths(before), jax.tree.leaves(before), after, strict=False
    ):
        if _text(old) != _text(new):
            raise ValueError(
                f"The {kind} `{path}` is {_text(old)} before an update and "
                f"{_text(new)} after it, but an update must keep shapes and dtypes. "
                "Pass hyperparameters as Python floats or in the dtype of the "
                "parameters, or set the dtype of the state in the optimizer."
            )


def _text(aval: Any) -> str:
    weak = "weakly typed " if getattr(aval, "weak_type", False) else ""
    return f"{weak}{aval.dtype}{list(aval.shape)}"
