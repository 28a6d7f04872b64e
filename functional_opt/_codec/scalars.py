"""How pydantic reads numbers, words and 0-d arrays."""

import functools
import math
from collections.abc import Callable
from types import MappingProxyType, NoneType
from typing import Annotated, Any, get_args, NotRequired

import jax
import jax.numpy as jnp
import numpy as np
from annotated_types import Interval, Predicate
from pydantic import (
    AfterValidator,
    BeforeValidator,
    PlainValidator,
    ValidationError,
    WithJsonSchema,
    WrapValidator,
)

from .._annotations import holds, limit_text
from .errors import shown, suggestion
from .problems import Info, Problem, reworded
from .tables import table


SORTS = MappingProxyType(
    {bool: "boolean", int: "integer", str: "text", NoneType: "none"}
)

DTYPES = (
    "bfloat16",
    "float16",
    "float32",
    "float64",
    "float8_e3m4",
    "float8_e4m3",
    "float8_e4m3b11fnuz",
    "float8_e4m3fn",
    "float8_e4m3fnuz",
    "float8_e5m2",
    "float8_e5m2fnuz",
    "float8_e8m0fnu",
    "float4_e2m1fn",
    "int4",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint4",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "bool",
    "complex64",
    "complex128",
)


Check = Callable[[Any, Info], Any]


def finite(value: float) -> bool:
    return math.isfinite(value)


FINITE = Predicate(finite)


def noun_of(sort: str, limits: tuple[Any, ...]) -> str:
    """A number in words, such as "a positive integer"."""
    intervals = [x for x in limits if isinstance(x, Interval)]
    if not intervals:
        return f"{'an' if sort == 'integer' else 'a'} {sort}"
    limit = intervals[0]
    if limit == Interval(gt=0) or (limit == Interval(ge=1) and sort == "integer"):
        return f"a positive {sort}"
    if limit == Interval(ge=0):
        return f"a non-negative {sort}"
    return f"{'an' if sort == 'integer' else 'a'} {sort} {limit_text(limit)}"


def number_wire(limits: tuple[Any, ...]) -> Any:
    return Annotated[float, *_within(limits, {"type": "number"})]


def integer_wire(limits: tuple[Any, ...]) -> Any:
    """As in JSON Schema, 1e5 is an integer."""
    limits = tuple(limit for limit in limits if limit is not FINITE)
    checks = _within(limits, {"type": "integer"})
    return Annotated[int, BeforeValidator(_as_int), *checks]


def _as_int(value: Any) -> Any:
    is_whole = isinstance(value, float) and value.is_integer()
    return int(value) if is_whole else value


def _within(limits: tuple[Any, ...], schema: dict[str, Any]) -> list[Any]:
    """The checks of limits, and the schema that lets editors check them too."""
    bounds = {
        word: bound
        for limit in limits
        if isinstance(limit, Interval)
        for word, bound in (
            ("minimum", limit.ge),
            ("exclusiveMinimum", limit.gt),
            ("maximum", limit.le),
            ("exclusiveMaximum", limit.lt),
        )
        if bound is not None
    }
    checks = [AfterValidator(check) for check in _checks(limits)]
    return [*checks, WithJsonSchema({**schema, **bounds})]


def _checks(limits: tuple[Any, ...]) -> list[Check]:
    return [_check_of(x) for x in limits if isinstance(x, Interval | Predicate)]


def _check_of(limit: Interval | Predicate) -> Check:
    def check(value: Any, info: Info) -> Any:
        number = value if isinstance(value, int) else float(value)
        if not holds(limit, number):
            text = f"must be {limit_text(limit)}, got {shown(number)}"
            raise info.context.refusal(Problem((), text))
        return value

    return check


def dtype_wire(limits: tuple[Any, ...]) -> Any:
    """A dtype by its name; the limits are `Predicate`s of it."""
    tests = [x.func for x in limits if isinstance(x, Predicate) and x is not FINITE]
    known = (name for name in DTYPES if hasattr(jnp, name))
    return _dtype_wire(
        tuple(x for x in known if all(test(jnp.dtype(x)) for test in tests))
    )


def _dtype_wire(names: tuple[str, ...]) -> Any:
    is_floating = all(jnp.issubdtype(name, jnp.floating) for name in names)
    noun = "a floating-point dtype" if is_floating else "a dtype"

    def read(value: Any, info: Info) -> np.dtype:
        if isinstance(value, str) and value in names:
            return jnp.dtype(value)
        text = f"expected {noun}, got {shown(value)}; {suggestion(value, names)}"
        raise info.context.refusal(Problem((), text))

    schema = WithJsonSchema({"type": "string", "enum": list(names)})
    return Annotated[Any, PlainValidator(read), schema]


def literal_wires(annotation: Any) -> list[tuple[str, Any]]:
    """The wires of a `Literal`: one for each sort of its values."""
    by_sort: dict[str, list[Any]] = {}
    for word in get_args(annotation):
        by_sort.setdefault(SORTS[type(word)], []).append(word)
    return [(sort, _literal_wire(words)) for sort, words in by_sort.items()]


def _literal_wire(words: list[Any]) -> Any:
    def read(value: Any, info: Info) -> Any:
        for word in words:
            if word == value and isinstance(word, bool) is isinstance(value, bool):
                return word
        text = f"{shown(value)} is not allowed; {suggestion(value, map(str, words))}"
        raise info.context.refusal(Problem((), text))

    return Annotated[Any, PlainValidator(read), WithJsonSchema({"enum": words})]


def array_wire(annotation: Any, limits: tuple[Any, ...]) -> Any:
    """`{array = 0.9, dtype = "float32"}`; weakly typed without a dtype."""
    wire = _array_table(tuple(name for name in DTYPES if name in annotation.dtypes))
    for check in _checks(limits):
        wire = Annotated[wire, AfterValidator(check)]
    return wire


class Array:
    """A 0-d array. Without a dtype it is weakly typed, as a number is."""


@functools.lru_cache(maxsize=64)
def _array_table(dtypes: tuple[str, ...]) -> Any:
    keys = {"array": float, "dtype": NotRequired[_dtype_wire(dtypes)]}
    wire = table("Array", keys, Array)
    return Annotated[wire, WrapValidator(_read_array)]


def _read_array(given: Any, validate: Callable[[Any], Any], info: Info) -> jax.Array:
    try:
        given = validate(given)
    except ValidationError as error:
        keys = ["array", "dtype"]
        raise reworded(error, "an array", keys, info.context) from None
    dtype = given.get("dtype")
    if dtype is None:
        return jnp.asarray(given["array"])
    if jax.dtypes.canonicalize_dtype(dtype) != dtype:
        text = f"{dtype.name} requires `jax.config.update('jax_enable_x64', True)`"
        raise info.context.refusal(Problem(("dtype",), text))
    with np.errstate(over="ignore"):
        return jnp.asarray(np.asarray(given["array"]).astype(dtype))


def no_wire() -> Any:
    """For fields with values that exist in Python only, such as functions."""

    def read(value: Any, info: Info) -> Any:
        text = f"this key can only be set in Python, got {shown(value)}"
        raise info.context.refusal(Problem((), text))

    return Annotated[Any, PlainValidator(read), WithJsonSchema({"not": {}})]
