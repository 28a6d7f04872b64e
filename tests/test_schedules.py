import functools
import inspect
from typing import Any

import functional_opt as fo
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from functional_opt.testing import Grade
from hypothesis import given, settings, strategies as st


SMALL = settings(max_examples=20, deadline=None)
values = st.floats(-10, 10, width=32)
counts = st.lists(st.integers(0, 60), min_size=4, max_size=4)

# Each schedule of Optax and ours, with the defaults that differ from Optax's where it
# has none.
PLACED = {
    "constant_schedule": (fo.Constant, {}),
    "polynomial_schedule": (fo.Polynomial, {}),
    # Its warmup is an addition.
    "linear_schedule": (fo.Linear, {"warmup_steps": 0}),
    "exponential_decay": (fo.ExponentialDecay, {}),
    "cosine_decay_schedule": (fo.CosineDecay, {}),
    "warmup_constant_schedule": (fo.WarmupConstant, {}),
    # Without a warmup, no warmup need be described.
    "warmup_cosine_decay_schedule": (fo.Cosine, {"init_value": 0.0, "warmup_steps": 0}),
    "warmup_exponential_decay_schedule": (fo.WarmupExponentialDecay, {}),
    "cosine_onecycle_schedule": (fo.CosineOnecycle, {}),
    "linear_onecycle_schedule": (fo.LinearOnecycle, {}),
    # Optax's dictionaries become tuples: their order and their entries are checked.
    "piecewise_constant_schedule": (
        fo.PiecewiseConstant,
        {"boundaries_and_scales": ()},
    ),
    "piecewise_interpolate_schedule": (
        fo.PiecewiseInterpolate,
        {"boundaries_and_scales": ()},
    ),
    "sgdr_schedule": (fo.SGDR, {}),
    # Its boundaries are the lengths of its schedules.
    "join_schedules": (fo.Sequence, {"boundaries": None}),
}

# What else `optax.schedules` has, and why it is no schedule of ours.
NO_SCHEDULES = {
    "Schedule": "a type",
    "StatefulSchedule": "the type of schedules with a state",
    "WrappedSchedule": "makes one with a state of one without",
    "InjectHyperparamsState": "a state",
    "InjectStatefulHyperparamsState": "a state",
    "inject_hyperparams": "a transformation whose hyperparameters have schedules",
    "inject_stateful_hyperparams": "a transformation whose hyperparameters have them",
}

BOUNDARIES = (fo.Boundary(3, 0.5), fo.Boundary(7, 3.0), fo.Boundary(8, 0.0))
CYCLE = {"peak_value": 0.3, "decay_steps": 6, "warmup_steps": 2, "init_value": 0.1}

# Fields for each, to compare with what Optax makes of the same arguments.
FIELDS: list[tuple[Any, Any, dict[str, Any]]] = [
    (fo.Polynomial, optax.polynomial_schedule, dict(end_value=0.1, power=2.0)),
    (fo.Polynomial, optax.polynomial_schedule, dict(end_value=0.1, power=0.5)),
    (fo.ExponentialDecay, optax.exponential_decay, dict(decay_rate=0.9)),
    (
        fo.ExponentialDecay,
        optax.exponential_decay,
        dict(decay_rate=0.5, staircase=True, transition_begin=2),
    ),
    (
        fo.ExponentialDecay,
        optax.exponential_decay,
        dict(decay_rate=1.5, end_value=0.4),
    ),
    (fo.CosineDecay, optax.cosine_decay_schedule, dict(alpha=0.1, exponent=0.7)),
    (fo.WarmupConstant, optax.warmup_constant_schedule, dict(peak_value=0.5)),
    (
        fo.WarmupExponentialDecay,
        optax.warmup_exponential_decay_schedule,
        dict(decay_rate=0.5, end_value=0.2, transition_begin=1),
    ),
    (fo.CosineOnecycle, optax.cosine_onecycle_schedule, {}),
    (fo.CosineOnecycle, optax.cosine_onecycle_schedule, dict(div_factor=5.0)),
    (fo.LinearOnecycle, optax.linear_onecycle_schedule, {}),
    (fo.LinearOnecycle, optax.linear_onecycle_schedule, dict(pct_start=0.5)),
]

