import dataclasses
import inspect
import re
from typing import Any, get_type_hints

import functional_opt as fo
import jax
import numpy as np
import pytest
from hypothesis import given, strategies as st


def cosine(**fields: Any) -> fo.Cosine:
    defaults: dict[str, Any] = dict(peak_value=1.0, decay_steps=fo.Fraction(1.0))
    return fo.Cosine(**defaults | fields)


def test_steps_are_ints():
    schedule = cosine(warmup_steps=fo.Steps(5), decay_steps=10)
    assert schedule == cosine(warmup_steps=5, decay_steps=10)
    assert type(schedule.warmup_steps) is int


def test_fractions_are_values():
    schedule = cosine(warmup_steps=fo.Fraction(0.1))
    assert schedule == cosine(warmup_steps=fo.Fraction(0.1))
    assert schedule != cosine(warmup_steps=fo.Fraction(0.2))
    assert hash(schedule) == hash(cosine(warmup_steps=fo.Fraction(0.1)))
    assert jax.tree.leaves(schedule) == [0.0, 1.0, 0.0, 1.0]


@pytest.mark.parametrize(
    "part, total, expected",
    [(0.29, 100, 29), (0.1, 30, 3), (1 / 3, 3_000, 1_000), (0.0199, 100, 1), (1, 7, 7)],
)
def test_fraction_of_a_run(part, total, expected):
    assert fo.Fraction(part).of(total) == expected
    assert cosine(decay_steps=fo.Fraction(part)).resolve(total).decay_steps == expected


@given(st.lists(st.integers(1, 100), min_size=1, max_size=8), st.integers(1, 10_000))
def test_parts_never_take_more_than_the_run(weights, total):
    parts = [weight / sum(weights) for weight in weights]
    assert sum(fo.Fraction(part).of(total) for part in parts) <= total


@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan")])
def test_parts_are_parts(value):
    with pytest.raises(ValueError, match=r"`Fraction.value` must be "):
        fo.Fraction(value)
    with pytest.raises(TypeError, match=r"`Steps.value` must be an int, got 0\.5"):
        fo.Steps(0.5)  # pyright: ignore[reportArgumentType]


def test_lengths_inside_are_resolved():
    schedule = fo.Sequence(
        (
            fo.Linear(init_value=0.0, end_value=1.0, transition_steps=fo.Fraction(0.1)),
            fo.Phase(fo.Constant(1.0), steps=fo.Fraction(0.5)),
            fo.PiecewiseConstant(
                init_value=1.0,
                boundaries_and_scales=(fo.Boundary(fo.Fraction(0.2), 0.5),),
            ),
        )
    )
    found = schedule.resolve(100)
    assert found.corners() == (0, 10, 60, 80)
    assert schedule.resolve(100) == found == found.resolve(100)
    np.testing.assert_allclose(found.values([0, 10, 79, 80]), [0.0, 1.0, 1.0, 0.5])


def test_what_the_run_leaves():
    stable = fo.WarmupStableDecay(
        peak_value=1.0, warmup_steps=10, decay_steps=fo.Fraction(0.2)
    )
    assert stable.resolve(100).corners() == (0, 10, 80, 100)
    cooled = fo.Cooldown(fo.Constant(1.0), decay_steps=fo.Fraction(0.2))
    assert cooled.resolve(100).corners() == (0, 80, 100)
    inside = fo.Cooldown(stable, decay_steps=10)
    assert inside.resolve(100).corners() == (0, 10, 80, 90, 100)


@pytest.mark.parametrize(
    "schedule, field",
    [
        (cosine(), "`Cosine.decay_steps` is Fraction(value=1.0)"),
        (
            fo.WarmupStableDecay(peak_value=1.0, decay_steps=5),
            "`WarmupStableDecay.stable_steps` is None",
        ),
        (fo.Cooldown(fo.Constant(1.0), decay_steps=5), "`Cooldown.start_at` is None"),
        (
            fo.Sequence((cosine(), fo.Constant(0.0))),
            "`Cosine.decay_steps` is Fraction(value=1.0)",
        ),
        (
            fo.PiecewiseConstant(
                init_value=1.0,
                boundaries_and_scales=(fo.Boundary(fo.Fraction(0.5), 0.5),),
            ),
            "`Boundary.step` is Fraction(value=0.5)",
        ),
    ],
    ids=lambda x: type(x).__name__,
)
def test_a_run_of_unknown_length(schedule, field):
    message = re.escape(f"{field}, which depends on the length of the run.")
    for use in (lambda: schedule(3), schedule.phases, schedule.describe):
        with pytest.raises(ValueError, match=message):
            use()


