import dataclasses
from typing import Annotated

import functional_opt as fo
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from annotated_types import Interval
from jaxtyping import Array, Float


CONFIGS = [
    fo.Adam(b2=0.95),
    fo.AdamW(mu_dtype="bfloat16", weight_decay=0.1),
    fo.SGD(momentum=0.9),
    fo.Lion(b1=0.95),
    fo.Constant(0.1),
    fo.Linear(init_value=0.1, end_value=0.0, transition_steps=5),
    fo.Cosine(peak_value=0.1, warmup_steps=2, decay_steps=5),
    fo.Fraction(0.5),
    fo.Boundary(3, 0.5),
    fo.PiecewiseConstant(init_value=0.1, boundaries_and_scales=(fo.Boundary(3, 0.5),)),
    fo.SGDR(cosine_kwargs=(fo.Cosine(peak_value=0.1, decay_steps=5),)),
    fo.Sequence((fo.Phase(fo.Constant(0.1), steps=fo.Fraction(0.1)), fo.Constant(0.2))),
    fo.WarmupStableDecay(peak_value=0.1, decay_steps=fo.Fraction(0.2)),
    fo.Groups(
        (fo.Group(~fo.Where("norm"), optimizer=fo.Lion(), schedule_scale=0.5),),
        rest=fo.ScheduleFree(optimizer=fo.SGD()),
    ),
    fo.Recipe(
        optimizer=fo.AdamW(mask=fo.Where(min_ndim=2)),
        schedule=0.1,
        weight_decay=0.1,
        decay_where=fo.Where("weight"),
    ),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: type(config).__name__)
def test_is_a_value(config):
    leaves, structure = jax.tree.flatten(config)
    copy = jax.tree.unflatten(structure, leaves)
    assert copy == config and copy is not config
    assert hash(copy) == hash(config)
    assert all(type(leaf) is float for leaf in leaves)
    for leaf, other in enumerate(leaves):
        changed = [*leaves[:leaf], other + 0.25, *leaves[leaf + 1 :]]
        assert jax.tree.unflatten(structure, changed) != config
    for field in dataclasses.fields(config):
        with pytest.raises(AttributeError):
            setattr(config, field.name, None)


def test_static_fields_are_compared():
    assert fo.AdamW(mu_dtype=jnp.bfloat16) == fo.AdamW(mu_dtype="bfloat16")
    assert fo.AdamW(mu_dtype=jnp.bfloat16) != fo.AdamW()
    assert fo.AdamW(nesterov=True) != fo.AdamW()


@pytest.mark.parametrize(
    "value", [1, np.int32(1), np.float32(1), np.float64(1), np.array(1.0)]
)
def test_numbers_become_floats(value):
    stored = fo.Constant(value).value
    assert type(stored) is float and stored == 1.0


def test_arrays_stay():
    value = jnp.float32(0.5)
    assert fo.Constant(value).value is value
    schedule = fo.Linear(
        init_value=1,
        end_value=0,
        transition_steps=np.int64(3),  # pyright: ignore[reportArgumentType]
    )
    assert type(schedule.transition_steps) is int


@pytest.mark.parametrize(
    "kind, fields, error, message",
    [
        (
            fo.AdamW,
            dict(b1=1.5),
            ValueError,
            r"^`AdamW.b1` must be in \[0, 1\), got 1\.5\.$",
        ),
        (
            fo.AdamW,
            dict(b2=jnp.float32(1)),
            ValueError,
            r"^`AdamW.b2` must be in \[0, 1\), got Array\(1\.",
        ),
        (
            fo.Adam,
            dict(b1=float("nan")),
            ValueError,
            r"^`Adam.b1` must be finite, got nan\.$",
        ),
        (
            fo.Adam,
            dict(eps=jnp.float32(jnp.inf)),
            ValueError,
            r"^`Adam.eps` must be finite, got Array\(inf",
        ),
        (
            fo.Lion,
            dict(weight_decay=-1),
            ValueError,
            r"^`Lion.weight_decay` must be at least 0, got -1\.0\.$",
        ),
        (
            fo.Adam,
            dict(b1="0.9"),
            TypeError,
            r"^`Adam.b1` must be a float or a 0-d float array, got '0\.9'\. "
            r"Did you mean `0\.9`\?$",
        ),
        (
            fo.Adam,
            dict(b1=jnp.ones(2)),
            TypeError,
            r"^`Adam.b1` must be a float or a 0-d float array, got f32\[2\]\.",
        ),
        (
            fo.SGD,
            dict(momentum=True),
            TypeError,
            r"^`SGD.momentum` must be a float, a 0-d float array or None, got True\.$",
        ),
        (
            fo.SGD,
            dict(nesterov=1),
            TypeError,
            r"^`SGD.nesterov` must be a bool, got 1\.$",
        ),
        (
            fo.AdamW,
            dict(mask=3),
            TypeError,
            r"^`AdamW.mask` must be a Where, an AllOf, an AnyOf, a Not, a function or "
            r"None, got 3\.$",
        ),
        (
            fo.AdamW,
            dict(mu_dtype="float31"),
            TypeError,
            r"^`AdamW.mu_dtype` must be a dtype or None, got 'float31'\.$",
        ),
        (
            fo.AdamW,
            dict(mu_dtype="int32"),
            ValueError,
            r"^`AdamW.mu_dtype` must be floating, got dtype\('int32'\)\.$",
        ),
    ],
)
def test_wrong_fields(kind, fields, error, message):
    with pytest.raises(error, match=message):
        kind(**fields)


def test_changed_copies_are_checked():
    with pytest.raises(ValueError, match=r"`AdamW.b1` must be in \[0, 1\), got 2\.0\."):
        dataclasses.replace(fo.AdamW(), b1=2.0)


def test_made_under_a_trace():
    @jax.jit
    def made(b1):
        known = fo.Adam(b1=b1, b2=jnp.float32(0.5))
        assert fo.Adam(b2=outside).b2 is outside
        return known.b1 * 2

    outside = jnp.float32(0.25)
    assert made(0.25) == 0.5
    assert made(1.5) == 3.0  # Its value is not known, so its range is not checked.


def test_fields_of_users_are_checked():
    class Mine(fo.AbstractSchedule):
        plain: float
        ranged: Annotated[float, Interval(gt=1)] = 2.0
        bounded: Annotated[int, Interval(ge=0, le=3)] = 0
        array: Float[Array, "2"] | None = None

        def __call__(self, count):
            return self.plain

    assert Mine(0.5).plain == 0.5
    assert Mine(0.5, array=jnp.ones(2)).array is not None
    with pytest.raises(TypeError, match=r"`Mine.plain` must be a float, got 'x'"):
        Mine("x")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"`Mine.plain` must be finite, got inf"):
        Mine(float("inf"))
    with pytest.raises(ValueError, match=r"`Mine.ranged` must be greater than 1, got"):
        Mine(0.5, ranged=1.0)
    with pytest.raises(ValueError, match=r"`Mine.bounded` must be in \[0, 3\], got 4"):
        Mine(0.5, bounded=4)
    with pytest.raises(
        TypeError, match=r"`Mine.array` must be a Float\[.*2.*\] or None"
    ):
        Mine(0.5, array=jnp.ones(3))


def test_calls_are_checked():
    with pytest.raises(TypeError, match="schedule"):
        fo.Adam().build("0.1")  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="schedule"):
        fo.Adam().build(fo.SGD())  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="count"):
        fo.Constant(0.1)("3")  # pyright: ignore[reportArgumentType]
