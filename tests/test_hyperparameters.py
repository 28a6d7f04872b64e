"""Hyperparameters that are arrays are inputs of staged programs."""

import functools
from typing import Any

import equinox as eqx
import functional_opt as fo
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import quick_compiler
from compilations import compilations


STAGES = 8
SHAPES = [(4, 2), (2,), (), (2, 3), (1,)]
WHERE = {
    "nowhere": None,
    "together": jax.devices()[:1] * STAGES,
    "apart": jax.devices(),
}


def make_params(dtype=jnp.float32):
    keys = iter(jax.random.split(jax.random.key(0), 6 * STAGES))

    def normal(shape):
        return jax.random.normal(next(keys), shape, dtype)

    blocks = [[normal(shape) for shape in SHAPES] for _ in range(STAGES)]
    return {"blocks": blocks, "embed": normal((6, 4)), "top": [normal((3,))] * 3}


def make_partition(params):
    blocks, top = list(range(STAGES)), [5, 6, 7]
    return fo.partition(params, {"blocks": blocks, "embed": {0, 7}, "top": top})


def make_recipe(rate, b2, clip_norm, dtype=jnp.float32):
    return fo.Recipe(
        optimizer=fo.AdamW(b2=jnp.array(b2, dtype), weight_decay=0.1),
        schedule=fo.Constant(jnp.array(rate, dtype)),
        clip_norm=jnp.array(clip_norm, dtype),
    )


FIRST, OTHER = make_recipe(1e-2, 0.95, 0.5), make_recipe(3e-1, 0.5, 2.0)


def waves(tree, step=0):
    return jax.tree.map(lambda x: jnp.sin(x + step), tree)


@jax.jit
def whole_step(recipe, grads, state, params):
    """Numbers of the recipe are constants in it, arrays are inputs."""
    numbers, arrays = static, recipe
    recipe = eqx.combine(arrays, numbers)
    updates, state = recipe.build().update(grads, state, params)
    return optax.apply_updates(params, updates), state


static = eqx.filter(FIRST, eqx.is_array, inverse=True)


def arrays_of(recipe):
    return eqx.filter(recipe, eqx.is_array)


@functools.cache
def make(where, recipe=FIRST):
    """What is split, and its trees on the devices of the stages."""
    params, devices = make_params(), WHERE[where]
    partition = make_partition(params)
    staged = recipe.build_mpmd(params, partition, meshes=devices)

    def put(tree, split):
        pieces = split(tree)
        return pieces if devices is None else jax.device_put(pieces, tuple(devices))

    return staged, params, put


@pytest.mark.parametrize("where", WHERE)
def test_other_values_in_the_same_programs(where):
    staged, params, put = make(where)
    pieces = put(params, staged.partition.split)
    states, state = staged.init(pieces), jax.jit(FIRST.build().init)(params)
    recipes = [FIRST, FIRST, OTHER, FIRST, make_recipe(0.1, 0.9, 1.0)]
    for step, recipe in enumerate(recipes):
        grads = waves(params, step)
        summands = put(grads, staged.partition.split_gradients)
        other = staged if recipe is FIRST else staged.with_hyperparameters(recipe)
        with compilations() as names:
            pieces, states = other.step(summands, states, pieces)
        assert step < 2 or names == []
        params, state = whole_step(arrays_of(recipe), grads, state, params)
        merged = staged.partition.merge(pieces), staged.merge_state(states)
        fo.testing.assert_equal(merged, (params, state))


def test_the_norm_that_a_clip_by_an_array_computes_is_one_round():
    """As with a clip by a number."""
    number = fo.Recipe(optimizer=fo.AdamW(), schedule=1e-2, clip_norm=0.5)
    (staged, *_), (other, *_) = make("nowhere"), make("nowhere", number)
    assert staged.bytes_sent == other.bytes_sent and staged.rounds == other.rounds


def test_an_array_is_no_constant_of_the_programs():
    staged, params, _ = make("nowhere")
    pieces = staged.partition.split(params)
    states = staged.init(pieces)

    def of_all(gathered, number):
        trees = zip(staged.programs, pieces, states, pieces, strict=True)
        return [
            program.message(number, grads, state, params, gathered)
            for program, grads, state, params in trees
        ]

    gathered = functools.reduce(
        lambda sent, number: [*sent, of_all(sent, number)], range(staged.rounds), []
    )

    def step(recipe, grads):
        program = staged.with_hyperparameters(recipe).programs[3]
        return program.step(grads, states[3], pieces[3], gathered)

    new = [eqx.filter_jit(step)(recipe, pieces[3])[0] for recipe in (FIRST, OTHER)]
    first, other = (
        optax.tree.norm(jax.tree.map(jnp.subtract, x, pieces[3])) for x in new
    )
    assert other > 10 * first


