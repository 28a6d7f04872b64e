import inspect
from typing import Any

import functional_opt as fo
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from bits import assert_same_bits
from hypothesis import given, settings, strategies as st


SMALL = settings(max_examples=20, deadline=None)
values = st.floats(-10, 10, width=32)
counts = st.lists(st.integers(0, 60), min_size=4, max_size=4)

# The defaults that differ from Optax's, where it has none.
SIGNATURES = [
    (fo.Constant, optax.constant_schedule, {}, set()),
    # Its warmup is an addition.
    (fo.Linear, optax.linear_schedule, {}, {"warmup_steps"}),
    # Without a warmup, no warmup need be described.
    (
        fo.Cosine,
        optax.warmup_cosine_decay_schedule,
        {"init_value": 0.0, "warmup_steps": 0},
        set(),
    ),
]

SCHEDULES = [
    fo.Constant(0.1),
    fo.Linear(init_value=0.3, end_value=0.1, transition_steps=7, transition_begin=2),
    fo.Linear(init_value=0.3, end_value=0.1, transition_steps=7, warmup_steps=3),
    fo.Cosine(peak_value=0.3, warmup_steps=3, decay_steps=9, end_value=0.1),
    fo.Cosine(peak_value=0.3, decay_steps=9, exponent=1.5),
]


@pytest.mark.parametrize("kind, function, defaults, additions", SIGNATURES)
def test_fields_are_those_of_optax(kind, function, defaults, additions):
    theirs = {
        name: defaults.get(name, parameter.default)
        for name, parameter in inspect.signature(function).parameters.items()
    }
    ours = {
        name: parameter.default
        for name, parameter in inspect.signature(kind).parameters.items()
    }
    assert [name for name in ours if name not in additions] == list(theirs)
    assert {name: ours[name] for name in theirs} == theirs
    assert additions <= set(ours)


@SMALL
@given(values, counts)
def test_constant_is_optax(value, counts):
    ours, theirs = fo.Constant(value), optax.constant_schedule(value)
    for count in counts:
        assert_same_bits(ours(count), theirs(count))


@SMALL
@given(values, values, st.integers(1, 50), st.integers(0, 9), counts)
def test_linear_is_optax(init, end, steps, begin, counts):
    ours = fo.Linear(
        init_value=init, end_value=end, transition_steps=steps, transition_begin=begin
    )
    theirs = optax.linear_schedule(init, end, steps, begin)
    assert_equal_schedules(ours, theirs, counts)


@SMALL
@given(values, values, st.integers(1, 20), st.integers(1, 20), counts)
def test_linear_warmup_is_joined(init, end, steps, warmup, counts):
    ours = fo.Linear(
        init_value=init, end_value=end, transition_steps=steps, warmup_steps=warmup
    )
    theirs = optax.join_schedules(
        [
            optax.linear_schedule(0.0, init, warmup),
            optax.linear_schedule(init, end, steps),
        ],
        [warmup],
    )
    assert_equal_schedules(ours, theirs, counts)
    assert float(ours(warmup)) == pytest.approx(init, abs=1e-5)


@SMALL
@given(
    values, values | st.just(0.0), values, st.integers(0, 9), st.integers(1, 50), counts
)
@pytest.mark.parametrize("exponent", [1.0, 0.7])
def test_cosine_is_optax(exponent, init, peak, end, warmup, decay, counts):
    fields: Any = dict(
        init_value=init,
        peak_value=peak,
        warmup_steps=warmup,
        decay_steps=warmup + decay,
        end_value=end,
        exponent=exponent,
    )
    theirs = optax.warmup_cosine_decay_schedule(**fields)
    assert_equal_schedules(fo.Cosine(**fields), theirs, counts)


def assert_equal_schedules(ours, theirs, counts):
    for count in (counts[0], jnp.asarray(counts), np.asarray(counts)):
        assert_same_bits(ours(count), theirs(count))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_array_of_counts_gives_array_of_values(schedule):
    array = schedule(jnp.arange(12))
    singles = [schedule(jnp.int32(count)) for count in range(12)]
    assert_same_bits(array, jnp.stack([jnp.asarray(x) for x in singles]))


