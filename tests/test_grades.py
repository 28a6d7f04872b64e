"""How equal two trees are: `fo.testing.assert_equal`."""

import functional_opt as fo
import jax.numpy as jnp
import numpy as np
import pytest


DTYPES = ["float16", "bfloat16", "float32", "complex64"]


def grades(found, expected):
    """The grades that two arrays reach."""
    reached = []
    for grade in ("exact", "close", "bounded"):
        try:
            fo.testing.assert_equal(found, expected, grade)
        except AssertionError:
            continue
        reached.append(grade)
    return reached


def ulp(dtype):
    return float(jnp.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (3,), (2, 2)])
def test_close_is_four_units_in_the_last_place(dtype, shape):
    one = jnp.ones(shape, dtype)
    assert grades(one, one) == ["exact", "close", "bounded"]
    assert "close" in grades(one + 4 * ulp(dtype), one)
    assert "close" not in grades(one + 8 * ulp(dtype), one)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_entry_has_its_own_last_place(dtype):
    large, small = jnp.ones(4, dtype), jnp.full(4, 2**-8, dtype)
    found = jnp.concatenate([large, small + ulp(dtype)])
    assert grades(found, jnp.concatenate([large, small])) == ["bounded"]


def test_small_entries_count():
    expected = jnp.array([1.0, 1e-9])
    assert grades(jnp.array([1.0, 9e-7]), expected) == ["bounded"]
    assert grades(jnp.array([1.0, 2e-6]), expected) == []


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_narrow_leaves_are_bounded_by_a_unit_of_the_largest_entry(dtype):
    expected = jnp.array([1.75, 0.0], dtype)
    unit = jnp.array([0.0, ulp(dtype)], dtype)
    assert grades(expected + unit, expected) == ["bounded"]
    assert grades(expected + 2 * unit, expected) == []


def test_parts_of_a_complex_number_are_entries():
    expected = jnp.array([1 + 1e-6j], jnp.complex64)
    assert grades(expected + 1e-9j, expected) == ["bounded"]
    assert "close" in grades(expected + 2 * ulp("float32"), expected)


def test_no_grade_allows_what_is_not_finite():
    one, nan, infinite = (jnp.array([1.0, x]) for x in (1.0, jnp.nan, jnp.inf))
    assert grades(nan, nan) == grades(infinite, infinite) == grades(one, one)
    assert grades(nan, one) == grades(one, nan) == []
    assert grades(infinite, -infinite) == grades(infinite, nan) == []


def test_no_grade_allows_another_number_type_or_shape():
    one = np.ones(2, np.float32)
    for other in (one[:1], one.astype(np.float16), one.astype(np.int32)):
        assert grades(other, one) == []
    assert grades(np.array([1, 2]), np.array([1, 3])) == []


def test_zeros_of_either_sign_are_not_exact():
    assert grades(jnp.array([0.0]), jnp.array([-0.0])) == ["close", "bounded"]


def test_numbers_below_the_smallest_normal_one():
    zero = np.array([0.0])
    assert grades(np.array([1e-323]), zero) == ["close"]
    assert grades(np.array([1e-300]), zero) == []


def test_an_error_names_the_entry():
    message = r"\['a'\]: 4\.0 instead of 5\.0 at \[1, 0\], apart by 1, "
    with pytest.raises(AssertionError, match=message):
        fo.testing.assert_equal(
            {"a": jnp.array([[1.0], [4.0]])}, {"a": jnp.array([[1.0], [5.0]])}, "close"
        )
