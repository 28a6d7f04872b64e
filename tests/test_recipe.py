from typing import Any

import functional_opt as fo
import jax
import jax.numpy as jnp
import optax
import pytest
from hypothesis import given, settings, strategies as st
from recipe_runs import is_matrix, moments


PARAMS = {"w": jnp.array([[1.0, -2.0], [3.0, 0.5]]), "b": jnp.array([0.1, -0.3])}
SCHEDULE = fo.Cosine(peak_value=0.1, warmup_steps=2, decay_steps=6)
THEIR_SCHEDULE = optax.warmup_cosine_decay_schedule(0.0, 0.1, 2, 6)


def trained(transformation, params: Any = PARAMS, steps=4):
    """The parameters, the moments and the updates of a few compiled steps."""

    @jax.jit
    def step(params, state):
        grads = jax.tree.map(lambda x: jnp.sin(3 * x), params)
        updates, state = transformation.update(grads, state, params)
        return optax.apply_updates(params, updates), state, updates

    state, history = transformation.init(params), []
    for _ in range(steps):
        params, state, updates = step(params, state)
        history.append(updates)
    return params, moments(state), history


def whole(accumulate):
    return fo.Recipe(
        optimizer=fo.AdamW(b2=0.95),
        schedule=SCHEDULE,
        clip_norm=0.5,
        weight_decay=0.1,
        decay_where=fo.Where(min_ndim=2),
        accumulate=accumulate,
    )


def by_hand():
    adamw = optax.adamw(THEIR_SCHEDULE, b2=0.95, weight_decay=0.1, mask=is_matrix)
    return optax.chain(optax.clip_by_global_norm(0.5), adamw)


def test_is_the_chain_by_hand():
    fo.testing.assert_equal(trained(whole(1).build()), trained(by_hand()))


def test_accumulates_as_by_hand():
    accumulated = optax.MultiSteps(by_hand(), 2).gradient_transformation()
    ours = trained(whole(2).build())
    theirs = trained(accumulated)
    fo.testing.assert_equal(ours[:2], theirs[:2])
    # `MultiSteps` multiplies by zero, which makes -0.0 of what is negative.
    history, expected = jax.tree.map(lambda x: x + 0, (ours[2], theirs[2]))
    fo.testing.assert_equal(history, expected)
    assert not history[0]["w"].any() and history[3]["w"].any()


@pytest.mark.parametrize("optimizer", [fo.Adam(), fo.AdamW(weight_decay=0.7)])
def test_decay_of_adam_is_adamw(optimizer):
    recipe = fo.Recipe(optimizer=optimizer, schedule=SCHEDULE, weight_decay=0.1)
    adamw = fo.AdamW(weight_decay=0.1).build(SCHEDULE)
    fo.testing.assert_equal(trained(recipe.build()), trained(adamw))


def test_no_decay_leaves_the_optimizer_its_own():
    recipe = fo.Recipe(optimizer=fo.AdamW(weight_decay=0.7), schedule=0.1)
    fo.testing.assert_equal(
        trained(recipe.build()), trained(optax.adamw(0.1, weight_decay=0.7))
    )
    recipe = fo.Recipe(optimizer=fo.AdamW(), schedule=0.1, weight_decay=0)
    expected = optax.adamw(0.1, weight_decay=0.0)
    fo.testing.assert_equal(trained(recipe.build()), trained(expected))


