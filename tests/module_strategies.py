"""Modules drawn by Hypothesis, from nothing but the annotations of their fields."""

import dataclasses
import inspect
import re
from collections.abc import Sequence
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    ClassVar,
    get_args,
    get_origin,
    get_type_hints,
    Literal,
    Union,
)

import functional_opt as fo
import jax.numpy as jnp
import numpy as np
from annotated_types import Interval, Predicate
from hypothesis import assume, strategies as st


# Words that YAML or TOML could take for something else.
WORDS = (
    "none",
    "null",
    "~",
    "",
    "off",
    "1e3",
    "010",
    ".inf",
    "=",
    "a: b",
    "# a",
    "- a",
)
DTYPES = ("bfloat16", "float16", "float32", "float8_e4m3fn", "int8", "bool")
NUMBERS = (0.0, -0.0, 0.5, 0.75, 1.0, 1.5, 2.0**-14, 2.0**-24)  # Whole in any dtype.
ARRAY_DTYPES = (None, "bfloat16", "float16", "float32")


@st.composite
def modules(draw, cls: Any, kinds: tuple[type, ...], depth: int = 2) -> Any:
    """A module of a class; of any of `kinds` below an abstract class."""
    if inspect.isabstract(cls):
        cls = draw(st.sampled_from([kind for kind in kinds if issubclass(kind, cls)]))
    drawn = {
        name: values(annotation, kinds, depth)
        for name, annotation in get_type_hints(cls, include_extras=True).items()
        if annotation is not dataclasses.KW_ONLY
        and get_origin(annotation) is not ClassVar
    }
    required = {name for name in drawn if not hasattr(cls, name)}
    optional = {name for name in drawn if not drawn[name].is_empty} - required
    for attempt in range(5):
        # Defaults suffice in the depth, but some classes need any of their fields.
        more = {
            name
            for name in sorted(optional)
            if (depth > 0 or attempt > 0) and draw(st.integers(0, 3))
        }
        fields = {name: draw(drawn[name]) for name in drawn if name in required | more}
        try:
            return cls(**fields)
        except ValueError:  # What a class checks of its fields together.
            continue
    assume(False)


def values(
    annotation: Any, kinds: tuple[type, ...], depth: int, limits: tuple[Any, ...] = ()
) -> st.SearchStrategy[Any]:
    """What a field with this annotation may be."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return values(arguments[0], kinds, depth, (*limits, *annotation.__metadata__))
    if origin in (Union, UnionType):
        arms = [values(arm, kinds, depth, limits) for arm in arguments]
        return st.one_of(*arms)
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin is tuple:
        return tuples(arguments, kinds, depth)
    if origin is Sequence:
        return tuples((*arguments, ...), kinds, depth)
    if dataclasses.is_dataclass(annotation) or hasattr(annotation, "_fields"):
        is_deepest = depth <= 0 and has_parts(annotation)
        return st.nothing() if is_deepest else modules(annotation, kinds, depth - 1)
    if getattr(annotation, "dim_str", None) == "":
        return arrays(limits)
    return plain(annotation, limits)


def has_parts(annotation: Any) -> bool:
    """Whether modules may be inside what this annotation allows."""
    inner = get_args(annotation)
    if dataclasses.is_dataclass(annotation):
        inner = get_type_hints(annotation).values()
    return any(dataclasses.is_dataclass(x) or has_parts(x) for x in inner)


def tuples(arguments: tuple[Any, ...], kinds: tuple[type, ...], depth: int) -> Any:
    if arguments[1:] == (...,):
        items = values(arguments[0], kinds, depth)
        if items.is_empty:
            return st.just(())
        return st.lists(items, max_size=2).map(tuple)
    return st.tuples(*(values(item, kinds, depth) for item in arguments))


def plain(annotation: Any, limits: tuple[Any, ...]) -> st.SearchStrategy[Any]:
    simple = {
        NoneType: st.none(),
        bool: st.booleans(),
        str: st.sampled_from(WORDS) | st.text(max_size=8).map(re.escape),
        int: st.integers(min_value=0, max_value=50).filter(within(limits)),
        float: floats(limits),
        np.dtype: st.sampled_from(DTYPES).map(jnp.dtype).filter(within(limits)),
    }
    return simple.get(annotation, st.nothing())  # Functions have no plain data.


def floats(limits: tuple[Any, ...]) -> st.SearchStrategy[float]:
    bounds: dict[str, Any] = {}
    for limit in limits:
        if isinstance(limit, Interval):
            low, high = limit.ge, limit.le
            bounds |= {
                "min_value": low if low is not None else limit.gt,
                "max_value": high if high is not None else limit.lt,
                "exclude_min": limit.gt is not None,
                "exclude_max": limit.lt is not None,
            }
    return st.floats(**bounds, allow_nan=False, allow_infinity=False)


@st.composite
def arrays(draw, limits: tuple[Any, ...]) -> Any:
    dtype = draw(st.sampled_from(ARRAY_DTYPES))
    if dtype in (None, "float32"):
        drawn = st.floats(width=32, allow_nan=False, allow_infinity=False)
        value = draw(st.sampled_from(NUMBERS) | drawn)
    else:
        value = draw(st.sampled_from(NUMBERS))
    value = next((x for x in (value, 0.5, -0.5, 1.5) if within(limits)(x)), value)
    return jnp.asarray(value) if dtype is None else jnp.asarray(value, dtype)


def within(limits: tuple[Any, ...]) -> Any:
    def check(value: Any) -> bool:
        return all(
            limit.func(value)
            if isinstance(limit, Predicate)
            else (limit.ge is None or value >= limit.ge)
            and (limit.gt is None or value > limit.gt)
            and (limit.le is None or value <= limit.le)
            and (limit.lt is None or value < limit.lt)
            for limit in limits
            if isinstance(limit, Interval | Predicate)
        )

    return check


def kinds_of_the_library() -> tuple[type, ...]:
    """Every optimizer and schedule that `functional_opt` has."""
    bases = (fo.AbstractOptimizer, fo.AbstractSchedule)
    return tuple(
        value
        for value in vars(fo).values()
        if inspect.isclass(value)
        and issubclass(value, bases)
        and not inspect.isabstract(value)
    )