class TestWhole:
    @pytest.mark.parametrize("where", ["together", "apart"])
    def test_other_values(self, where):
        staged, params, put = make(where)
        pieces = put(params, staged.partition.split)
        states, state = staged.init(pieces), jax.jit(FIRST.build().init)(params)
        placed, placed_state = staged.whole.join(pieces, states)
        for step, recipe in enumerate([FIRST, OTHER, FIRST]):
            tx = staged.with_hyperparameters(recipe).whole
            grads = waves(placed, step)
            with compilations() as names:
                placed, placed_state = tx.step(grads, placed_state, placed)
            assert step == 0 or names == []
            grads = waves(params, step)
            params, state = whole_step(arrays_of(recipe), grads, state, params)
            fo.testing.assert_equal((placed, placed_state), (params, state))

    def test_under_jit(self):
        staged, params, _ = make("nowhere")
        state, grads = FIRST.build().init(params), waves(params)

        @jax.jit
        def step(arrays, grads, state, params):
            recipe = eqx.combine(arrays, static)
            whole = staged.with_hyperparameters(recipe).whole
            return whole.step(grads, state, params)

        found = step(arrays_of(OTHER), grads, state, params)
        expected = whole_step(arrays_of(OTHER), grads, state, params)
        fo.testing.assert_equal(found, expected)


@functools.cache
def losses():
    """After two steps, as functions of the learning rate and b2; by stages and not."""
    params = make_params(jnp.float64)
    partition = make_partition(params)
    grads = waves(params), waves(params, 1)
    recipe = make_recipe(1e-2, 0.95, 0.5, jnp.float64)
    staged = recipe.build_mpmd(params, partition)
    state = recipe.build().init(params)
    states, pieces = staged.split_state(state), partition.split(params)

    def loss(params):
        return sum(jnp.sum(x**2) for x in jax.tree.leaves(params))

    def two_steps(rate, b2):
        other = staged.with_hyperparameters(make(rate, b2))
        new = pieces, states
        for each in map(partition.split_gradients, grads):
            new = other.step(each, *new[::-1])
        return loss(partition.merge(new[0]))

    def two_steps_of_optax(rate, b2):
        tx, new = make(rate, b2).build(), (params, state)
        for each in grads:
            updates, after = tx.update(each, new[1], new[0])
            new = optax.apply_updates(new[0], updates), after
        return loss(new[0])

    def make(rate, b2):
        return make_recipe(rate, b2, 0.5, jnp.float64)

    return two_steps, two_steps_of_optax


def point():
    return jnp.array(1e-2), jnp.array(0.95)


@functools.cache
def gradient_of_optax():
    return quick_compiler.jit(jax.grad(losses()[1], argnums=(0, 1)))(*point())


class TestTransformations:
    """Of JAX, with respect to the learning rate: all stages on one device."""

    @pytest.fixture(autouse=True)
    def wide(self):
        """The first step of Adam hardly depends on a clip: float32 would be noise."""
        with jax.enable_x64(True):
            yield

    def test_grad(self):
        found = jax.grad(losses()[0], argnums=(0, 1))(*point())
        np.testing.assert_allclose(found, gradient_of_optax(), rtol=1e-9)
        assert all(abs(x) > 1e-6 for x in found)

    def test_vmap(self):
        rates, b2s = jnp.array([1e-3, 1e-2, 1e-1]), jnp.array([0.5, 0.9, 0.99])
        found = jax.vmap(losses()[0])(rates, b2s)
        expected = quick_compiler.jit(jax.vmap(losses()[1]))(rates, b2s)
        np.testing.assert_allclose(found, expected, rtol=1e-12)
        assert len(np.unique(np.asarray(found))) == 3

    def test_grad_of_jit(self):
        found = jax.grad(jax.jit(losses()[0]))(*point())
        np.testing.assert_allclose(found, gradient_of_optax()[0], rtol=1e-9)


def test_derivatives_of_stages_apart():
    staged, params, put = make("apart")
    pieces = put(params, staged.partition.split)
    states = staged.init(pieces)

    def loss(rate):
        other = staged.with_hyperparameters(make_recipe(rate, 0.9, 0.5))
        new, _ = other.step(waves(pieces), states, pieces)
        return jnp.sum(new[0]["embed"])

    with pytest.raises(ValueError, match="cannot be part of one larger program"):
        jax.grad(loss)(0.1)