def test_compiled_is_optax_compiled():
    fields: Any = dict(init_value=0.1, peak_value=0.3, warmup_steps=3, decay_steps=9)
    ours, theirs = fo.Cosine(**fields), optax.warmup_cosine_decay_schedule(**fields)
    counts = jnp.arange(12)
    assert_same_bits(jax.jit(ours)(counts), jax.jit(theirs)(counts))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_traced_values(schedule):
    def evaluate(schedule):
        return schedule(jnp.arange(12))

    traced, eager = jax.jit(evaluate)(schedule), evaluate(schedule)
    np.testing.assert_allclose(traced, eager, rtol=1e-6)


@pytest.mark.parametrize("peak, end", [(0.0, 0.0), (0.0, 1.0), (2.0, 0.5), (-1.0, 3.0)])
def test_cosine_of_traced_peak(peak, end):
    def evaluate(peak, end):
        schedule = fo.Cosine(peak_value=peak, decay_steps=6, end_value=end)
        return schedule(jnp.arange(9))

    np.testing.assert_allclose(
        jax.jit(evaluate)(peak, end), evaluate(peak, end), rtol=1e-6, atol=1e-7
    )
    jacobian = jax.jacrev(evaluate, argnums=(0, 1))(peak, end)
    assert all(bool(jnp.isfinite(x).all()) for x in jacobian)


def test_schedule_is_an_optax_schedule():
    schedule = fo.Cosine(peak_value=0.1, warmup_steps=2, decay_steps=5)
    transformation = optax.scale_by_schedule(schedule)
    state = transformation.init(jnp.ones(2))
    for count in range(4):
        updates, state = transformation.update(jnp.ones(2), state)
        assert_same_bits(updates, schedule(jnp.int32(count)) * jnp.ones(2))


@pytest.mark.parametrize(
    "make, message",
    [
        (
            lambda: fo.Cosine(peak_value=1.0, warmup_steps=5, decay_steps=5),
            r"`Cosine.decay_steps` must be greater than `Cosine.warmup_steps`, got 5 "
            r"and 5\.",
        ),
        (
            lambda: fo.Linear(init_value=1.0, end_value=0.0, transition_steps=0),
            r"`Linear.transition_steps` must be at least 1, got 0\.",
        ),
        (
            lambda: fo.Cosine(peak_value=1.0, decay_steps=5, exponent=-1),
            r"`Cosine.exponent` must be at least 0, got -1\.0\.",
        ),
        (
            lambda: fo.Constant(float("inf")),
            r"`Constant.value` must be finite, got inf\.",
        ),
    ],
)
def test_wrong_values(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_steps_are_ints():
    with pytest.raises(
        TypeError, match=r"`Cosine.decay_steps` must be an int, got 'x'"
    ):
        fo.Cosine(peak_value=1.0, decay_steps="x")  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match=r"must be an int, got 10000\.0\."):
        fo.Cosine(peak_value=1.0, decay_steps=1e4)  # pyright: ignore[reportArgumentType]


def test_fields_are_keyword_only():
    assert fo.Constant(0.5) == fo.Constant(value=0.5)
    with pytest.raises(TypeError, match="positional"):
        fo.Linear(1.0, 0.0, 5)


def test_schedule_of_a_user():
    class Halving(fo.AbstractSchedule):
        init_value: float
        period: int

        def __call__(self, count: Any):
            return self.init_value * 0.5 ** (count // self.period)

    schedule = Halving(init_value=1.0, period=10)
    assert float(schedule(25)) == 0.25
    transformation = fo.SGD().build(schedule)
    updates, _ = transformation.update(
        jnp.ones(2), transformation.init(jnp.ones(2)), jnp.ones(2)
    )
    assert_same_bits(updates, -jnp.ones(2))
    assert fo.Registry.of(Halving)["halving"] is Halving
    with pytest.raises(TypeError, match=r"`Halving.period` must be an int, got 1\.5\."):
        Halving(init_value=1.0, period=1.5)  # pyright: ignore[reportArgumentType]
