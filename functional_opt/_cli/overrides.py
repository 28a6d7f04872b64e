"""`--set optimizer.b2=0.95`: changes of a document before it is decoded."""

import copy
import re
import tomllib
from collections.abc import Iterable
from typing import Any

from .._codec.errors import ConfigError, place_text, shown


Assignment = tuple[list[str], Any]


def assignment(text: str) -> Assignment:
    """The keys and the value of `key.key[0].key=value`.

    The keys are TOML's, and places as errors write them. The value is TOML, or else
    taken for a word. `ValueError` if there are no keys.
    """
    for found in re.finditer("=", text):  # A key in quotes can have one too.
        keys, value = text[: found.start()].strip(), text[found.end() :].strip()
        path = _keys(re.sub(r"\[(\d+)\]", r".\1", keys).removeprefix("."))
        if path:
            return path, _value(value)
    raise ValueError(f"expected KEY=VALUE, got {text!r}")


def _keys(text: str) -> list[str]:
    """The keys of a dotted key of TOML, none if it is no such key."""
    try:
        table: Any = tomllib.loads(f"{text} = 0")
    except tomllib.TOMLDecodeError:
        return []
    path = []
    while isinstance(table, dict) and len(table) == 1:
        ((key, table),) = table.items()
        path.append(key)
    return path if table == 0 else []


def _value(text: str) -> Any:
    try:
        table = tomllib.loads(f"value = {text}")
    except ValueError:
        return text
    return table["value"] if len(table) == 1 else text


def overridden(data: Any, assignments: Iterable[Assignment]) -> Any:
    """The document with other values at some places."""
    for path, value in assignments:
        data = _set(data, path, value, ())
    return data


def _set(data: Any, path: list[str], value: Any, above: tuple[str | int, ...]) -> Any:
    if not path:
        return value
    key, rest = path[0], path[1:]
    changed = copy.copy(data)
    if isinstance(data, dict):
        changed[key] = _set(data.get(key, {}), rest, value, (*above, key))
    elif isinstance(data, list) and key.isdecimal() and int(key) < len(data):
        index = int(key)
        changed[index] = _set(data[index], rest, value, (*above, index))
    else:
        text = f"has no {place_text([key])!r} to set, as it is {shown(data)}"
        raise ConfigError([(place_text(above), text)])
    return changed