def test_an_optimizer_and_its_schedule():
    params = make_params(jnp.bfloat16)
    partition = make_partition(params)
    optimizer, rate = fo.Lion(b1=jnp.array(0.9)), jnp.array(0.1)
    staged: Any = optimizer.build_mpmd(rate, params, partition)
    pieces = partition.split(params)
    given = partition.split_gradients(waves(params)), staged.init(pieces), pieces
    other = staged.with_hyperparameters(fo.Lion(b1=0.5), jnp.float32(0.2))
    with compilations() as names:
        first, second = staged.step(*given), other.step(*given)
    assert names.count("stage_results") <= 2
    for values, (new, states) in {(0.9, 0.1): first, (0.5, 0.2): second}.items():

        @jax.jit
        def step(b1, rate, grads, state, params):
            updates, state = optax.lion(rate, b1=b1).update(grads, state, params)
            return optax.apply_updates(params, updates), state

        state = optax.lion(0.1).init(params)
        expected = step(*map(jnp.array, values), waves(params), state, params)
        merged = partition.merge(new), staged.merge_state(states)
        fo.testing.assert_equal(merged, expected)


def test_inputs_of_init():
    """What `init` makes of an array is that of the recipe, too."""

    def factory(learning_rate: float, first: float = 1.0):
        def init(params):
            return jax.tree.map(lambda p: jnp.full_like(p, first), params)

        def update(updates, state, params=None):
            return jax.tree.map(
                lambda g, s: -learning_rate * s * g, updates, state
            ), state

        return optax.GradientTransformation(init, update)

    optimizer = fo.from_optax(factory)
    params = make_params()
    partition = make_partition(params)
    staged = optimizer(first=jnp.array(1.0)).build_mpmd(0.1, params, partition)
    pieces = partition.split(params)
    other = staged.with_hyperparameters(optimizer(first=jnp.array(3.0)), 0.1)
    for one, value in [(staged, 1.0), (other, 3.0)]:
        states = one.init(pieces)
        assert {float(x.max()) for x in jax.tree.leaves(states)} == {value}


class TestWhatDoesNotFit:
    def test_no_arrays(self):
        recipe = fo.Recipe(optimizer=fo.AdamW(), schedule=1e-2)
        staged, *_ = make("nowhere", recipe)
        with pytest.raises(
            ValueError, match=r"there are none.*holds what is to change"
        ):
            staged.with_hyperparameters(recipe)

    @pytest.mark.parametrize(
        ("change", "match"),
        [
            (
                dict(clip_norm=None),
                r"`clip_norm` must be float32\[\] or a number, got None",
            ),
            (dict(clip_norm=jnp.float16(1)), r"`clip_norm` must be.*got .*float16"),
            (dict(weight_decay=0.5), "`weight_decay` is None in the programs, got 0.5"),
            (
                dict(
                    schedule=fo.WarmupConstant(
                        init_value=0.1, peak_value=0.1, warmup_steps=3
                    )
                ),
                "`schedule` is Constant",
            ),
            (
                dict(optimizer=fo.AdamW(b2=0.9, weight_decay=0.2)),
                "`optimizer.weight_decay` is 0.1 in the programs, got 0.2",
            ),
            (
                dict(optimizer=fo.AdamW(b2=0.9, weight_decay=jnp.array(0.1))),
                "`optimizer.weight_decay` is 0.1",
            ),
            (dict(accumulate=2), "`accumulate` is 1 in the programs, got 2"),
        ],
    )
    def test_other_than_values(self, change, match):
        staged, *_ = make("nowhere")
        fields = {"optimizer": FIRST.optimizer, "schedule": FIRST.schedule}
        fields |= {"clip_norm": FIRST.clip_norm} | change
        with pytest.raises(ValueError, match=f"replaces arrays alone.*{match}"):
            staged.with_hyperparameters(fo.Recipe(**fields))

    def test_another_number_of_things(self):
        staged, *_ = make("nowhere")
        with pytest.raises(TypeError, match=r"requires the recipe, .* got 2 arguments"):
            staged.with_hyperparameters(FIRST, 0.1)


def test_a_number_stands_for_an_array():
    staged, params, _ = make("nowhere")
    pieces = staged.partition.split(params)
    given = staged.partition.split_gradients(params), staged.init(pieces), pieces
    numbers = fo.Recipe(
        optimizer=fo.AdamW(b2=0.5, weight_decay=0.1), schedule=3e-1, clip_norm=2.0
    )
    found, expected = (
        staged.with_hyperparameters(recipe).step(*given) for recipe in (numbers, OTHER)
    )
    fo.testing.assert_equal(found, expected)
