"""Pydantic's errors and those of the modules, in the words of the library."""

import re
from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from .errors import place_text, shown, suggestion
from .fields import fields_of


OURS = "functional_opt"

# Steps of a pydantic location that start so are no keys of the document: they say
# which of several types was read.
MARK = "\0"

Problem = tuple[tuple[str | int, ...], str]


def refusal(*problems: Problem) -> ValidationError:
    """An error to raise while pydantic validates: it collects those of all places."""
    details = [
        InitErrorDetails(
            type=PydanticCustomError(OURS, "{text}", {"text": text}),
            loc=path,
            input=None,
        )
        for path, text in problems
    ]
    return ValidationError.from_exception_data("", details)


def reworded(error: ValidationError, title: str, keys: list[str]) -> ValidationError:
    """The same errors, of a table with these keys, in our words."""
    return refusal(*((x["loc"], _text(x, title, keys)) for x in error.errors()))


def nearest(error: ValidationError) -> ValidationError:
    """The errors of that type of a union which the value is nearest to.

    It is the one whose errors are the deepest. The first step of their locations is
    what pydantic calls the type.
    """
    by_type: dict[str | int, list[Problem]] = {}
    for x in error.errors():
        problem = (x["loc"][1:], _text(x, "", []))
        by_type.setdefault(x["loc"][0], []).append(problem)
    found = max(by_type.values(), key=lambda xs: max(len(path) for path, _ in xs))
    return refusal(*found)


def problems_of(error: ValidationError) -> list[tuple[str, str]]:
    """The place and the text of each error."""
    return [(place_text(_keys(x["loc"])), x["msg"]) for x in error.errors()]


def _keys(path: Iterable[str | int]) -> list[str | int]:
    return [x for x in path if isinstance(x, int) or not x.startswith(MARK)]


def _text(error: Any, title: str, keys: list[str]) -> str:
    if error["type"] == OURS:
        return error["msg"]
    if error["type"] == "extra_forbidden":
        return f"unknown key of {title}; {suggestion(error['loc'][-1], keys)}"
    if error["type"] == "missing":
        is_item = isinstance(error["loc"][-1], int)
        return f"required {'item' if is_item else f'key of {title}'} is missing"
    expected = error["msg"].replace("Input should be", "expected")
    expected = expected.replace("Tuple should", "the list should")
    return f"{expected}, got {shown(error['input'])}"


def refusal_of_module(cls: type, error: Exception) -> ValidationError:
    """What a class says of values that are sound each on its own."""
    message = str(error).removesuffix(".")
    named = re.match(rf"`{cls.__name__}\.(\w+)` ", message)
    if named is None or named[1] not in {x.name for x in fields_of(cls)}:
        return refusal(((), message))
    return refusal(((named[1],), message[named.end() :]))
