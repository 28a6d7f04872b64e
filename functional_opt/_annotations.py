"""Checks values against annotations, and describes annotations in words."""

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping
from types import NoneType, UnionType
from typing import Annotated, Any, get_args, get_origin, Literal, Union

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from annotated_types import Interval, Predicate
from beartype.door import is_bearable
from jax.core import Tracer

from ._fields import as_integer, as_number


@dataclasses.dataclass(frozen=True)
class Named:
    """The name of a type in signatures, and its description in sentences."""

    name: str
    words: str


def converted(value: Any, annotation: Any) -> Any:
    """Converts integers of NumPy and JAX to int, and ints to float, as annotated."""
    if isinstance(value, int | float) and type(value) in (bool, float):
        return value
    kinds = alternatives(annotation)
    if int in kinds:
        return as_integer(value)
    return as_number(value) if float in kinds else value


def fits(value: Any, annotation: Any) -> bool:
    if isinstance(value, bool):  # A bool is an instance of int.
        return any(x in (bool, Any, object) for x in alternatives(annotation))
    if isinstance(value, type):  # A class is callable, but is not a valid function.
        kinds = alternatives(annotation)
        return any(x in (Any, object, type) or get_origin(x) is type for x in kinds)
    return any(_fits_kind(value, kind) for kind in alternatives(annotation))


def _fits_kind(value: Any, kind: Any) -> bool:
    """Checks every item; beartype would check one, drawn with the global `random`."""
    origin, items = get_origin(kind), get_args(kind)
    if not items or not isinstance(origin, type) or not issubclass(origin, Collection):
        return is_bearable(value, kind)
    if not isinstance(value, origin):
        return False
    if isinstance(value, Mapping):
        return all(fits(k, items[0]) and fits(value[k], items[1]) for k in value)
    if not issubclass(origin, tuple) or items[1:] == (...,):
        return all(fits(item, items[0]) for item in value)
    return len(items) == len(value) and all(map(fits, value, items))


def broken_limit(value: Any, annotation: Any) -> str | None:
    """The first limit that a value of the right type exceeds, in words."""
    if isinstance(value, Tracer):
        return None
    # The array is converted to float first: under `jax.jit` even the comparison of a
    # concrete array is traced.
    is_array = eqx.is_array(value) and value.ndim == 0 and _is_real(value)
    known = float(value) if is_array else value
    is_number = any(x is float or _is_scalar(x) for x in alternatives(annotation))
    if is_number and isinstance(known, float) and not math.isfinite(known):
        return "finite"
    broken = (x for x in _limits(value, annotation) if not holds(x, known))
    return next(map(limit_text, broken), None)


def _is_real(value: Any) -> bool:
    return jnp.issubdtype(value.dtype, jnp.floating)


def _limits(value: Any, annotation: Any) -> list[Any]:
    """The limits of an annotation on values of this type."""
    if get_origin(annotation) is Annotated:
        metadata = annotation.__metadata__
        return [x for x in metadata if isinstance(x, Interval | Predicate)]
    arms = get_args(annotation) if is_union(annotation) else ()
    return [x for arm in arms if fits(value, arm) for x in _limits(value, arm)]


def holds(limit: Interval | Predicate, value: Any) -> bool:
    if isinstance(limit, Predicate):
        return limit.func(value)
    return (
        (limit.ge is None or value >= limit.ge)
        and (limit.gt is None or value > limit.gt)
        and (limit.le is None or value <= limit.le)
        and (limit.lt is None or value < limit.lt)
    )


def limit_text(limit: Interval | Predicate) -> str:
    if isinstance(limit, Predicate):
        return limit.func.__name__
    low = f"[{limit.ge}" if limit.ge is not None else f"({limit.gt}"
    high = f"{limit.le}]" if limit.le is not None else f"{limit.lt})"
    if "None" not in low + high:
        return f"in {low}, {high}"
    bounds = {
        "at least": limit.ge,
        "greater than": limit.gt,
        "at most": limit.le,
        "less than": limit.lt,
    }
    return " and ".join(f"{word} {x}" for word, x in bounds.items() if x is not None)


def is_union(annotation: Any) -> bool:
    return get_origin(annotation) in (Union, UnionType)


def alternatives(annotation: Any) -> list[Any]:
    """The members of a union, without `Annotated`."""
    if get_origin(annotation) is Annotated:
        return alternatives(get_args(annotation)[0])
    if is_union(annotation):
        return [x for arm in get_args(annotation) for x in alternatives(arm)]
    return [annotation]


def describe(annotation: Any) -> str:
    """Describes in words the values that an annotation allows."""
    *others, last = dict.fromkeys(_words(annotation))
    return f"{', '.join(others)} or {last}" if others else last


def _words(annotation: Any) -> list[str]:
    if get_origin(annotation) is Annotated:
        names = [x.words for x in annotation.__metadata__ if isinstance(x, Named)]
        return names or _words(get_args(annotation)[0])
    if is_union(annotation):
        return [x for arm in get_args(annotation) for x in _words(arm)]
    if get_origin(annotation) is Literal:
        return [repr(value) for value in get_args(annotation)]
    return [_name(annotation)]


def _name(annotation: Any) -> str:
    if annotation is NoneType:
        return "None"
    if get_origin(annotation) is Callable or annotation is Callable:
        return "a function"
    if _is_scalar(annotation):
        return f"a 0-d {annotation.dtype.__name__.lower()} array"
    if get_args(annotation)[1:] == (...,):
        return f"a tuple, each item {describe(get_args(annotation)[0])}"
    name = getattr(annotation, "__name__", str(annotation))
    if name.startswith("Abstract"):
        name = name.removeprefix("Abstract").lower()
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def _is_scalar(annotation: Any) -> bool:
    """Whether this is a jaxtyping annotation of a 0-d array."""
    return getattr(annotation, "dim_str", None) == ""


_MOST_BITS = 512  # of an integer in an error; Python refuses to print very large ones


def shown(value: Any) -> str:
    """A value on one line, and arrays by their dtype and shape."""
    is_array = isinstance(value, np.ndarray) or eqx.is_array(value)
    if (is_array and value.ndim == 0) or isinstance(value, str):
        text = repr(value)
    elif isinstance(value, int) and value.bit_length() > _MOST_BITS:
        text = f"an integer of {value.bit_length()} bits"
    elif isinstance(value, type):
        text = f"the class `{value.__name__}`"
    else:
        text = eqx.tree_pformat(value, width=10_000)
    text = " ".join(text.split())
    return text if len(text) <= 160 else f"{text[:150]}..."
