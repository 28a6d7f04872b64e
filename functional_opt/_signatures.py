"""Signatures with short types, for `help` and editors."""

import inspect
from collections.abc import Callable
from types import NoneType
from typing import Annotated, Any, ForwardRef, get_args, get_origin, Literal, TypeVar

import jax
import numpy as np
from typing_extensions import TypeAliasType

from ._annotations import is_union, Named


class _Shown(str):
    """The name of a type, shown without quotes in signatures."""

    __slots__ = ()
    __repr__ = str.__str__


def any_shown_as(annotation: Any) -> Any:
    """An alias of `Any` for type checkers, with the name of the type for readers."""
    return TypeAliasType(name_of_type(annotation), Any)  # pyright: ignore[reportGeneralTypeIssues]


def readable(signature: inspect.Signature) -> inspect.Signature:
    """The same signature with short types."""
    parameters = [
        x.replace(annotation=_shown(x.annotation))
        for x in signature.parameters.values()
    ]
    returned = _shown(signature.return_annotation)
    return signature.replace(parameters=parameters, return_annotation=returned)


F = TypeVar("F", bound=Callable[..., Any])


def shown_short(function: F) -> F:
    """Shows short types for a function without `typed`, which runs in every step."""
    vars(function)["__signature__"] = readable(inspect.signature(function))
    return function


def _shown(annotation: Any) -> Any:
    if annotation is inspect.Parameter.empty:
        return annotation
    return _Shown(name_of_type(annotation))


# Types with a familiar name that differs from their `__name__`.
_NAMES = (
    (None, "None"),
    (NoneType, "None"),
    (np.dtype, "DTypeLike"),
    (jax.typing.ArrayLike, "ArrayLike"),
)


def name_of_type(annotation: Any) -> str:
    for plain, name in _NAMES:
        if annotation == plain:
            return name
    if isinstance(annotation, str):
        return annotation
    if isinstance(annotation, ForwardRef):
        return annotation.__forward_arg__
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        names = [x.name for x in annotation.__metadata__ if isinstance(x, Named)]
        return names[0] if names else name_of_type(arguments[0])
    if is_union(annotation):
        return " | ".join(dict.fromkeys(map(name_of_type, arguments)))
    if origin is Literal:
        return f"Literal[{', '.join(map(repr, arguments))}]"
    if origin is not None and arguments and origin is not Callable:
        inner = ["..." if x is ... else name_of_type(x) for x in arguments]
        return f"{name_of_type(origin)}[{', '.join(inner)}]"
    if hasattr(annotation, "dim_str"):
        return "Array"
    return getattr(annotation, "__name__", str(annotation))
