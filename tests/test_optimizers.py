import inspect
from typing import Any

import functional_opt as fo
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings, strategies as st
from optax.contrib import MuonDimensionNumbers
from recipe_runs import moments


PARAMS = {"w": jnp.array([[1.0, -2.0], [3.0, 0.5]]), "b": jnp.array([0.1, -0.3])}

FUNCTIONS = [
    (fo.Adam, optax.adam),
    (fo.AdamW, optax.adamw),
    (fo.SGD, optax.sgd),
    (fo.Lion, optax.lion),
    (fo.RMSProp, optax.rmsprop),
    (fo.Adafactor, optax.adafactor),
    (fo.Muon, optax.contrib.muon),
]

HYPERPARAMETERS = [
    (fo.Adam, optax.adam, dict(b1=0.8, b2=0.95, eps=1e-6, eps_root=1e-9)),
    (fo.Adam, optax.adam, dict(nesterov=True, mu_dtype="bfloat16")),
    (fo.AdamW, optax.adamw, dict(b2=0.95, weight_decay=0.1, nesterov=True)),
    (fo.AdamW, optax.adamw, dict(weight_decay=0.1, mask=fo.Where(min_ndim=2))),
    (fo.AdamW, optax.adamw, dict(b1=0.8, eps=0.0, eps_root=1e-9, mu_dtype="bfloat16")),
    (fo.SGD, optax.sgd, {}),
    (fo.SGD, optax.sgd, dict(momentum=0.9, accumulator_dtype="bfloat16")),
    (fo.SGD, optax.sgd, dict(momentum=0.9, nesterov=True)),
    (fo.Lion, optax.lion, dict(b1=0.8, b2=0.95, mu_dtype="bfloat16")),
    (fo.Lion, optax.lion, dict(weight_decay=0.1, mask=fo.Where("b"))),
    (fo.RMSProp, optax.rmsprop, dict(decay=0.8, initial_scale=1.0, momentum=0.9)),
    (
        fo.RMSProp,
        optax.rmsprop,
        dict(eps=1e-4, eps_in_sqrt=False, centered=True, bias_correction=True),
    ),
    (fo.Adafactor, optax.adafactor, dict(min_dim_size_to_factor=2, decay_rate=0.5)),
    (
        fo.Adafactor,
        optax.adafactor,
        dict(
            multiply_by_parameter_scale=False,
            clipping_threshold=None,
            momentum=0.9,
            dtype_momentum="bfloat16",
            weight_decay_rate=0.1,
            weight_decay_mask=fo.Where("w"),
        ),
    ),
    (
        fo.Adafactor,
        optax.adafactor,
        dict(
            decay_offset=2,
            clipping_threshold=0.5,
            weight_decay_rate=fo.Linear(
                init_value=0.1, end_value=0.0, transition_steps=2
            ),
            eps=1e-3,
            factored=False,
        ),
    ),
    (fo.Muon, optax.contrib.muon, dict(ns_steps=2, beta=0.8, mu_dtype="bfloat16")),
    (
        fo.Muon,
        optax.contrib.muon,
        dict(
            ns_coeffs=((2.0, -1.5, 0.5), (1.5, -0.5, 0.0)),
            weight_decay=0.1,
            weight_decay_mask=fo.Where("w"),
            nesterov=False,
            adaptive=True,
            preconditioning="schatten",
            adam_b1=0.8,
            adam_weight_decay=0.2,
            adam_learning_rate=0.3,
            consistent_rms=0.2,
        ),
    ),
    (
        fo.Muon,
        optax.contrib.muon,
        dict(
            ns_coeffs="dion",
            muon_weight_dimension_numbers=lambda params: jax.tree.map(
                lambda leaf: MuonDimensionNumbers() if leaf.ndim == 2 else None, params
            ),
        ),
    ),
]


def loss(params):
    return sum(jnp.sum(jnp.sin(x) ** 2) for x in jax.tree.leaves(params))


