"""Checks the arguments of public functions and classes, with one-sentence errors."""

import difflib
import functools
import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, get_type_hints, TypeVar

from ._annotations import broken_limit, converted, describe, fits, shown
from ._remedies import remedy
from ._signatures import readable


_SELF = ("self", "cls")

F = TypeVar("F", bound=Callable[..., Any])


def typed(function: F) -> F:
    """Checks the arguments of a public function or class against its annotations."""
    if isinstance(function, type):
        function.__init__ = typed(function.__init__)
        return function  # pyright: ignore[reportReturnType]
    signature = readable(inspect.signature(function))

    @functools.cache
    def annotations() -> dict[str, Any]:
        # Evaluated at the first call: some names are defined after the function.
        hints = get_type_hints(function, include_extras=True)
        names = [x.name for x in signature.parameters.values() if not _is_many(x)]
        checked = [name for name in names if name in hints and name not in _SELF]
        return {name: hints[name] for name in checked}

    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError:
            raise wrong_call(_title(function, args), signature, args, kwargs) from None
        given = bound.arguments
        for name, annotation in annotations().items():
            if name not in given:
                continue
            # Values that fit are not converted: an array of counts stays on its device.
            if not fits(given[name], annotation):
                given[name] = converted(given[name], annotation)
            if (error := wrong_value(given[name], annotation)) is not None:
                raise type(error)(f"{_place(name, function, args)} {error}")
        return function(*bound.args, **bound.kwargs)

    vars(checked)["__signature__"] = signature
    return checked  # pyright: ignore[reportReturnType]


def _title(function: Callable[..., Any], args: tuple[Any, ...]) -> str:
    """The name of a function in errors: a method after the class of its object."""
    if "." not in function.__qualname__.rpartition("<locals>.")[2] or not args:
        return function.__name__
    owner = args[0] if isinstance(args[0], type) else type(args[0])
    is_init = function.__name__ == "__init__"
    return owner.__name__ if is_init else f"{owner.__name__}.{function.__name__}"


def _place(name: str, function: Callable[..., Any], args: tuple[Any, ...]) -> str:
    title = _title(function, args)
    is_init = function.__name__ == "__init__"
    return f"`{title}.{name}`" if is_init else f"`{name}` of `{title}`"


def wrong_value(value: Any, annotation: Any, hint: str = "") -> Exception | None:
    """The error for a value, to be prefixed with the name of its argument."""
    if not fits(value, annotation):
        hint = hint or remedy(value, annotation)
        text = f"must be {describe(annotation)}, got {shown(value)}. {hint}"
        return TypeError(text.strip())
    if (limit := broken_limit(value, annotation)) is not None:
        return ValueError(f"must be {limit}, got {shown(value)}.")
    return None


def wrong_call(
    title: str,
    signature: inspect.Signature,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    elsewhere: Mapping[str, str] = MappingProxyType({}),
    word: str = "argument",
) -> TypeError:
    """The error for arguments that do not match a signature.

    **Arguments:**

    - `title`: the name of the function or class.
    - `signature`, `args`, `kwargs`: the signature and the arguments.
    - `elsewhere`: for names that belong to another function, a sentence about it.
    - `word`: the word for an argument.
    """
    parameters = [x for x in signature.parameters.values() if not _is_many(x)]
    if parameters and parameters[0].name in _SELF:
        parameters, args = parameters[1:], args[1:]
    names = [x.name for x in parameters]
    by_position = [x.name for x in parameters if x.kind is not x.KEYWORD_ONLY]
    for name, value in kwargs.items():
        if name not in names:
            advice = elsewhere.get(name) or _nearest(name, names, word)
            return TypeError(
                f"`{title}` has no {word} `{name}`, got {shown(value)}. {advice}"
            )
    if len(args) > len(by_position):
        by_name = ", ".join(f"{name}=..." for name in names[: len(args)])
        advice = [f"Write `{title}({by_name})`.", *dict.fromkeys(elsewhere.values())]
        return TypeError(
            f"`{title}` takes {len(by_position) or 'no'} positional arguments, got "
            f"{len(args)}. {' '.join(advice)}"
        )
    for name in by_position[: len(args)]:
        if name in kwargs:
            return TypeError(
                f"`{title}` got `{name}` both by position and by keyword, "
                f"as {shown(kwargs[name])}."
            )
    missing = [
        f"`{x.name}`"
        for x in parameters
        if x.default is x.empty and x.name not in {*by_position[: len(args)], *kwargs}
    ]
    return TypeError(f"`{title}` requires {' and '.join(missing)}.")


def _nearest(name: str, names: list[str], word: str) -> str:
    if near := difflib.get_close_matches(name, names, n=1):
        return f"Did you mean `{near[0]}`?"
    known = ", ".join(f"`{x}`" for x in names)
    return f"Its {word}s are {known}." if known else f"It has no {word}s."


def _is_many(parameter: inspect.Parameter) -> bool:
    return parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
