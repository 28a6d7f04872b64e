"""Stage-local against whole-tree, for drawn optimizers, trees, stages and gradients."""

import math

import functional_opt as fo
import jax
import jax.numpy as jnp
import optax
import pytest
from hypothesis import given, strategies as st
from strategies import decays, partition_of, rates, staged_trees, values


def schedules():
    return st.one_of(
        st.builds(fo.Constant, rates()),
        st.builds(
            fo.Linear,
            init_value=rates(),
            end_value=rates(),
            transition_steps=st.integers(1, 4),
            warmup_steps=st.integers(0, 2),
        ),
        st.builds(
            fo.Cosine,
            peak_value=rates(),
            end_value=rates(),
            warmup_steps=st.integers(0, 2),
            decay_steps=st.integers(3, 5),
        ),
    )


def optimizers():
    betas = {"b1": decays(), "b2": decays()}
    dtypes = st.sampled_from([None, "bfloat16"])
    adam = {**betas, "eps": st.floats(1e-8, 1e-2), "nesterov": st.booleans()}
    return st.one_of(
        st.builds(fo.Adam, **adam, mu_dtype=dtypes),
        st.builds(fo.AdamW, **adam, weight_decay=decays()),
        st.builds(fo.Lion, **betas, mu_dtype=dtypes),
        st.builds(fo.SGD, momentum=st.none() | decays(), nesterov=st.booleans()),
    )


def recipes():
    """The fields alone: in tests, types are checked by chance, from `random`."""
    return st.fixed_dictionaries(
        {
            "optimizer": optimizers(),
            "schedule": schedules(),
            "clip_norm": st.none() | st.floats(0.1, 10.0),
            "weight_decay": st.none() | decays(),
            "accumulate": st.integers(1, 3),
        }
    )


@given(staged_trees(), recipes(), st.data())
def test_a_recipe_gives_the_same_stage_by_stage(staged_tree, fields, data):
    recipe = fo.Recipe(**fields)
    shapes, partition = staged_tree[0], partition_of(*staged_tree)
    params, *grads = (values(data.draw, shapes) for _ in range(4))
    # Accumulation fuses its sums into what follows them, as the compiler sees fit, and
    # the square of a scalar into the sum for a norm.
    scalars = any(math.prod(leaf.shape) == 1 for leaf in jax.tree.leaves(shapes))
    fused = recipe.accumulate > 1 or (recipe.clip_norm is not None and scalars)
    grade = "bounded" if fused else "exact"
    staged = fo.testing.assert_stage_local_equal(
        recipe.build(), params, partition, grads=grads, grade=grade
    )
    # The norm is told to all stages, as `metrics` is the same on all of them.
    clips = recipe.clip_norm is not None and jax.tree.leaves(shapes)
    assert staged.rounds == int(bool(clips) and partition.num_stages > 1)


@given(staged_trees(), st.data())
def test_merge_undoes_split(staged_tree, data):
    shapes, partition = staged_tree[0], partition_of(*staged_tree)
    params = values(data.draw, shapes)
    fo.testing.assert_equal(partition.merge(partition.split(params)), params)


@given(staged_trees(), recipes(), st.data())
def test_merge_state_undoes_split_state(staged_tree, fields, data):
    recipe = fo.Recipe(**fields)
    shapes, partition = staged_tree[0], partition_of(*staged_tree)
    tx = recipe.build()
    staged = fo.stage_local(tx, shapes, partition)
    state = values(data.draw, jax.eval_shape(tx.init, shapes))
    fo.testing.assert_equal(staged.merge_state(staged.split_state(state)), state)


def test_optax_is_the_reference():
    """The check above can fail: another learning rate is found out."""
    params = {"a": jnp.ones(3), "b": jnp.ones(2)}
    partition = fo.partition(params, {"a": 0, "b": 1})
    staged = fo.stage_local(optax.sgd(0.1), params, partition)
    pieces = partition.split(params)
    found, _ = staged.step(pieces, staged.init(pieces), pieces)
    updates, _ = optax.sgd(0.2).update(params, optax.sgd(0.2).init(params), params)
    expected = partition.split(optax.apply_updates(params, updates))
    try:
        fo.testing.assert_equal(found, expected, grade="bounded")
    except AssertionError as error:
        assert "apart by 0.1" in str(error)
    else:
        raise AssertionError("a wrong step passed for a right one")


def test_an_error_names_only_the_first_leaves_that_differ():
    found, expected = ({f"{i:02}": jnp.full(2, x) for i in range(15)} for x in (1, 2))
    with pytest.raises(AssertionError) as caught:
        fo.testing.assert_equal(found, expected)
    lines = str(caught.value).splitlines()
    assert lines[1].startswith("  ['00']: ") and lines[10].startswith("  ['09']: ")
    assert lines[11:] == ["  and 5 more"]