def train(transformation, params: Any = PARAMS, steps=3) -> Any:
    """The parameters and the state after a few steps."""
    state = transformation.init(params)
    for _ in range(steps):
        grads = jax.grad(loss)(params)
        updates, state = transformation.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def decayed(optimizer, rate: Any, weight_decay, mask: Any = None):
    """The optimizer with the weight decay of a recipe."""
    return fo.Recipe(
        optimizer=optimizer,
        schedule=rate,
        weight_decay=weight_decay,
        decay_where=mask,
    ).build()


def assert_trains_equally(ours, theirs):
    """The same parameters and arrays of the state, which may be nested otherwise."""
    (found, state), (expected, their_state) = trained(ours), trained(theirs)
    fo.testing.assert_equal(found, expected)
    fo.testing.assert_equal(moments(state), moments(their_state))


def trained(transformation):
    return jax.jit(lambda params: train(transformation, params))(PARAMS)


@pytest.mark.parametrize("kind, function", FUNCTIONS)
def test_fields_are_those_of_optax(kind, function):
    theirs = dict(inspect.signature(function).parameters)
    del theirs["learning_rate"]  # An argument of `build`.
    ours = inspect.signature(kind).parameters
    assert list(ours) == list(theirs)
    for name, parameter in ours.items():
        assert parameter.default == theirs[name].default
        assert parameter.kind is inspect.Parameter.KEYWORD_ONLY


@pytest.mark.parametrize("kind, function, hyperparameters", HYPERPARAMETERS)
def test_build_is_optax(kind, function, hyperparameters):
    schedule = fo.Linear(init_value=0.1, end_value=0.0, transition_steps=5)
    ours = kind(**hyperparameters).build(schedule)
    assert isinstance(ours, optax.GradientTransformationExtraArgs)
    theirs = function(optax.linear_schedule(0.1, 0.0, 5), **hyperparameters)
    fo.testing.assert_equal(trained(ours), trained(theirs))


@pytest.mark.parametrize("kind, function", FUNCTIONS)
@pytest.mark.parametrize("rate", [0.1, jnp.float32(0.1), optax.constant_schedule(0.1)])
def test_rate_as_optax_takes_it(kind, function, rate):
    fo.testing.assert_equal(trained(kind().build(rate)), trained(function(rate)))


@settings(max_examples=8, deadline=None)
@given(st.floats(0, 0.999), st.floats(0, 0.999), st.floats(0, 1), st.booleans())
def test_any_adamw_is_optax(b1, b2, weight_decay, nesterov):
    fields = dict(b1=b1, b2=b2, weight_decay=weight_decay, nesterov=nesterov)
    ours, theirs = fo.AdamW(**fields).build(0.1), optax.adamw(0.1, **fields)
    fo.testing.assert_equal(train(ours, steps=1), train(theirs, steps=1))


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_decay_as_array_or_tracer(weight_decay):
    def run(weight_decay):
        return train(fo.AdamW(weight_decay=weight_decay).build(0.1))

    known, _ = jax.jit(lambda: run(weight_decay))()
    array, _ = jax.jit(lambda: run(jnp.float32(weight_decay)))()
    traced, _ = jax.jit(run)(weight_decay)
    # XLA multiplies constants with each other first; a parameter that its updates
    # nearly cancel is then further apart.
    for other in (array, traced):
        fo.testing.assert_equal(other, known, grade="bounded")


@pytest.mark.parametrize("optimizer", [fo.Adam(b1=0.8), fo.AdamW(b1=0.8)])
def test_decay_of_adam_is_adamw(optimizer):
    mask = fo.Where(min_ndim=2)
    adamw = optax.adamw(0.1, b1=0.8, weight_decay=0.5, mask=mask)
    assert_trains_equally(decayed(optimizer, 0.1, 0.5, mask), adamw)