@settings(max_examples=5, deadline=None)
@given(st.floats(0.125, 10), st.floats(0, 1), st.sampled_from(["adam", "sgd", "lion"]))
def test_any_recipe_is_a_chain(clip_norm, weight_decay, name):
    optimizer: Any = fo.Registry.of(fo.Adam, fo.SGD, fo.Lion)[name]()
    recipe = fo.Recipe(
        optimizer=optimizer,
        schedule=0.1,
        clip_norm=clip_norm,
        weight_decay=weight_decay,
    )
    inner = {
        "adam": optax.adamw(0.1, weight_decay=weight_decay),
        "lion": optax.lion(0.1, weight_decay=weight_decay),
        "sgd": optax.chain(
            optax.sgd(0.1), optax.add_decayed_weights(-weight_decay * 0.1)
        ),
    }
    theirs = optax.chain(optax.clip_by_global_norm(clip_norm), inner[name])
    fo.testing.assert_equal(trained(recipe.build(), steps=2), trained(theirs, steps=2))


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_gradients_that_are_not_finite(bad):
    def update(transformation):
        grads = PARAMS | {"b": jnp.array([bad, 1.0])}
        state = transformation.init(PARAMS)
        updates, state = jax.jit(transformation.update)(grads, state, PARAMS)
        return updates, moments(state)

    fo.testing.assert_equal(update(whole(1).build()), update(by_hand()))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_extra_arguments_arrive(accumulate):
    class Sized(fo.AbstractOptimizer):
        def build(self, schedule):
            def update(updates, state, params=None, **extra):
                return jax.tree.map(lambda x: x * extra["size"], updates), state

            sized = optax.GradientTransformationExtraArgs(
                optax.init_empty_state, update
            )
            return optax.chain(sized, optax.scale_by_learning_rate(schedule))

    recipe = fo.Recipe(optimizer=Sized(), schedule=1.0, accumulate=accumulate)
    transformation = recipe.build()
    assert isinstance(transformation, optax.GradientTransformationExtraArgs)
    updates, state = PARAMS, transformation.init(PARAMS)
    for _ in range(accumulate):
        updates, state = transformation.update(PARAMS, state, PARAMS, size=2.0)
    fo.testing.assert_equal(updates, jax.tree.map(lambda x: -2 * x, PARAMS))


def test_mask_is_resolved_on_the_parameters():
    recipe = fo.Recipe(
        optimizer=fo.Adam(),
        schedule=0.1,
        weight_decay=0.1,
        decay_where=fo.Where("kernel"),
    )
    with pytest.raises(ValueError, match=r"`Where\(path='kernel'.*finds no parameter"):
        recipe.build().init(PARAMS)


@pytest.mark.parametrize(
    "fields, error, message",
    [
        (
            dict(optimizer=SCHEDULE),
            TypeError,
            r"(?s)^`Recipe.optimizer` must be an optimizer, got Cosine\(.*\)\. "
            r"Did you mean `Recipe.schedule`\?$",
        ),
        (
            dict(optimizer=fo.Adam),
            TypeError,
            r"`Recipe.optimizer` must be .*\. Pass an instance: `Adam\(\.\.\.\)`\.$",
        ),
        (
            dict(schedule=fo.SGD()),
            TypeError,
            r"^`Recipe.schedule` must be a schedule, a function of the update count, "
            r"a float or a 0-d float array, got SGD\(\)\. Did you mean "
            r"`Recipe.optimizer`\?$",
        ),
        (
            dict(schedule=float("nan")),
            ValueError,
            r"^`Recipe.schedule` must be finite, got nan\.$",
        ),
        (
            dict(clip_norm=-1),
            ValueError,
            r"^`Recipe.clip_norm` must be greater than 0, got -1\.0\.$",
        ),
        (
            dict(weight_decay=-0.1),
            ValueError,
            r"^`Recipe.weight_decay` must be at least 0, got -0\.1\.$",
        ),
        (
            dict(accumulate=0),
            ValueError,
            r"^`Recipe.accumulate` must be at least 1, got 0\.$",
        ),
        (
            dict(accumulate=True),
            TypeError,
            r"^`Recipe.accumulate` must be an int, got True\.$",
        ),
        (
            dict(decay_where=is_matrix, weight_decay=0.1),
            TypeError,
            r"^`Recipe.decay_where` must be a Where, an AllOf, an AnyOf, a Not or None",
        ),
        (
            dict(decay_where=fo.Where("w")),
            ValueError,
            r"^`Recipe.decay_where` requires `Recipe.weight_decay`, got "
            r"Where\(path='w', min_ndim=0\) and None\. ",
        ),
    ],
)
def test_wrong_fields(fields, error, message):
    with pytest.raises(error, match=message):
        fo.Recipe(**dict(optimizer=fo.Adam(), schedule=0.1) | fields)
