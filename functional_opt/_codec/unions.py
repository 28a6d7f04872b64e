"""Locations that accept several types: the sort of the value selects which is read."""

from collections.abc import Callable, Collection, Mapping
from typing import Annotated, Any, Union

from pydantic import (
    Discriminator,
    Field,
    PlainValidator,
    Tag,
    ValidationError,
    WithJsonSchema,
    WrapValidator,
)

from .errors import shown
from .fields import NONE
from .problems import Info, MARK, nearest, Problem, Reading


# By sort, in the order in which errors list them.
NOUNS = (
    ("boolean", "true or false"),
    ("integer", "an integer"),
    ("number", "a number"),
    ("text", "a string"),
    ("list", "a list"),
    ("table", "a table"),
    ("none", repr(NONE)),
)

Hint = Callable[[Any, Reading], str | None]


def tagged(wires: Mapping[str, Any], tag_of: Callable[[Any], str | None]) -> Any:
    """One of several wires: the one whose tag a value has."""
    if len(wires) < 2:
        return next(iter(wires.values()), NOTHING)
    arms = tuple(Annotated[wire, Tag(MARK + tag)] for tag, wire in wires.items())
    return Annotated[
        Union[arms],  # noqa: UP007
        Discriminator(lambda value: MARK + str(tag_of(value))),
    ]


def first_of(wires: list[Any]) -> Any:
    """The first of several wires of one sort that reads a value."""
    if len(wires) == 1:
        return wires[0]

    def read(value: Any, validate: Callable[[Any], Any], info: Info) -> Any:
        try:
            return validate(value)
        except ValidationError as error:
            raise nearest(error, info.context) from None

    union = Annotated[Union[tuple(wires)], Field(union_mode="left_to_right")]  # noqa: UP007
    return Annotated[union, WrapValidator(read)]


def union_wire(
    wires: Mapping[str, Any],
    nouns: Mapping[str, str],
    *,
    has_word: bool,
    hint: Hint = lambda value, reading: None,
) -> Any:
    """One wire for each sort of data that a location accepts.

    **Arguments:**

    - `wires`: by sort: boolean, integer, number, text, list, table, array or none.
    - `nouns`: names of sorts that are more specific than the usual ones.
    - `has_word`: whether a word stands for `None`.
    - `hint`: suggests what to write in place of a value of another sort.
    """
    wires = dict(wires)
    if "none" in wires and has_word:
        wires["none"] = WORD_FOR_NONE
    if "integer" in wires and (number := wires.get("number")) is not None:
        wires["number"] = Annotated[number, NotWhole()]
    sorts = set(wires)

    def sort_of(value: Any) -> str | None:
        if has_word and isinstance(value, str) and value == NONE:
            return "none" if "none" in wires else "text"
        return next((sort for sort in _sorts_of(value) if sort in wires), None)

    def read(value: Any, validate: Callable[[Any], Any], info: Info) -> Any:
        reading = info.context
        if reading.is_full:
            return None
        if sort_of(value) is None:
            text = f"expected {expected(sorts, nouns)}, got {shown(value)}"
            meant = hint(value, reading)
            more = "" if meant is None else f"; write {meant}"
            raise reading.refusal(Problem((), text + more))
        return validate(value)

    return Annotated[tagged(wires, sort_of), WrapValidator(read)]


def expected(sorts: Collection[str], nouns: Mapping[str, str]) -> str:
    """The sorts of data that a location accepts, in words."""
    named = {**dict(NOUNS), **nouns}.items()
    return " or ".join(noun for sort, noun in named if sort in sorts)


NOTHING = Annotated[Any, WithJsonSchema({"not": {}})]


class NotWhole:
    """To JSON Schema an integer is a number too, but only one type may fit."""

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> Any:
        return {**handler(schema), "not": {"type": "integer"}}


WORD_FOR_NONE = Annotated[
    Any, PlainValidator(lambda _: None), WithJsonSchema({"enum": [None, NONE]})
]


def _sorts_of(value: Any) -> tuple[str, ...]:
    """The sorts that may read a value, the likeliest first."""
    match value:
        case None:
            return ("none",)
        case bool():
            return ("boolean",)
        case int():
            return ("integer", "number")
        case float():
            return ("number", "integer") if value.is_integer() else ("number",)
        case str():
            return ("text",)
        case list() | tuple():
            return ("list",)
        case dict():
            is_array = "array" in value and "name" not in value
            return ("array", "table") if is_array else ("table",)
    return ()