# What stands in for an argument that has no default.
GIVEN = dict(
    init_value=0.3,
    peak_value=0.7,
    end_value=0.1,
    warmup_steps=4,
    decay_steps=9,
    transition_steps=9,
    decay_rate=0.9,
    power=2.0,
)

SCHEDULES = [
    fo.Constant(0.1),
    fo.WarmupConstant(init_value=0.1, peak_value=0.3, warmup_steps=3),
    fo.Linear(init_value=0.3, end_value=0.1, transition_steps=7, transition_begin=2),
    fo.Linear(init_value=0.3, end_value=0.1, transition_steps=7, warmup_steps=3),
    fo.Polynomial(init_value=0.3, end_value=0.1, power=2.0, transition_steps=7),
    fo.ExponentialDecay(init_value=0.3, transition_steps=7, decay_rate=0.5),
    fo.WarmupExponentialDecay(
        init_value=0.1,
        peak_value=0.3,
        warmup_steps=3,
        transition_steps=4,
        decay_rate=0.5,
        end_value=0.2,
    ),
    fo.Cosine(peak_value=0.3, warmup_steps=3, decay_steps=9, end_value=0.1),
    fo.Cosine(peak_value=0.3, decay_steps=9, exponent=1.5),
    fo.CosineDecay(init_value=0.3, decay_steps=9),
    fo.SGDR(cosine_kwargs=(CYCLE, CYCLE)),  # pyright: ignore[reportArgumentType]
    fo.CosineOnecycle(transition_steps=10, peak_value=0.3),
    fo.LinearOnecycle(transition_steps=10, peak_value=0.3),
    fo.PiecewiseConstant(init_value=0.3, boundaries_and_scales=BOUNDARIES),
    fo.PiecewiseConstant(init_value=0.3),
    fo.PiecewiseInterpolate(
        interpolate_type="linear", init_value=0.3, boundaries_and_scales=BOUNDARIES
    ),
    fo.InverseSqrt(peak_value=0.3, warmup_steps=3, timescale=3),
    fo.InverseSqrt(peak_value=0.3),
    fo.Inv(peak_value=0.3, warmup_steps=3, decay_steps=9, end_value=0.1),
    fo.Inv(peak_value=0.3, decay_steps=9, end_value=0.7),
    fo.Power(peak_value=0.02, warmup_steps=3, batch_size=32, seq_length=64),
    fo.Power(peak_value=0.02, batch_size=2, seq_length=4, a=0.01, b=-0.7),
    *(
        fo.WarmupStableDecay(
            peak_value=0.3,
            warmup_steps=2,
            stable_steps=4,
            decay_steps=5,
            end_value=0.1,
            decay_type=decay_type,
        )
        for decay_type in ("linear", "cosine", "sqrt")
    ),
    fo.Cooldown(fo.InverseSqrt(peak_value=0.3), start_at=4, decay_steps=5),
    fo.Sequence(
        (
            fo.Linear(init_value=0.0, end_value=0.3, transition_steps=3),
            fo.Phase(fo.Constant(0.3), steps=4),
            fo.Cosine(peak_value=0.3, decay_steps=4),
        )
    ),
]


@pytest.mark.parametrize("name", sorted(set(dir(optax.schedules)) | set(PLACED)))
def test_every_schedule_of_optax_is_placed(name):
    if name.startswith("_"):
        return
    assert (name in PLACED) is not (name in NO_SCHEDULES)


