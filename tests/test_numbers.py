"""Narrow and complex numbers, and gradients that are None, in every optimizer."""

import functools
import itertools
from typing import Any

import equinox as eqx
import functional_opt as fo
import jax
import jax.numpy as jnp
import optax
import pytest
import quick_compiler
from catalogue import extra_args, OPTIMIZERS, recipe_of
from recipe_runs import frozen_groups, moments, PARAMS, recipe, run, SCHEDULE


def cast(tree, dtype):
    return jax.tree.map(lambda x: x.astype(dtype), tree)


def shapes_of(tree):
    return jax.eval_shape(lambda: tree)


DECAYED: Any = dict(weight_decay=0.1, clip_norm=1.0)


def decayed(optimizer, **fields):
    """A decay and a schedule, whose values are float32 arrays."""
    return recipe(optimizer=optimizer, **DECAYED, **fields)


# Of the parameters and of their gradients.
NARROW = [("bfloat16", "bfloat16"), ("float16", "float16"), ("bfloat16", "float32")]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_dtypes_stay_in_all_options(name):
    """The state's from step to step, and the updates' are those of the gradients."""
    options = itertools.product([1, 2], [False, True], [None, "bfloat16", "float32"])
    for accumulate, skip, state_dtype in options:
        ours = recipe_of(
            name,
            accumulate=accumulate,
            skip_nonfinite=skip,
            state_dtype=state_dtype,
            **DECAYED,
        )
        transformation = ours.build()
        states = {
            dtype: jax.eval_shape(transformation.init, cast(PARAMS, dtype))
            for dtype in dict(NARROW)
        }
        update = functools.partial(transformation.update, **extra_args(name))
        for dtype, grads_dtype in NARROW:
            params, grads = cast(PARAMS, dtype), cast(PARAMS, grads_dtype)
            updates, after = jax.eval_shape(update, grads, states[dtype], params)
            assert eqx.tree_equal(after, states[dtype]), (ours, dtype, grads_dtype)
            assert eqx.tree_equal(updates, shapes_of(grads)), (ours, dtype, grads_dtype)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_narrow_parameters_train(name):
    """Near to where float32 parameters arrive, skipping one gradient on the way."""
    training = recipe_of(
        name, skip_nonfinite=True, accumulate=2, state_dtype="float32", **DECAYED
    ).build()
    options: Any = dict(
        steps=5, bad={1}, extra_args=extra_args(name), jit=quick_compiler.jit
    )
    found = run(training, params=cast(PARAMS, "bfloat16"), **options)
    wide = run(training, **options)
    for one, other, start in zip(
        *map(jax.tree.leaves, (found.params, wide.params, PARAMS)), strict=True
    ):
        assert one.dtype == jnp.bfloat16
        assert jnp.allclose(one.astype("float32"), other, rtol=0.05, atol=0.02)
        assert (other != start).any() or name in ("Frozen", "Groups")


def test_array_hyperparameters_do_not_widen_narrow_parameters():
    """With b1 as a float32 array, the moments of Optax become float32."""
    optimizer = fo.AdamW(b1=jnp.float32(0.9), weight_decay=jnp.float32(0.1))
    transformation = recipe(optimizer=optimizer, skip_nonfinite=True).build()
    params = cast(PARAMS, "bfloat16")
    found = run(transformation, params=params)
    assert {x.dtype for x in moments(found.state)} == {jnp.dtype("bfloat16")}


def test_decay_of_narrow_parameters_is_rounded_once():
    params = {"w": jnp.full(4, 1.5, jnp.bfloat16)}
    grads = {"w": jnp.full(4, 0.125, jnp.bfloat16)}
    transformation = recipe(
        optimizer=fo.SGD(),
        schedule=fo.Cosine(
            init_value=0.1, peak_value=0.1, warmup_steps=1, decay_steps=10
        ),
        weight_decay=0.3,
    ).build()
    updates: Any
    updates, _ = transformation.update(grads, transformation.init(params), params)
    step = jnp.asarray(-0.1, jnp.bfloat16) * grads["w"]
    expected = step.astype("float32") - jnp.float32(0.1 * 0.3) * 1.5
    fo.testing.assert_equal(updates["w"], expected.astype("bfloat16"))


def test_float32_gradients_of_narrow_parameters_stage_by_stage():
    params = cast(PARAMS, "bfloat16")
    grads = jax.tree.map(lambda x: jnp.sin(x.astype("float32")), params)
    partition = fo.partition(params, {"embed": 0, "body": 1, "norm": 2})
    for state_dtype in (None, "float32"):
        ours = decayed(fo.AdamW(), state_dtype=state_dtype, skip_nonfinite=True)
        staged = ours.build_mpmd(params, partition, grads=grads)
        fo.testing.assert_stage_local_equal(
            ours.build(), params, partition, grads=[grads] * 2
        )
        pieces = partition.split(params)
        given = partition.split_gradients(grads)
        after, _ = staged.step(given, staged.init(pieces), pieces)
        assert {x.dtype for x in jax.tree.leaves(after)} == {jnp.dtype("bfloat16")}
    own = fo.AdamW(mu_dtype="float32").build_mpmd(
        0.1, grads, fo.partition(grads, lambda *_: 0), grads=grads
    )
    assert isinstance(own, fo.Staged)


def times(tree, number):
    return jax.tree.map(lambda x: x * number, tree)