def test_decay_of_lion_replaces_its_own():
    lion = decayed(fo.Lion(weight_decay=0.3), 0.1, 0.5)
    assert_trains_equally(lion, optax.lion(0.1, weight_decay=0.5))


@pytest.mark.parametrize("kind", [fo.AdamW, fo.Lion])
def test_decay_keeps_the_mask_where_none_is_given(kind):
    mask, other = fo.Where("w"), fo.Where("b")
    kept = decayed(kind(mask=mask), 0.1, 0.5)
    replaced = decayed(kind(mask=mask), 0.1, 0.5, other)
    assert_trains_equally(kept, kind(mask=mask, weight_decay=0.5).build(0.1))
    assert_trains_equally(replaced, kind(mask=other, weight_decay=0.5).build(0.1))


@pytest.mark.parametrize("rate", [0.1, fo.Constant(0.1)])
def test_decay_of_sgd_is_decoupled(rate):
    plain, _ = train(fo.SGD(momentum=0.9).build(0.1), steps=1)
    params, _ = train(decayed(fo.SGD(momentum=0.9), rate, 0.5, fo.Where("w")), steps=1)
    fo.testing.assert_equal(params["b"], plain["b"])
    expected = plain["w"] - 0.1 * 0.5 * PARAMS["w"]
    # The decay is taken off after the update here, and with it there.
    fo.testing.assert_equal(params["w"], expected, grade="close")


def test_one_trace_over_hyperparameters():
    traces = 0

    @jax.jit
    def run(recipe):
        nonlocal traces
        traces += 1
        return train(recipe.build())[0]

    results = set()
    for rate in (0.1, 0.2, 0.3):
        for b1 in (0.5, 0.7, 0.9):
            recipe = fo.Recipe(
                optimizer=fo.AdamW(b1=jnp.float32(b1)), schedule=jnp.float32(rate)
            )
            results.add(run(recipe)["w"].tobytes())
    assert traces == 1
    assert len(results) == 9


def test_floats_do_not_retrace_either():
    traces = 0

    @jax.jit
    def run(config):
        nonlocal traces
        traces += 1
        return config.build(0.1).init(PARAMS)

    for b1 in (0.5, 0.7):
        run(fo.Adam(b1=b1))
    assert traces == 1
    run(fo.Adam(b1=0.7, nesterov=True))
    assert traces == 2


def test_sweep_is_a_loop():
    recipes = [
        fo.Recipe(
            optimizer=fo.AdamW(b1=b1),
            schedule=fo.Cosine(peak_value=peak, warmup_steps=1, decay_steps=5),
            clip_norm=1.0,
        )
        for peak, b1 in [(0.1, 0.9), (0.2, 0.5), (0.3, 0.7)]
    ]

    def run(recipe):
        return train(recipe.build())[0]

    batch = jax.tree.map(lambda *leaves: jnp.stack(leaves), *recipes)
    swept = jax.jit(jax.vmap(run))(batch)
    single = jax.jit(run)
    for index, recipe in enumerate(recipes):
        one = jax.tree.map(lambda x, index=index: x[index], swept)
        # XLA adds up a norm for several in another order; a parameter that its
        # updates nearly cancel is then further apart.
        fo.testing.assert_equal(one, single(recipe), grade="bounded")


def test_gradient_by_learning_rate():
    with jax.enable_x64(True):
        params = jax.tree.map(lambda x: x.astype(jnp.float64), PARAMS)

        @jax.jit
        def loss_after(rate):
            schedule = fo.Cosine(peak_value=rate, decay_steps=10, end_value=0.01)
            recipe = fo.Recipe(
                optimizer=fo.AdamW(), schedule=schedule, clip_norm=0.5, weight_decay=0.1
            )
            return loss(train(recipe.build(), params)[0])

        rate, step = jnp.float64(0.1), 1e-5
        difference = (loss_after(rate + step) - loss_after(rate - step)) / (2 * step)
        gradient = jax.grad(loss_after)(rate)
        assert abs(gradient) > 1e-3
        np.testing.assert_allclose(gradient, difference, rtol=1e-7)