@pytest.mark.parametrize("name", PLACED)
def test_fields_are_those_of_optax(name):
    kind, differing = PLACED[name]
    theirs = {
        name: parameter.default
        for name, parameter in inspect.signature(
            getattr(optax.schedules, name)
        ).parameters.items()
    }
    ours = {
        name: parameter.default
        for name, parameter in inspect.signature(kind).parameters.items()
    }
    expected = {name: default for name, default in theirs.items() if name in ours}
    assert {name: ours[name] for name in ours if name not in differing} == {
        name: default for name, default in expected.items() if name not in differing
    }
    assert [name for name in ours if name in theirs] == list(expected)
    assert set(ours) ^ set(theirs) <= set(differing)


@SMALL
@given(values, counts)
def test_constant_is_optax(value, counts):
    ours, theirs = fo.Constant(value), optax.constant_schedule(value)
    for count in counts:
        fo.testing.assert_equal(ours(count), theirs(count))


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


@pytest.mark.parametrize("kind, function, fields", FIELDS)
def test_is_optax(kind, function, fields):
    needed = {
        name: GIVEN[name]
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.default is parameter.empty
    }
    arguments = needed | fields
    assert_equal_compiled(kind(**arguments), function(**arguments))


@SMALL
@given(
    values, st.dictionaries(st.integers(1, 50), st.floats(0, 3), max_size=4), st.data()
)
def test_piecewise_is_optax(init, boundaries, data):
    kinds = data.draw(st.sampled_from(["constant", "linear", "cosine"]))
    if kinds == "constant":
        ours = fo.PiecewiseConstant(init_value=init, boundaries_and_scales=boundaries)
        theirs = optax.piecewise_constant_schedule(init, boundaries)
    else:
        ours = fo.PiecewiseInterpolate(
            interpolate_type=kinds, init_value=init, boundaries_and_scales=boundaries
        )
        theirs = optax.piecewise_interpolate_schedule(kinds, init, boundaries)
    assert_equal_compiled(ours, theirs)


def test_sgdr_is_optax():
    cycles: Any = [
        dict(init_value=0.1, peak_value=0.5, warmup_steps=2, decay_steps=8),
        dict(init_value=0.2, peak_value=0.4, warmup_steps=0, decay_steps=5),
        dict(init_value=0.2, peak_value=0.3, warmup_steps=3, decay_steps=9),
    ]
    theirs = optax.sgdr_schedule(cycles)
    assert_equal_compiled(fo.SGDR(cosine_kwargs=cycles), theirs)


def test_sequence_is_joined():
    ours = fo.Sequence(
        (
            fo.Linear(init_value=0.0, end_value=0.3, transition_steps=3),
            fo.Phase(fo.Constant(0.3), steps=4),
            fo.InverseSqrt(peak_value=0.3),
        )
    )
    theirs = optax.join_schedules(
        [
            optax.linear_schedule(0.0, 0.3, 3),
            optax.constant_schedule(0.3),
            lambda count: 0.3 * jnp.sqrt(10_000 / (10_000 + jnp.maximum(count, 0))),
        ],
        [3, 7],
    )
    assert_equal_compiled(ours, theirs)


@pytest.mark.parametrize("decay_type", ["linear", "cosine"])
def test_stable_is_joined(decay_type):
    ours = fo.WarmupStableDecay(
        peak_value=0.3,
        warmup_steps=2,
        stable_steps=4,
        decay_steps=5,
        end_value=0.1,
        decay_type=decay_type,
    )
    decay = {
        "linear": optax.linear_schedule(0.3, 0.1, 5),
        "cosine": optax.cosine_decay_schedule(0.3, 5, 0.1 / 0.3),
    }
    theirs = optax.join_schedules(
        [
            optax.linear_schedule(0.0, 0.3, 2),
            optax.constant_schedule(0.3),
            decay[decay_type],
        ],
        [2, 6],
    )
    assert_equal_compiled(ours, theirs)


def test_root_decay():
    schedule = fo.WarmupStableDecay(
        peak_value=2.0, stable_steps=0, decay_steps=4, end_value=1.0, decay_type="sqrt"
    )
    expected = [2.0, 1.5, 2 - 0.5**0.5, 2 - 0.75**0.5, 1.0, 1.0]
    np.testing.assert_allclose(schedule.values(range(6)), expected, rtol=1e-6)