def complex_like(tree, seed):
    keys = jax.random.split(jax.random.key(seed), 2 * len(tree))
    return {
        name: jax.lax.complex(
            jax.random.normal(keys[2 * i], x.shape),
            jax.random.normal(keys[2 * i + 1], x.shape),
        )
        for i, (name, x) in enumerate(tree.items())
    }


REFUSED = (
    *("AdaDelta", "ADOPT", "COCOB", "DAdaptAdamW", "DoG", "DoWG", "GaLore", "Kron"),
    *("Cautious", "CautiousDecay"),
    *("LBFGS", "MADGRAD", "Mechanize", "Momo", "MomoAdam", "NoisySGD", "Prodigy"),
    *("Quad", "Rprop", "Scion", "SimplifiedAdEMAMix", "Skew", "SM3", "SOAP", "Sophia"),
)


@pytest.mark.parametrize("name", sorted(OPTIMIZERS.keys() - {"Frozen", *REFUSED}))
def test_complex_parameters_turn_with_their_gradients(name):
    """The same phase times all parameters and gradients comes out again."""
    phase = jnp.exp(0.7j).astype(jnp.complex64)
    params, grads = complex_like(PARAMS, 0), complex_like(PARAMS, 1)
    transformation = recipe_of(name, skip_nonfinite=True, **DECAYED).build()

    @quick_compiler.jit
    def step(grads, state, params):
        updates, state = transformation.update(grads, state, params, **extra_args(name))
        return optax.apply_updates(params, updates), state

    def trained(turn):
        turned, given = (times(x, turn) for x in (params, grads))
        state = transformation.init(turned)
        for _ in range(3):
            turned, state = step(given, state, turned)
        return turned

    plain, turned = trained(1), trained(phase)
    for one, other in zip(*map(jax.tree.leaves, (plain, turned)), strict=True):
        assert other.dtype == jnp.complex64
        assert jnp.allclose(one * phase, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "make, name",
    [
        *((lambda name=name: OPTIMIZERS[name], f"`{name}`") for name in REFUSED),
        (lambda: fo.AdamW(mu_dtype="float32"), "`AdamW.mu_dtype`"),
        (lambda: fo.SGD(momentum=0.9, accumulator_dtype="float32"), "`SGD.acc"),
        (lambda: fo.Adafactor(momentum=0.9), "`Adafactor.momentum`"),
        (lambda: fo.Muon(mu_dtype="bfloat16"), "`Muon.mu_dtype`"),
    ],
)
def test_optimizers_that_refuse_complex_parameters(make, name):
    params = PARAMS | {"body": complex_like(PARAMS, 0)["body"]}
    message = rf"^{name}.* does not support complex parameters: `\['body'\]` is complex"
    with pytest.raises(ValueError, match=message):
        make().build(0.1).init(params)
    with pytest.raises(ValueError, match=message):
        recipe(optimizer=make(), schedule=0.1, weight_decay=0.1).build_mpmd(
            params,
            fo.partition(params, {"embed": 0, "body": 1, "norm": 2}),
            extra_args={"value": 2.0},
        )


@pytest.mark.parametrize("options", [dict(accumulate=2), dict(state_dtype="float32")])
def test_options_that_refuse_complex_parameters(options):
    params = PARAMS | {"norm": complex_like(PARAMS, 0)["norm"]}
    (name,) = options
    ours = recipe(optimizer=fo.SGD(), **options)
    with pytest.raises(ValueError, match=f"^`Recipe.{name}` does not support complex"):
        ours.build().init(params)
    frozen = recipe(optimizer=frozen_groups(), **options).build()
    frozen.init(params)


NESTED = {"trunk": {"a": jnp.ones((3, 3)), "b": jnp.ones(3)}, "lora": jnp.ones((3, 2))}


@pytest.mark.parametrize("missing", ["leaf", "subtree"])
def test_missing_gradients_are_zeros(missing):
    grads = jax.tree.map(jnp.cos, NESTED)
    absent = {"a": None, "b": grads["trunk"]["b"]} if missing == "leaf" else None
    zeros = optax.tree.zeros_like(NESTED["trunk"])
    filled = zeros | {"b": grads["trunk"]["b"]} if missing == "leaf" else zeros
    ours = decayed(fo.AdamW(), accumulate=2, skip_nonfinite=True).build()
    found, expected = (
        run(ours, params=NESTED, grads_of=lambda *_, g=g: grads | {"trunk": g})
        for g in (absent, filled)
    )
    fo.testing.assert_equal(found, expected)


def test_frozen_parameters_need_no_gradients():
    optimizer = fo.Groups(
        (fo.Group(fo.Where("lora"), optimizer=fo.AdamW()),), rest=fo.Frozen()
    )
    ours = recipe(optimizer=optimizer, clip_norm=1.0)
    grads = {"trunk": None, "lora": jnp.ones((3, 2))}
    found = run(ours.build(), params=NESTED, grads_of=lambda *_: grads)
    fo.testing.assert_equal(found.params["trunk"], NESTED["trunk"])
    alone = recipe(optimizer=fo.AdamW(), clip_norm=1.0).build()
    expected = run(alone, params=NESTED["lora"], grads_of=lambda *_: grads["lora"])
    fo.testing.assert_equal(found.params["lora"], expected.params)


def test_schedule_of_the_tests_is_an_array():
    """Else the decay of narrow parameters would not widen them."""
    rate: Any = SCHEDULE(jnp.int32(1))
    assert rate.dtype == jnp.float32 and not rate.weak_type
