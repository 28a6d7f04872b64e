"""Laws that hold for every transformation, on drawn chains, trees and partitions."""

import functools
from collections.abc import Sequence
from typing import Any

import functional_opt as fo
import jax
import optax
from functional_opt.testing import assert_equal
from hypothesis import assume, given, settings, strategies as st
from strategies import chains, gradients, leaves, partition_of, staged_trees, values


MORE = settings().max_examples // 2
FEW = settings().max_examples // 4
DTYPES = ("float32", "float32", "float32", "bfloat16", "float16", "complex64")


def drawn_trees(tied: bool = False) -> st.SearchStrategy[Any]:
    return staged_trees(leaves(DTYPES), tied)


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
) -> list[Any]:
    """Each stage's parameters and state after each step."""
    staged = fo.stage_local(tx, params, partition)
    pieces = partition.split(params)
    states = staged.init(pieces)
    history = []
    for tree in grads:
        pieces, states = staged.step(partition.split(tree), states, pieces)
        history.append(list(zip(pieces, states, strict=True)))
    return history


# What is "bounded" here may draw a scalar parameter: the whole tree's norm squares and
# adds it in one operation, a stage rounds in between, and moments may cancel.


@settings(max_examples=MORE)
@given(drawn_trees(), chains(), st.data())
def test_stage_by_stage_is_as_on_the_whole_tree(staged_tree, named, data):
    shapes = staged_tree[0]
    assume(bears(named.tx, shapes))
    fo.testing.assert_stage_local_equal(
        named.tx,
        values(data.draw, shapes),
        partition_of(*staged_tree),
        grads=gradients(data.draw, shapes),
        grade="bounded",
    )


@settings(max_examples=FEW)
@given(drawn_trees(tied=True), chains(), st.data())
def test_stage_by_stage_with_tied_parameters(staged_tree, named, data):
    """Every copy is compared with the whole tree's parameter."""
    shapes = staged_tree[0]
    assume(bears(named.tx, shapes))
    fo.testing.assert_stage_local_equal(
        named.tx,
        values(data.draw, shapes),
        partition_of(*staged_tree),
        grads=gradients(data.draw, shapes),
        grade="bounded",
    )


@settings(max_examples=FEW)
@given(drawn_trees(tied=True), st.data())
def test_summands_of_whole_gradients_add_up_to_them(staged_tree, data):
    partition, grads = partition_of(*staged_tree), values(data.draw, staged_tree[0])
    sums = functools.reduce(
        lambda whole, piece: jax.tree.map(
            lambda x, y: y if x is None else x if y is None else x + y,
            whole,
            piece,
            is_leaf=lambda x: x is None,
        ),
        partition.split_gradients(grads),
    )
    assert_equal(sums, grads)


@settings(max_examples=FEW)
@given(drawn_trees(tied=True), st.data())
def test_stages_are_merged_in_any_order(staged_tree, data):
    """Copies of a parameter are equal, so that any of them may be taken."""
    shapes, owners, num_stages = staged_tree
    number = data.draw(st.permutations(range(num_stages)))
    renumbered = [frozenset(number[s] for s in place) for place in owners]
    partition = partition_of(shapes, renumbered, num_stages)
    params = values(data.draw, shapes)
    pieces = partition_of(*staged_tree).split(params)
    order = sorted(range(num_stages), key=number.__getitem__)
    assert_equal(partition.merge(tuple(pieces[s] for s in order)), params)


@settings(max_examples=FEW)
@given(drawn_trees(), chains(), st.data())
def test_one_stage_is_the_reference(staged_tree, named, data):
    shapes = staged_tree[0]
    assume(bears(named.tx, shapes))
    staged = fo.testing.assert_stage_local_equal(
        named.tx,
        values(data.draw, shapes),
        fo.partition(shapes, lambda *_: 0, num_stages=1),
        grads=gradients(data.draw, shapes),
    )
    assert staged.rounds == 0


@settings(max_examples=FEW)
@given(drawn_trees(), chains(), st.data())
def test_stages_of_other_numbers_have_other_programs_of_the_same_results(
    staged_tree, named, data
):
    shapes, stages, num_stages = staged_tree
    assume(bears(named.tx, shapes))
    number = data.draw(st.permutations(range(num_stages)))
    params, grads = values(data.draw, shapes), gradients(data.draw, shapes)
    renumbered = partition_of(shapes, [number[s] for s in stages], num_stages)
    history = run(named.tx, partition_of(*staged_tree), params, grads)
    other = run(named.tx, renumbered, params, grads)
    assert_equal([[pieces[s] for s in number] for pieces in other], history)


@settings(max_examples=FEW)
@given(drawn_trees(), chains(), st.data())
def test_a_finer_partition_changes_nothing(staged_tree, named, data):
    """Some leaves of a stage move to a new one, for one step from the same start."""
    shapes, stages, num_stages = staged_tree
    assume(bears(named.tx, shapes))
    params, (*_, grads) = values(data.draw, shapes), gradients(data.draw, shapes)
    split = data.draw(st.integers(0, num_stages - 1))
    moves = data.draw(st.lists(st.booleans(), min_size=len(stages)))
    finer = [
        num_stages if stage == split and moved else stage
        for stage, moved in zip(stages, moves, strict=False)
    ]
    steps = []
    for partition in (
        partition_of(*staged_tree),
        partition_of(shapes, finer, num_stages + 1),
    ):
        staged = fo.stage_local(named.tx, params, partition)
        pieces = partition.split(params)
        stepped, states = staged.step(
            partition.split(grads), staged.init(pieces), pieces
        )
        steps.append((partition.merge(stepped), staged.merge_state(states)))
    assert_equal(*steps, grade="bounded")