def test_optimizer_of_a_user():
    class SignSGD(fo.AbstractOptimizer):
        scale: float = 1.0

        def build(self, schedule):
            return optax.chain(
                optax.scale_by_sign(),
                optax.scale(self.scale),
                optax.scale_by_learning_rate(schedule),
            )

    recipe = fo.Recipe(optimizer=SignSGD(scale=2.0), schedule=0.1, weight_decay=0.5)
    params, _ = train(recipe.build(), steps=1)
    signs = jnp.sign(jax.grad(loss)(PARAMS)["w"])
    expected = PARAMS["w"] - 0.2 * signs - 0.1 * 0.5 * PARAMS["w"]
    # The decay is taken off after the update here, and with it there.
    fo.testing.assert_equal(params["w"], expected, grade="close")
    assert (fo.Registry.of(fo.Adam) | fo.Registry.of(SignSGD))["signsgd"] is SignSGD
    with pytest.raises(ValueError, match=r"`SignSGD.scale` must be finite, got nan"):
        SignSGD(scale=float("nan"))
    incomplete = type("Incomplete", (fo.AbstractOptimizer,), {})
    with pytest.raises(TypeError, match="abstract"):
        incomplete()


@pytest.mark.parametrize(
    "make, message",
    [
        (
            lambda: fo.Muon(ns_coeffs=((1.0, 0.0, 0.0),) * 6),
            r"`Muon.ns_steps` must be at least the number of triples in "
            r"`Muon.ns_coeffs`, 6, got 5\.",
        ),
        (
            lambda: fo.Scion(norm="Sign").build(0.1).init(PARAMS),
            r"`Scion.norm` 'Sign' requires parameters of rank 2 or more, got one of "
            r"shape \(2,\)\.",
        ),
        (lambda: fo.Kron(precond_lr=1.5), r"`Kron.precond_lr` must be in \(0, 1\]"),
        (lambda: fo.Quad(max_skew_dense=0), r"`Quad.max_skew_dense` must be greater"),
    ],
)
def test_settings_that_do_not_fit(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "optimizer, decays",
    [
        (fo.Muon(weight_decay=0.1, adam_weight_decay=0.2), {"w": 0.1, "b": 0.2}),
        (
            fo.Muon(
                weight_decay=0.1,
                muon_weight_dimension_numbers=lambda _: {"w": None, "b": None},
            ),
            {"w": 0.0, "b": 0.0},
        ),
        (fo.Muon(weight_decay=0.1, weight_decay_mask=fo.Where("b")), {"w": 0.0}),
        (fo.Scion(), {"w": 1.0, "b": 1.0}),
        (fo.Scion(unconstrained=True), {"w": 0.0, "b": 0.0}),
        (fo.Kron(weight_decay=0.1, mask=fo.Where("w")), {"w": 0.1, "b": 0.0}),
    ],
)
def test_decay_as_it_is_explained(optimizer, decays):
    """Without a gradient, a parameter moves by its decay alone."""
    table = fo.Recipe(optimizer=optimizer, schedule=0.1).explain(PARAMS)
    rows = [line.split() for line in table.splitlines()[1:]]
    explained = {row[0].strip("[]'"): float(row[-1]) for row in rows}
    assert {name: explained[name] for name in decays} == decays
    transformation = optimizer.build(0.1)
    zero = jax.tree.map(jnp.zeros_like, PARAMS)
    updates, _ = transformation.update(zero, transformation.init(PARAMS), PARAMS)
    for name, decay in decays.items():
        expected = -0.1 * decay * PARAMS[name]
        # The product of three numbers is rounded in another order; zeros have signs.
        fo.testing.assert_equal(updates[name], expected, grade="close")
