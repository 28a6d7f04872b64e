"""Laws that hold for every transformation, on drawn chains, trees and partitions."""

from collections.abc import Sequence
from typing import Any

import functional_opt as fo
import jax
import optax
from hypothesis import assume, given, settings, strategies as st
from strategies import chains, gradients, leaves, partition_of, staged_trees, values


FEW = settings(max_examples=max(10, settings().max_examples // 3))
DTYPES = ("float32", "float32", "float32", "bfloat16", "float16", "complex64")


def drawn_trees() -> st.SearchStrategy[Any]:
    return staged_trees(leaves(DTYPES))


def bears(tx: optax.GradientTransformation, shapes: Any) -> bool:
    """Whether the transformation itself accepts the tree, and keeps its state's form.

    Many fail on complex numbers, some on scalars, and some let a state's dtype drift.
    """
    try:
        state = jax.eval_shape(tx.init, shapes)
        updates, new_state = jax.eval_shape(tx.update, shapes, state, shapes)
        params = jax.eval_shape(optax.apply_updates, shapes, updates)
    # Optax's errors are of all kinds.
    except Exception:
        return False
    return forms((state, shapes)) == forms((new_state, params))


def forms(tree: Any) -> list[Any]:
    """Shape, dtype and weak type of every leaf, and the structure."""
    leaves, structure = jax.tree.flatten(tree)
    return [structure, *((x.shape, x.dtype, x.weak_type) for x in leaves)]


def run(
    tx: Any, partition: fo.StagePartition, params: Any, grads: Sequence[Any]
) -> tuple[fo.StageLocal, list[Any]]:
    """What `stage_local` made, and parameters and states after each step."""
    staged = fo.stage_local(tx, params, partition)
    pieces = partition.split(params)
    states = staged.init(pieces)
    history = []
    for tree in grads:
        pieces, states = staged.step(partition.split(tree), states, pieces)
        history.append((pieces, states))
    return staged, history


@given(drawn_trees(), chains(), st.data())
def test_stage_by_stage_is_as_on_the_whole_tree(staged_tree, named, data):
    shapes = staged_tree[0]
    assume(bears(named.tx, shapes))
    fo.testing.assert_stage_local_equal(
        named.tx,
        values(data.draw, shapes),
        partition_of(*staged_tree),
        grads=gradients(data.draw, shapes),
        grade="close",
    )
