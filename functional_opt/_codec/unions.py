"""One place for several types: what a value is, says which of them is read."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Union

from pydantic import (
    BeforeValidator,
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
from .problems import MARK, nearest, refusal


EXPECTED = (
    ("boolean", "a valid boolean"),
    ("integer", "a valid integer"),
    ("number", "a valid number"),
    ("text", "a valid string"),
    ("list", "a list"),
    ("table", "a table"),
    ("none", NONE),
)


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

    def read(value: Any, validate: Callable[[Any], Any]) -> Any:
        try:
            return validate(value)
        except ValidationError as error:
            raise nearest(error) from None

    union = Annotated[Union[tuple(wires)], Field(union_mode="left_to_right")]  # noqa: UP007
    return Annotated[union, WrapValidator(read)]


def union_wire(
    wires: Mapping[str, Any], nouns: Mapping[str, str], *, has_word: bool
) -> Any:
    """One wire for each sort of data that a place takes.

    **Arguments:**

    - `wires`: by sort: boolean, integer, number, text, list, table, array or none.
    - `nouns`: what is expected of a sort, where there is more to say than of all.
    - `has_word`: whether a word stands for None.
    """
    if len(wires) == 1 and "none" not in wires:
        (wire,) = wires.values()
        return wire
    wires = dict(wires)
    if "none" in wires and has_word:
        wires["none"] = WORD_FOR_NONE
    if "integer" in wires and (number := wires.get("number")) is not None:
        wires["number"] = Annotated[number, NotWhole()]

    def sort_of(value: Any) -> str | None:
        if has_word and isinstance(value, str) and value == NONE:
            return "none" if "none" in wires else "text"
        return next((sort for sort in _sorts_of(value) if sort in wires), None)

    def check(value: Any) -> Any:
        if sort_of(value) is None:
            text = f"expected {_expected(wires, nouns)}, got {shown(value)}"
            raise refusal(((), text))
        return value

    return Annotated[tagged(wires, sort_of), BeforeValidator(check)]


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
            return ("array", "table") if is_array else ("table", "array")
    return ()


def _expected(wires: Mapping[str, Any], nouns: Mapping[str, str]) -> str:
    """What a place takes, in words."""
    known = {**dict(EXPECTED), **nouns}
    return " or ".join(noun for sort, noun in known.items() if sort in wires)
