"""Stage-local against whole-tree, for drawn optimizers, trees, stages and gradients."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from hypothesis import given, strategies as st

import functional_opt as fo


class Pair(eqx.Module):
    first: Any
    second: Any
    nothing: None = None
    name: str = eqx.field(default="pair", static=True)


SHAPES = [(), (1,), (3,), (2, 3), (5, 1), (2, 1, 4)]


@st.composite
def leaves(draw):
    dtype = draw(st.sampled_from(["float32", "float32", "bfloat16"]))
    return jax.ShapeDtypeStruct(draw(st.sampled_from(SHAPES)), dtype)


def trees():
    return st.recursive(
        leaves() | st.none(),
        lambda inner: (
            st.dictionaries(st.sampled_from("abc"), inner, max_size=3)
            | st.tuples(inner, inner)
            | st.builds(Pair, inner, inner)
        ),
        max_leaves=5,
    )


def rates():
    return st.floats(1e-4, 0.5)


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


def decays():
    return st.floats(0.0, 0.99)


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


@st.composite
def recipes(draw):
    decay = draw(st.none() | decays())
    return fo.Recipe(
        optimizer=draw(optimizers()),
        schedule=draw(schedules()),
        clip_norm=draw(st.none() | st.floats(0.1, 10.0)),
        weight_decay=decay,
        accumulate=draw(st.integers(1, 3)),
    )


@st.composite
def staged_trees(draw):
    """A tree of shapes, the stage of each leaf, and how many stages there are."""
    tree = (draw(trees()),)  # to Optax, parameters that are None are missing
    num_stages = draw(st.integers(1, 5))
    num_leaves = len(jax.tree.leaves(tree))
    stage = st.integers(0, num_stages - 1)
    return tree, draw(st.tuples(*[stage] * num_leaves)), num_stages


# Not within the strategy: the type checker samples long tuples at random, and Hypothesis
# wants to draw all randomness itself.
def partition_of(tree, stages, num_stages):
    stage = iter(stages)
    return fo.partition(tree, lambda *_: next(stage), num_stages=num_stages)


def values(draw, tree):
    """A tree of small numbers, with zeros, negative zeros and large ones among them."""
    seed = draw(st.integers(0, 2**16))
    generator = np.random.default_rng(seed)

    def value(shape):
        normal = generator.normal(size=shape.shape) * 10.0 ** generator.integers(-3, 2)
        zeros = generator.choice(
            [1.0, 0.0, -0.0], size=shape.shape, p=[0.9, 0.05, 0.05]
        )
        return jnp.asarray(normal * zeros, shape.dtype)

    return jax.tree.map(value, tree)


@given(staged_trees(), recipes(), st.data())
def test_a_recipe_gives_the_same_stage_by_stage(staged_tree, recipe, data):
    shapes, partition = staged_tree[0], partition_of(*staged_tree)
    params, *grads = (values(data.draw, shapes) for _ in range(4))
    staged = fo.testing.assert_stage_local_equal(
        recipe.build(), params, partition, grads=grads, grade="close"
    )
    owners = {stage for place in partition.params.places for stage in place}
    clips_across = recipe.clip_norm is not None and len(owners) > 1
    assert staged.rounds == int(clips_across)


@given(staged_trees(), st.data())
def test_merge_undoes_split(staged_tree, data):
    shapes, partition = staged_tree[0], partition_of(*staged_tree)
    params = values(data.draw, shapes)
    fo.testing.assert_equal(partition.merge(partition.split(params)), params)


@given(staged_trees(), recipes(), st.data())
def test_merge_state_undoes_split_state(staged_tree, recipe, data):
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
        fo.testing.assert_equal(found, expected, grade="close")
    except AssertionError as error:
        assert "apart by 0.1" in str(error)
    else:
        raise AssertionError("a wrong step passed for a right one")
