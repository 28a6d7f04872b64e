"""What a recipe does beside the chain: skip, average, freeze."""

from typing import Any

import equinox as eqx
import functional_opt as fo
import jax
import jax.numpy as jnp
import optax
import pytest
from hypothesis import example, given, settings, strategies as st
from recipe_runs import (
    by_hand,
    frozen_groups,
    grads_of,
    moments,
    PARAMS,
    recipe,
    run,
    THEIR_SCHEDULE,
)
from rooms import clip_by_global_norm


OPTIONS = st.fixed_dictionaries(
    {},
    optional=dict(
        clip_norm=st.sampled_from([0.25, 100.0]),
        weight_decay=st.just(0.1),
        accumulate=st.sampled_from([1, 2]),
        skip_nonfinite=st.just(True),
        state_dtype=st.just("bfloat16"),
        track_norm=st.just(True),
    ),
)


@settings(max_examples=10, deadline=None)
@given(OPTIONS, st.sets(st.integers(0, 4), max_size=2))
@example(dict(clip_norm=0.25, accumulate=2, skip_nonfinite=True), {1})
@example({}, set())
def test_any_options_are_the_chain_by_hand(options, bad):
    if options.get("accumulate") == 2 and "skip_nonfinite" not in options:
        bad = set()  # it reaches the parameters with the update; in Optax, at once
    ours = run(recipe(**options).build(), steps=5, bad=bad)
    theirs = run(by_hand(**options), steps=5, bad=bad)
    # `MultiSteps` multiplies by zero, which makes -0.0 of what is negative.
    found, expected = jax.tree.map(lambda x: x + 0, (ours.updates, theirs.updates))
    fo.testing.assert_equal(found, expected)
    fo.testing.assert_equal(ours.params, theirs.params)
    fo.testing.assert_equal(moments(ours.state), moments(theirs.state))


def clipped_by(function, max_norm):
    """Both for gradients of each dtype, compiled once."""
    clip = function(max_norm)
    return jax.jit(lambda grads: clip.update(grads, clip.init(grads)))


CLIPS = [
    (clipped_by(clip_by_global_norm, norm), clipped_by(optax.clip_by_global_norm, norm))
    for norm in (0.3, 50.0)
]
NORM = jax.jit(optax.tree.norm)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.floats(width=16), min_size=3, max_size=3),
    st.sampled_from(CLIPS),
    st.sampled_from([jnp.float32, jnp.bfloat16, jnp.float16]),
)
def test_clip_is_that_of_optax_for_wide_gradients(numbers, clips, dtype):
    grads = {"a": jnp.array(numbers[:1], dtype), "b": jnp.array(numbers[1:], dtype)}
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), grads)
    ours, theirs = clips
    (found, state), (expected, _) = ours(grads), theirs(wide)
    fo.testing.assert_equal(found, optax.tree.cast_like(expected, grads))
    fo.testing.assert_equal(state.norm, NORM(wide))


def test_norm_of_many_narrow_leaves():
    """Added up in bfloat16, the sum of squares stops at 256."""
    grads = {f"leaf {i}": jnp.full(16, 0.25, jnp.bfloat16) for i in range(400)}
    clipping = recipe(optimizer=fo.SGD(), schedule=1.0, clip_norm=1.0)
    transformation = clipping.build()
    updates, state = transformation.update(grads, transformation.init(grads), grads)
    assert clipping.metrics(state).gradient_norm == 20
    expected = jnp.full(16, -0.0125, jnp.bfloat16)
    for update in jax.tree.leaves(updates):
        fo.testing.assert_equal(update, expected)


def test_what_is_skipped_changes_nothing_but_its_count():
    skipping = recipe(skip_nonfinite=True, clip_norm=0.5, ema_decay=0.5)
    with_bad = run(skipping.build(), steps=6, bad={1, 4})
    without = run(skipping.build(), steps=4)
    fo.testing.assert_equal(with_bad.params, without.params)
    found, expected = map(skipping.metrics, (with_bad.state, without.state))
    assert found.steps_skipped == 2 and expected.steps_skipped == 0
    fo.testing.assert_equal(
        found._replace(steps_skipped=None), expected._replace(steps_skipped=None)
    )
    fo.testing.assert_equal(moments(with_bad.state), moments(without.state))
    assert not any(jax.tree.leaves(jax.tree.map(jnp.any, with_bad.updates[4])))


