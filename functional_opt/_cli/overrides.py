"""`--set optimizer.b2=0.95`: changes of a document before it is decoded."""

import copy
import re
import tomllib
from collections.abc import Iterable
from typing import Any, NamedTuple

from .._codec.errors import ConfigError, Location, location_text, shown
from .._codec.files import Change, Document


class Assignment(NamedTuple):
    """A new value, the keys that lead to it, and the argument for it."""

    keys: tuple[str, ...]
    value: Any
    argument: str


def assignment(text: str) -> Assignment:
    """Reads `key.key[0].key=value`.

    Keys are written as in TOML, and as in the locations of errors. The value is TOML,
    or a string if it is not. Raises `ValueError` if there are no keys.
    """
    for found in re.finditer("=", text):  # A key in quotes can contain one too.
        keys, value = text[: found.start()].strip(), text[found.end() :].strip()
        path = _keys(re.sub(r"\[(\d+)\]", r".\1", keys).removeprefix("."))
        if path:
            return Assignment(path, _value(value), f"--set {text}")
    raise ValueError(f"expected KEY=VALUE, got {text!r}")


def _keys(text: str) -> tuple[str, ...]:
    """The parts of a dotted key of TOML, none if it is not one."""
    try:
        table: Any = tomllib.loads(f"{text} = 0")
    except (tomllib.TOMLDecodeError, RecursionError):
        return ()
    keys: tuple[str, ...] = ()
    while isinstance(table, dict) and len(table) == 1:
        ((key, table),) = table.items()
        keys += (key,)
    return keys if table == 0 else ()


def _value(text: str) -> Any:
    try:
        table = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    return table["value"] if len(table) == 1 else text


def changed(document: Document, assignments: Iterable[Assignment]) -> Document:
    """The document with new values."""
    for each in assignments:
        data, location = _set(document.data, each, ())
        change = Change(location, each.argument)
        document = document._replace(data=data, changes=(*document.changes, change))
    return document


def _set(data: Any, each: Assignment, above: Location) -> tuple[Any, Location]:
    """New data, and the location of what is new in it."""
    depth = len(above)
    if depth == len(each.keys):
        return each.value, above
    key = each.keys[depth]
    if isinstance(data, list):
        if not (key.isdecimal() and int(key) < len(data)):
            text = f"has no item {key}, it is {shown(data)}"
            raise ConfigError([(location_text(above), text)], each.argument)
        new: Any = copy.copy(data)
        step: Any = int(key)
        new[step], location = _set(data[step], each, (*above, step))
        return new, location
    if not isinstance(data, dict):  # A number or a word gives way to a table.
        new, _ = _set({}, each, above)
        return new, above
    value, location = _set(data.get(key), each, (*above, key))
    return {**data, key: value}, location if key in data else (*above, key)
