"""What stages exchange, at the sizes that models have: the least, and the same bits."""

import dataclasses
import itertools

import functional_opt as fo
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from exchange_table import OPTIONS, plan_of, stages_of
from hypothesis import example, given, settings, strategies as st
from optax_cases import bytes_sent, Case


SHAPES = ((), (1,), (7,), (16, 24), (5, 8, 3), (64,))


def tree(num_leaves, dtype="float32"):
    shapes = itertools.islice(itertools.cycle(SHAPES), num_leaves)
    return {
        f"{i:03}": jax.random.normal(jax.random.key(i), shape, dtype)
        for i, shape in enumerate(shapes)
    }


def partition_of(params, num_stages, layout="contiguous"):
    stages = stages_of(layout, len(params), num_stages)
    named = dict(zip(params, stages, strict=True))
    return fo.partition(params, named, num_stages=num_stages)


@st.composite
def trees(draw):
    """Up to 60 leaves on up to 8 stages, some empty; one leaf in five may be tied."""
    num_stages = draw(st.integers(2, 8))
    stage = st.integers(0, num_stages - 1)
    owners = st.one_of(*[stage] * 4, st.frozensets(stage, min_size=1, max_size=3))
    leaf = st.tuples(st.sampled_from([(8,), (16, 24), (12, 8, 9)]), owners)
    return num_stages, draw(st.lists(leaf, min_size=2, max_size=60))


recipes = st.fixed_dictionaries(
    {name: st.sampled_from(values) for name, values in OPTIONS.items()}
)
EVERYTHING = {name: values[-1] for name, values in OPTIONS.items()}
ALTERNATING = (8, [((8,), i % 8) for i in range(40)])


@settings(max_examples=15)
@example(ALTERNATING, EVERYTHING)
@example((3, [((16, 24), 1), ((8,), 1)]), EVERYTHING)
@example((3, [((16, 24), frozenset({0, 2})), ((8,), 1), ((8,), 2)]), EVERYTHING)
@given(trees(), recipes)
def test_a_recipe_exchanges_the_least(drawn, options):
    num_stages, leaves = drawn
    recipe = fo.Recipe(optimizer=fo.AdamW(), schedule=fo.Constant(0.1), **options)
    case = dataclasses.replace(
        Case("Recipe", recipe.build),
        shapes={f"{i:03}": shape for i, (shape, _) in enumerate(leaves)},
        stages={f"{i:03}": stage for i, (_, stage) in enumerate(leaves)},
        num_stages=num_stages,
    )
    plan = plan_of(case, case.cut())
    # What several stages have may be sent by one that has to fill up a word for it.
    tied = {s for _, owners in leaves if not isinstance(owners, int) for s in owners}
    assert plan.rounds == plan.least.rounds
    assert 0 <= plan.nbytes - plan.least.nbytes <= 4 * len(tied)


MIXING = {
    "skip": lambda: fo.Recipe(
        optimizer=fo.AdamW(),
        schedule=fo.Constant(0.1),
        clip_norm=1.0,
        skip_nonfinite=True,
    ).build(),
    "Lion": lambda: fo.Recipe(
        optimizer=fo.Lion(),
        schedule=fo.Constant(0.1),
        ema_decay=0.9,
        skip_nonfinite=True,
    ).build(),
    "narrow state": lambda: fo.Recipe(
        optimizer=fo.SGD(momentum=0.9),
        schedule=fo.Constant(0.1),
        accumulate=2,
        state_dtype="bfloat16",
        skip_nonfinite=True,
    ).build(),
    "nadam": lambda: optax.nadam(0.01),
    "optimistic": lambda: optax.optimistic_adam_v2(2e-3),
}


@pytest.mark.parametrize(
    "name, layout", list(zip(MIXING, itertools.cycle(["contiguous", "interleaved"])))
)
def test_forty_leaves_on_eight_stages_keep_their_bits(name, layout):
    params = tree(42)
    partition = partition_of(params, 8, layout)
    fo.testing.assert_stage_local_equal(MIXING[name](), params, partition, steps=2)


@pytest.mark.parametrize("shape", [(), (1,), (0, 4), (2,)], ids=str)
@pytest.mark.parametrize(
    "make",
    [optax.adam, optax.nadam, optax.optimistic_adam_v2, optax.adamax],
    ids=["adam", "nadam", "optimistic_adam_v2", "adamax"],
)
def test_a_stage_that_owns_hardly_anything_keeps_its_bits(make, shape):
    params = {
        "tiny": jnp.full(shape, 3.0),
        "one": jnp.ones(()),
        "large": jnp.ones((4, 4)),
    }
    partition = fo.partition(params, {"tiny": 0, "one": 1, "large": 2})
    fo.testing.assert_stage_local_equal(make(0.1), params, partition, steps=6)


def mixing(updates, _):
    product = updates["a"] @ updates["b"] @ updates["a"]
    return {**updates, "a": updates["a"] + product}


