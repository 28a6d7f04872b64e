"""The fields of a module: leaves of its pytree, or parts of its structure."""

import dataclasses
import operator
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer


# A converter takes `Any`, so that the import hook of jaxtyping, which checks the
# arguments of `__init__`, leaves the fields to `check_fields` and its messages. Fields
# name it `convert`, since pyright takes the argument of a `converter` for the type of
# the field.
def as_number(value: Any) -> Any:
    """Makes ints and NumPy's numbers floats, so that equal numbers are equal leaves."""
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    if isinstance(value, bool) or not isinstance(value, int | np.integer | np.floating):
        return value
    try:
        return float(value)
    except OverflowError:  # It is refused with the name of its field.
        return value


def as_integer(value: Any) -> Any:
    """Converts the integers of NumPy and JAX, and `Steps`, to Python ints."""
    if isinstance(value, bool | np.bool | Tracer) or not hasattr(value, "__index__"):
        return value
    try:
        return operator.index(value)
    except TypeError:
        return value  # An array that is not a scalar, or not of integers.


def as_dtype(value: Any) -> Any:
    """Makes names and scalar types dtypes, so that equal dtypes are equal fields."""
    try:
        return value if value is None else jnp.dtype(value)
    except TypeError:
        return value  # For `check_fields` to refuse: it knows the field.


def number(*, default: Any = dataclasses.MISSING) -> Any:
    """A leaf of the pytree: it may be traced, batched and differentiated."""
    return eqx.field(default=default, converter=as_number)


def setting(
    *,
    default: Any = dataclasses.MISSING,
    convert: Callable[[Any], Any] = as_integer,
) -> Any:
    """A part of the pytree's structure: a change of it recompiles."""
    return eqx.field(default=default, static=True, converter=convert)


def part(
    *,
    default: Any = dataclasses.MISSING,
    convert: Callable[[Any], Any] = as_number,
) -> Any:
    """A module itself, a tuple of them, or a number in place of one."""
    return eqx.field(default=default, converter=convert)


def duration(*, default: Any = dataclasses.MISSING) -> Any:
    """A duration in updates. `None` stands for what the rest of the run leaves."""
    return eqx.field(
        default=default,
        static=True,
        converter=as_integer,
        metadata={"is_duration": True},
    )
