"""What every module of the library is: frozen, checked at construction, a pytree."""

import dataclasses
import functools
import math
from types import NoneType, UnionType
from typing import Annotated, Any, get_args, get_origin, get_type_hints, Union

import equinox as eqx
import jax
import numpy as np
from annotated_types import Interval
from beartype.door import is_bearable
from jaxtyping import Array, Float


def _as_number(value: Any) -> Any:
    """Makes ints and NumPy's floats floats, so that equal numbers are equal leaves."""
    if isinstance(value, int | np.integer | np.floating) and not isinstance(
        value, bool
    ):
        return float(value)
    return value


def _unchanged(value: Any) -> Any:
    return value


def number(default: Any = dataclasses.MISSING, **kwargs: Any) -> Any:
    """A field that is a leaf of the pytree: it may be traced, batched, differentiated."""
    return eqx.field(default=default, converter=_as_number, **kwargs)


def setting(
    default: Any = dataclasses.MISSING, converter: Any = _unchanged, **kwargs: Any
) -> Any:
    """A field that is part of the pytree's structure: a change of it recompiles."""
    return eqx.field(default=default, static=True, converter=converter, **kwargs)


def part(default: Any = dataclasses.MISSING, **kwargs: Any) -> Any:
    """A field that is a module itself, or a number in place of one."""
    return eqx.field(default=default, converter=_as_number, **kwargs)


class AbstractConfig(eqx.Module):
    """A module whose fields are checked against their annotations when it is made.

    A field annotated with `Annotated[..., Interval(ge=0, lt=1)]` is held to that
    range. Traced values have a type but no value yet: their range is not checked.
    """

    def __check_init__(self) -> None:
        for name, annotation in _annotations(type(self)).items():
            place = f"`{type(self).__name__}.{name}`"
            value = getattr(self, name)
            _check_type(place, value, annotation)
            _check_range(place, value, annotation)


@functools.cache
def _annotations(cls: type) -> dict[str, Any]:
    hints = get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def _check_type(place: str, value: Any, annotation: Any) -> None:
    if not is_bearable(value, annotation):
        raise TypeError(f"{place} must be {_describe(annotation)}, got {value!r}.")


def _check_range(place: str, value: Any, annotation: Any) -> None:
    if isinstance(value, jax.core.Tracer) or not _is_number(value):
        return
    if not math.isfinite(value):
        raise ValueError(f"{place} must be finite, got {value!r}.")
    for interval in _intervals(annotation):
        if not _contains(interval, value):
            raise ValueError(f"{place} must be {_text(interval)}, got {value!r}.")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) or eqx.is_inexact_array(value)


def _intervals(annotation: Any) -> list[Interval]:
    if get_origin(annotation) is Annotated:
        return [x for x in annotation.__metadata__ if isinstance(x, Interval)]
    return [x for arg in get_args(annotation) for x in _intervals(arg)]


def _contains(interval: Interval, value: Any) -> bool:
    return bool(
        (interval.ge is None or value >= interval.ge)
        and (interval.gt is None or value > interval.gt)
        and (interval.le is None or value <= interval.le)
        and (interval.lt is None or value < interval.lt)
    )


def _text(interval: Interval) -> str:
    low = f"[{interval.ge}" if interval.ge is not None else f"({interval.gt}"
    high = f"{interval.le}]" if interval.le is not None else f"{interval.lt})"
    if (interval.le, interval.lt) == (None, None):
        sign = "at least" if interval.ge is not None else "greater than"
        return f"{sign} {interval.ge if interval.ge is not None else interval.gt}"
    return f"in {low}, {high}"


def _describe(annotation: Any) -> str:
    """Says in words which values an annotation allows."""
    if get_origin(annotation) is Annotated:
        return _describe(get_args(annotation)[0])
    if get_args(annotation) and get_origin(annotation) in (Union, UnionType):
        return " or ".join(_describe(arg) for arg in get_args(annotation))
    if annotation is NoneType:
        return "None"
    if annotation == Float[Array, ""]:
        return "a 0-d float array"
    name = getattr(annotation, "__name__", str(annotation))
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"