@pytest.mark.parametrize("width", [1, 2, 16, 33, 64])
def test_whether_a_transformation_is_accepted_does_not_depend_on_size(width):
    params = {"a": jnp.ones((width, width)), "b": jnp.ones((width, width))}
    partition = fo.partition(params, {"a": 0, "b": 1})
    tx = optax.chain(optax.stateless(mixing), optax.sgd(0.1))
    with pytest.raises(fo.CrossStageError, match=r"`dot_general` at .*test_plans\.py"):
        fo.stage_local(tx, params, partition)
    limit = 4 * width * width
    staged = fo.stage_local(tx, params, partition, travel_limit=limit)
    assert staged.rounds == 1 and "(allowed by `travel_limit`)" in str(staged)


@pytest.mark.parametrize("length", [10, 5_000])
def test_a_history_travels_however_long(length):
    """The dimensions of a history are not those of a parameter."""

    def init(params):
        return jax.tree.map(lambda _: jnp.zeros(length), params)

    def update(updates, state, params=None):
        newest = jax.tree.map(jnp.sum, updates)
        state = jax.tree.map(
            lambda old, new: jnp.roll(old, 1).at[0].set(new), state, newest
        )
        largest = jnp.max(jnp.stack(jax.tree.leaves(state)))
        return jax.tree.map(lambda u: u * largest, updates), state

    params = {f"{i}": jnp.ones(8) for i in range(5)}
    partition = fo.partition(params, {name: int(name) % 3 for name in params})
    tx = optax.GradientTransformation(init, update)
    staged = fo.testing.assert_stage_local_equal(tx, params, partition)
    assert staged.rounds == 1 and bytes_sent(staged) == 5 * 4 * length


# In wide types the sum of normal numbers cancels, and XLA adds an unrolled loop's
# numbers in another order.
@pytest.mark.parametrize(
    "dtype, grade",
    [("bfloat16", "exact"), ("float16", "close"), ("float32", "bounded")],
)
def test_a_loop_over_stages_rounds_what_it_carries(dtype, grade):
    def update(updates, state, params=None):
        def body(_, carry):
            a, b = carry
            return (a * 0.7).astype(dtype), b * (1 + jnp.sum(a.astype("float32")))

        a, b = jax.lax.fori_loop(0, 3, body, (updates["a"], updates["b"]))
        return {"a": a, "b": b}, state

    tx = optax.GradientTransformation(lambda params: optax.EmptyState(), update)
    params = {"a": jnp.zeros(7, dtype), "b": jnp.zeros(5)}
    partition = fo.partition(params, {"a": 0, "b": 1})
    fo.testing.assert_stage_local_equal(tx, params, partition, grade=grade)


@pytest.mark.parametrize("outer, accepted", [(4, True), (32, False)])
def test_nested_loops_are_unrolled_up_to_a_bound(outer, accepted):
    def body(_, carry):
        a, b = carry
        return a * jax.nn.sigmoid(jnp.sum(b)), b * jax.nn.sigmoid(jnp.sum(a))

    def update(updates, state, params=None):
        carry = updates["a"], updates["b"]
        a, b = jax.lax.fori_loop(
            0, outer, lambda _, c: jax.lax.fori_loop(0, 8, body, c), carry
        )
        return {"a": a, "b": b}, state

    params = {"a": jnp.ones(3), "b": jnp.ones(4)}
    partition = fo.partition(params, {"a": 0, "b": 1})
    tx = optax.GradientTransformation(lambda params: optax.EmptyState(), update)
    if accepted:
        assert fo.stage_local(tx, params, partition).rounds == 8 * outer
    else:
        with pytest.raises(fo.CrossStageError, match=r"`scan` at .*test_plans\.py"):
            fo.stage_local(tx, params, partition)


def test_a_parameter_s_noise_does_not_travel_in_place_of_a_key():
    def update(updates, state, params=None):
        noise = jax.random.normal(state["b"], updates["a"].shape)
        return {**updates, "a": updates["a"] * noise}, state

    params = {"a": jnp.ones(8), "b": jnp.ones(8)}
    tx = optax.GradientTransformation(
        lambda params: jax.tree.map(lambda _: jax.random.key(0), params), update
    )
    partition = fo.partition(params, {"a": 0, "b": 1})
    with pytest.raises(fo.CrossStageError, match=r"float32\[8\] of stage 1"):
        fo.stage_local(tx, params, partition)


def test_a_wide_model_is_planned_in_time():
    """Its cut has thousands of nodes, which a search path by path would not bear."""
    params = {f"{i:04}": jax.ShapeDtypeStruct((8,), np.float32) for i in range(600)}
    staged = fo.stage_local(
        optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3)),
        params,
        partition_of(params, 64, "interleaved"),
    )
    assert staged.rounds == 1 and bytes_sent(staged) == 4 * 600


def test_a_deep_pipeline_exchanges_little():
    """200 leaves on 64 stages: a number for each leaf, or less, and reduction."""
    params = {
        f"{i:03}": jax.ShapeDtypeStruct(shape, jnp.float32)
        for i, shape in zip(range(200), itertools.cycle(SHAPES), strict=False)
    }
    recipe = fo.Recipe(
        optimizer=fo.AdamW(),
        schedule=0.1,
        clip_norm=1.0,
        skip_nonfinite=True,
        accumulate=4,
    )
    staged = recipe.build_mpmd(params, partition_of(params, 64, "random"))
    assert staged.rounds == 1
    norm, finite = 4 * len(params), len(params)
    padding = 3 * 64  # messages have whole words
    assert 0 < sum(staged.bytes_sent) <= norm + finite + padding
