"""Field specifiers: for leaves of a module's pytree and for its static structure."""

import dataclasses
import operator
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer


# Converters accept `Any`, so that the import hook of jaxtyping, which checks the
# arguments of `__init__`, leaves the fields to `check_fields` and its messages. The
# parameter is called `convert`, because pyright infers the type of a field from the
# argument of a parameter called `converter`.
def as_number(value: Any) -> Any:
    """Converts ints and NumPy numbers to floats: equal numbers become equal leaves."""
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    if isinstance(value, bool) or not isinstance(value, int | np.integer | np.floating):
        return value
    try:
        return float(value)
    except OverflowError:  # `check_fields` raises an error with the field's name.
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
    """Converts names and scalar types to dtypes: equal dtypes become equal fields."""
    try:
        return value if value is None else jnp.dtype(value)
    except TypeError:
        return value  # `check_fields` raises a better error, with the field's name.


def number(*, default: Any = dataclasses.MISSING) -> Any:
    """A leaf of the pytree: it may be traced, batched and differentiated."""
    return eqx.field(default=default, converter=as_number)


def setting(
    *,
    default: Any = dataclasses.MISSING,
    convert: Callable[[Any], Any] = as_integer,
) -> Any:
    """A static field, part of the structure of the pytree: changing it recompiles."""
    return eqx.field(default=default, static=True, converter=convert)


def part(
    *,
    default: Any = dataclasses.MISSING,
    convert: Callable[[Any], Any] = as_number,
) -> Any:
    """A module, a tuple of modules, or a number in place of a module."""
    return eqx.field(default=default, converter=convert)


def duration(*, default: Any = dataclasses.MISSING) -> Any:
    """A duration. `None` stands for the rest of the run."""
    return eqx.field(
        default=default,
        static=True,
        converter=as_integer,
        metadata={"is_duration": True},
    )
