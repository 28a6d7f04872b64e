"""Modules drawn by Hypothesis, from nothing but the annotations of their fields."""

import dataclasses
import inspect
import re
from types import NoneType, UnionType
from typing import Annotated, Any, get_args, get_origin, get_type_hints, Literal, Union

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
ARRAY_DTYPES = (None, "bfloat16", "float16", "float32")


@st.composite
def modules(draw, cls: type, kinds: tuple[type, ...], depth: int = 3) -> Any:
    """A module of a class; of any of `kinds` below an abstract class."""
    if inspect.isabstract(cls):
        cls = draw(st.sampled_from([kind for kind in kinds if issubclass(kind, cls)]))
    hints = get_type_hints(cls, include_extras=True)
    fields = {}
    for field in dataclasses.fields(cls):
        has_default = field.default is not dataclasses.MISSING
        if has_default and (depth == 0 or draw(st.integers(0, 3)) == 0):
            continue
        fields[field.name] = draw(values(hints[field.name], kinds, depth))
    try:
        return cls(**fields)
    except ValueError:  # What a class checks of its fields together.
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
    if isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
        return modules(annotation, kinds, depth - 1) if depth else st.nothing()
    if getattr(annotation, "dim_str", None) == "":
        return arrays(limits)
    return plain(annotation, limits)


def tuples(arguments: tuple[Any, ...], kinds: tuple[type, ...], depth: int) -> Any:
    if arguments[1:] == (...,):
        return st.lists(values(arguments[0], kinds, depth), max_size=3).map(tuple)
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
    dtype, value = draw(st.sampled_from(ARRAY_DTYPES)), draw(floats(limits))
    with np.errstate(over="ignore"):
        array = np.asarray(value).astype(dtype or jnp.float32)
    assume(np.isfinite(array) and within(limits)(float(array)))
    return jnp.asarray(array) if dtype else jnp.asarray(float(array))


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