@pytest.mark.parametrize("accumulate, bad", [(1, ()), (2, (1,))])
def test_average_of_the_parameters(accumulate, bad):
    averaging = recipe(ema_decay=0.75, accumulate=accumulate, skip_nonfinite=True)
    transformation = averaging.build()
    ours = run(transformation, steps=6, bad=bad)
    average, last = PARAMS, PARAMS
    for params in ours.history:
        if not eqx.tree_equal(params, last):
            average = optax.incremental_update(params, average, 0.25)
        last = params
    assert (
        averaging.metrics(ours.state).updates_completed == (6 - len(bad)) // accumulate
    )
    found = averaging.eval_params(ours.state, ours.params)
    # Not jitted, each operation of the average is rounded by itself.
    fo.testing.assert_equal(found, average, grade="close")
    start = averaging.eval_params(transformation.init(PARAMS), PARAMS)
    fo.testing.assert_equal(start, PARAMS)


def test_average_of_narrow_parameters_is_wide():
    narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
    averaging = recipe(ema_decay=0.999)
    ours = run(averaging.build(), params=narrow)
    dtypes = {x.dtype for x in moments(ours.state)}
    assert dtypes == {jnp.dtype("bfloat16"), jnp.dtype("float32")}
    found = averaging.eval_params(ours.state, ours.params)
    assert {x.dtype for x in jax.tree.leaves(found)} == {jnp.dtype("bfloat16")}


def test_schedule_free():
    fields: Any = dict(b1=0.0, b2=0.95)
    ours = recipe(optimizer=fo.ScheduleFree(optimizer=fo.AdamW(**fields), b1=0.8))
    theirs = optax.contrib.schedule_free(
        optax.adamw(THEIR_SCHEDULE, **fields), THEIR_SCHEDULE, b1=0.8
    )
    found, expected = run(ours.build()), run(theirs)
    fo.testing.assert_equal(found.params, expected.params)
    fo.testing.assert_equal(
        ours.eval_params(found.state, found.params),
        optax.contrib.schedule_free_eval_params(expected.state, expected.params),
    )
    with pytest.raises(
        ValueError, match=r"`Recipe.ema_decay` = 0\.5 and `ScheduleFree`"
    ):
        recipe(optimizer=fo.ScheduleFree(optimizer=fo.SGD()), ema_decay=0.5)
    inside = fo.Groups((), rest=fo.ScheduleFree(optimizer=fo.SGD()))
    with pytest.raises(ValueError, match=r"`Recipe.ema_decay` = 0\.5 and `Sched"):
        recipe(optimizer=inside, ema_decay=0.5)


def test_schedule_free_beside_others():
    groups = fo.Groups(
        (
            fo.Group(
                fo.Where("body"), optimizer=fo.ScheduleFree(optimizer=fo.SGD(), b1=0.8)
            ),
        ),
        rest=fo.SGD(),
    )
    ours = recipe(optimizer=groups)
    found = run(ours.build())
    params = ours.eval_params(found.state, found.params)
    rest = {name: leaf for name, leaf in found.params.items() if name != "body"}
    fo.testing.assert_equal(params, rest | {"body": params["body"]})
    assert (params["body"] != found.params["body"]).all()


def test_what_is_frozen_is_left_out_of_all():
    """The gradient of the frozen is huge or NaN: no matter."""

    def grads_with_frozen(params, bad):
        grads = grads_of(params)
        return grads | {"norm": jnp.where(bad, jnp.nan, 1e6 * params["norm"])}

    rest = {name: leaf for name, leaf in PARAMS.items() if name != "norm"}
    options: dict[str, Any] = dict(
        clip_norm=0.5, accumulate=2, skip_nonfinite=True, ema_decay=0.5
    )
    ours = recipe(optimizer=frozen_groups(), **options)
    found = run(ours.build(), bad={1}, grads_of=grads_with_frozen)
    expected = run(
        recipe(**options).build(),
        params=rest,
        grads_of=lambda params, _: jax.tree.map(lambda x: jnp.sin(3 * x), params),
    )
    fo.testing.assert_equal(found.params, expected.params | {"norm": PARAMS["norm"]})
    fo.testing.assert_equal(moments(found.state), moments(expected.state))
    fo.testing.assert_equal(ours.metrics(found.state), ours.metrics(expected.state))
    averaged = ours.eval_params(found.state, found.params)
    fo.testing.assert_equal(averaged["norm"], PARAMS["norm"])