@pytest.mark.parametrize(
    "schedule, message",
    [
        (
            fo.Cosine(peak_value=1.0, warmup_steps=50, decay_steps=400),
            "`Cosine` takes 400 updates, but the run has 100: warmup 0-50, decay "
            "50-400.",
        ),
        (
            fo.Sequence((fo.Phase(fo.Constant(1.0), steps=90), cosine(decay_steps=20))),
            "`Sequence` takes 110 updates, but the run has 100: 0 constant 0-90, 1 "
            "decay 90-110.",
        ),
        (
            fo.WarmupStableDecay(peak_value=1.0, warmup_steps=60, decay_steps=70),
            "`WarmupStableDecay.warmup_steps` = 60 and `WarmupStableDecay.decay_steps` "
            "= 70 overlap in a run of 100 updates.",
        ),
        (
            fo.Cooldown(fo.Constant(1.0), decay_steps=101),
            "`Cooldown.decay_steps` = 101 is longer than the run of 100 updates.",
        ),
        (
            fo.Cooldown(fo.Constant(1.0), start_at=95, decay_steps=10),
            "`Cooldown` takes 105 updates, but the run has 100: constant 0-95, "
            "cooldown 95-105.",
        ),
        (
            cosine(warmup_steps=fo.Fraction(0.5), decay_steps=fo.Fraction(0.5)),
            "`Cosine.decay_steps` must be greater than `Cosine.warmup_steps`, got 50 "
            "and 50. It includes the warmup. The values are those of "
            "`Cosine.warmup_steps` = Fraction(value=0.5), `Cosine.decay_steps` = "
            "Fraction(value=0.5) in a run of 100 updates.",
        ),
        (
            cosine(decay_steps=fo.Fraction(0.001)),
            "`Cosine.decay_steps` must be at least 1, got 0. The values are those of "
            "`Cosine.decay_steps` = Fraction(value=0.001) in a run of 100 updates.",
        ),
    ],
    ids=lambda x: type(x).__name__,
)
def test_phases_fit_into_the_run(schedule, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        schedule.resolve(100)


@pytest.mark.parametrize(
    "make, message",
    [
        (
            lambda: fo.Sequence((fo.Constant(0.5), cosine(decay_steps=3))),
            "`Sequence.schedules[0]` must have an end, got Constant(value=0.5). Set "
            "its duration: `Phase(Constant(...), steps=...)`.",
        ),
        (
            lambda: fo.Sequence(()),
            "`Sequence.schedules` must have at least one schedule, got ().",
        ),
        (
            lambda: fo.SGDR(cosine_kwargs=()),
            "`SGDR.cosine_kwargs` must have at least one `Cosine`, got ().",
        ),
        (
            lambda: fo.Phase(cosine(warmup_steps=2, decay_steps=9), steps=5),
            "`Phase.steps` = 5 is shorter than `Cosine`, which takes 9 updates: warmup "
            "0-2, decay 2-9.",
        ),
        (
            lambda: fo.PiecewiseConstant(
                init_value=1.0,
                boundaries_and_scales=(fo.Boundary(5, 0.5), fo.Boundary(5, 0.5)),
            ),
            "`PiecewiseConstant.boundaries_and_scales[1].step` must be greater than "
            "`PiecewiseConstant.boundaries_and_scales[0].step`, got 5 and 5.",
        ),
        (
            lambda: fo.LinearOnecycle(transition_steps=1, peak_value=1.0),
            "`LinearOnecycle.transition_steps` = 1 leaves no update for the fall: ",
        ),
        (
            lambda: fo.LinearOnecycle(
                transition_steps=9, peak_value=1.0, pct_start=0.5, pct_final=0.4
            ),
            "`LinearOnecycle.pct_final` must be greater than "
            "`LinearOnecycle.pct_start`, got 0.4 and 0.5",
        ),
    ],
)
def test_phases_that_do_not_fit_together(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


def test_phase_holds_the_last_value():
    held = fo.Sequence((fo.Phase(cosine(decay_steps=3), steps=5), fo.Constant(2.0)))
    assert held.phases() == (("0 decay", 3), ("0 constant", 2), ("1 constant", None))
    np.testing.assert_allclose(held.values([3, 4, 5]), [0.0, 0.0, 2.0], atol=1e-7)


def test_lengths_of_a_users_schedule():
    class Ramp(fo.AbstractSchedule):
        steps: Any

        def __call__(self, count: Any) -> Any:
            return count / self.steps

    schedule = Ramp(fo.Fraction(0.5))
    assert schedule.resolve(8) == Ramp(4)
    assert dataclasses.replace(schedule, steps=4).resolve(8)(2) == 0.5


def durations():
    for name, kind in vars(fo).items():
        if inspect.isclass(kind) and issubclass(kind, fo.AbstractSchedule):
            if not inspect.isabstract(kind):
                for field in dataclasses.fields(kind):
                    if field.metadata.get("is_duration"):
                        yield pytest.param(kind, field.name, id=f"{name}.{field.name}")


@pytest.mark.parametrize("kind, name", [*durations()])
def test_a_fraction_of_no_steps_leaves_its_phase_out_or_is_refused(kind, name):
    required = [x for x in dataclasses.fields(kind) if x.default is dataclasses.MISSING]
    hints = get_type_hints(kind)
    fields: dict[str, Any] = {
        x.name: 5
        for x in required
        if x.metadata.get("is_duration") or hints[x.name] is int
    }
    fields |= {x.name: 0.5 for x in required if x.name not in fields}
    fields |= {"schedule": fo.Constant(0.5)} if "schedule" in fields else {}
    fields |= {"init_value": 0.25} if name == "warmup_steps" else {}
    given = kind(**fields | {name: fo.Fraction(0.001)})
    try:
        schedule = given.resolve(100)
    except ValueError as error:
        assert f"`{kind.__name__}.{name}` must be at least 1, got 0. " in str(error)
        assert "Fraction(value=0.001) in a run of 100 updates" in str(error)
        return
    assert getattr(schedule, name) == 0
    if name == "warmup_steps":
        peak = getattr(schedule, "peak_value", schedule.init_value)
        assert float(schedule(0)) == peak