def by_inv(count, *, peak, end, warmup, both):
    """The formula of `Inv`, in float64."""
    part = np.clip((count - warmup) / (both - warmup), 0, 1)
    decayed = peak / (1 + (peak / end - 1) * part)
    return np.where(count < warmup, peak * count / max(warmup, 1), decayed)


def by_power(count, *, peak, warmup, batch, length, a=4.6, b=-0.51):
    """The formula of `Power`, in float64."""

    def law(count):
        return np.minimum(
            peak, batch * a * np.maximum(batch * length * count, 0.5) ** b
        )

    return np.where(count < warmup, law(warmup) * count / max(warmup, 1), law(count))


# Every count near the corners, and then all magnitudes up to the largest int32.
LAST = 2**31 - 1
EDGES = {*range(70), *(LAST - back for back in range(3))}
RANGE = np.array(
    sorted(EDGES | {2**bits + side for bits in range(7, 31) for side in (-1, 0, 1)}),
    np.int32,
)
FORMULAS = [
    (
        fo.Inv(peak_value=2.0, warmup_steps=warmup, decay_steps=both, end_value=end),
        functools.partial(by_inv, peak=2.0, end=end, warmup=warmup, both=both),
    )
    for warmup, both in ((0, 1), (0, 60), (7, 60), (2**20, LAST), (LAST - 1, LAST))
    for end in (0.1, 1e-6, 2.0, 5.0)
] + [
    (
        fo.Power(peak_value=peak, warmup_steps=warmup, batch_size=batch, seq_length=64),
        functools.partial(by_power, peak=peak, warmup=warmup, batch=batch, length=64),
    )
    for warmup in (0, 7, 2**20, LAST)
    for peak, batch in ((0.02, 1), (0.02, 4096), (10.0, 2**26))
]


@pytest.mark.parametrize("schedule, formula", FORMULAS)
def test_is_the_formula_at_all_counts(schedule, formula):
    expected = formula(RANGE.astype(np.float64))
    # A float32 power of a large number is this exact, and the rest a few roundings. The
    # linear warmup is Optax's, which is exact to a rounding of its last value.
    close = functools.partial(
        np.testing.assert_allclose, rtol=3e-6, atol=1e-7 * expected.max()
    )
    close(schedule(jnp.asarray(RANGE)), expected)
    close(schedule.values(RANGE), expected)
    for index in (0, 1, 7, 8, -2, -1):
        close(schedule(jnp.int32(RANGE[index])), expected[index])


def test_inverse_decay_is_that_of_levanter():
    """From the second update on: its first has the value of the second."""
    schedule = fo.Inv(peak_value=0.3, decay_steps=50, end_value=0.03)
    counts = np.arange(1, 60)
    theirs = 0.3 * np.minimum(1, 1 / ((0.3 / 0.03 - 1) * counts / 50 + 1))
    np.testing.assert_allclose(
        schedule.values(counts), np.maximum(theirs, 0.03), rtol=1e-6
    )
    assert float(schedule(0)) == np.float32(0.3)


def test_power_law_has_gradients_at_every_count():
    def total(a, b, peak):
        schedule = fo.Power(peak_value=peak, batch_size=2, seq_length=4, a=a, b=b)
        return jnp.sum(schedule(jnp.arange(9)))

    gradients = jax.grad(total, argnums=(0, 1, 2))(0.1, -0.5, 0.05)
    assert all(np.isfinite(x) and x != 0 for x in gradients)


@pytest.mark.parametrize("branch", [4, 10])
def test_cooldown_branches_off(branch):
    stable = fo.WarmupConstant(init_value=0.0, peak_value=0.3, warmup_steps=2)
    cooled = fo.Cooldown(stable, start_at=branch, decay_steps=5)
    whole = fo.WarmupStableDecay(
        peak_value=0.3, warmup_steps=2, stable_steps=branch - 2, decay_steps=5
    )
    assert_equal_compiled(cooled, whole)
    assert cooled.corners() == (0, 2, branch, branch + 5)
    state, other = (
        fo.AdamW().build(schedule).init(jnp.ones(2)) for schedule in (stable, cooled)
    )
    fo.testing.assert_equal(state, other)


def assert_equal_compiled(ours, theirs, counts=range(60)):
    """One count at a time is what Optax takes, and many."""
    ours, theirs = jax.jit(ours), jax.jit(theirs)
    found = [ours(jnp.int32(count)) for count in counts]
    expected = [theirs(jnp.int32(count)) for count in counts]
    fo.testing.assert_equal(found, expected)


def assert_equal_schedules(ours, theirs, counts):
    for count in (counts[0], jnp.asarray(counts), np.asarray(counts)):
        fo.testing.assert_equal(ours(count), theirs(count))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_array_of_counts_gives_array_of_values(schedule):
    array = schedule(jnp.arange(12))
    singles = [schedule(jnp.int32(count)) for count in range(12)]
    singles = jnp.stack([jnp.asarray(x) for x in singles])
    # XLA takes powers and cosines of vectors and of scalars by other instructions, and
    # divides vectors by one number through its reciprocal. One plus a cosine cancels
    # where a cycle ends.
    grades: dict[type, Grade] = {
        fo.ExponentialDecay: "close",
        fo.CosineOnecycle: "bounded",
        fo.Inv: "close",
        fo.Power: "close",
    }
    fo.testing.assert_equal(array, singles, grades.get(type(schedule), "exact"))


def test_compiled_is_optax_compiled():
    fields: Any = dict(init_value=0.1, peak_value=0.3, warmup_steps=3, decay_steps=9)
    ours, theirs = fo.Cosine(**fields), optax.warmup_cosine_decay_schedule(**fields)
    counts = jnp.arange(12)
    fo.testing.assert_equal(jax.jit(ours)(counts), jax.jit(theirs)(counts))


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
        fo.testing.assert_equal(updates, schedule(jnp.int32(count)) * jnp.ones(2))


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
            lambda: fo.Inv(
                peak_value=1.0, warmup_steps=5, decay_steps=5, end_value=0.1
            ),
            r"`Inv.decay_steps` must be greater than `Inv.warmup_steps`, got 5 and 5\.",
        ),
        (
            lambda: fo.Inv(peak_value=1.0, decay_steps=5, end_value=0.0),
            r"`Inv.end_value` must be greater than 0, got 0\.0\.",
        ),
        (
            lambda: fo.Power(peak_value=1.0, batch_size=1, seq_length=1, b=0.0),
            r"`Power.b` must be less than 0, got 0\.0\.",
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
        TypeError,
        match=r"`Cosine.decay_steps` must be an int, a Steps or a Fraction, got 'x'",
    ):
        fo.Cosine(peak_value=1.0, decay_steps="x")  # pyright: ignore[reportArgumentType]
    with pytest.raises(
        TypeError, match=r"or a Fraction, got 10000\.0\. Did you mean `10000`\?$"
    ):
        fo.Cosine(peak_value=1.0, decay_steps=1e4)  # pyright: ignore[reportArgumentType]
    with pytest.raises(
        TypeError, match=r"got 0\.1\. Did you mean `Fraction\(0\.1\)`\?"
    ):
        fo.Cosine(peak_value=1.0, decay_steps=0.1)  # pyright: ignore[reportArgumentType]


def test_fields_are_keyword_only():
    assert fo.Constant(0.5) == fo.Constant(value=0.5)
    with pytest.raises(TypeError, match="positional"):
        fo.Linear(1.0, 0.0, 5)  # pyright: ignore[reportCallIssue]


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
    fo.testing.assert_equal(updates, -jnp.ones(2))
    assert fo.Registry.of(Halving)["halving"] is Halving
    with pytest.raises(TypeError, match=r"`Halving.period` must be an int, got 1\.5\."):
        Halving(init_value=1.0, period=1.5)  # pyright: ignore[reportArgumentType]
