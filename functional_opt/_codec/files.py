"""Documents as text: TOML, YAML and JSON, by the suffix of a file."""

import io
import json
import os
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, NoReturn

import tomlkit
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from .decode import decode, Doubled
from .encode import encode
from .errors import ConfigError, place_text


class Format(NamedTuple):
    """How plain data becomes text, and text plain data."""

    parse: Callable[[str], Any]
    write: Callable[[Any], str]


def parse(text: str, format: str, source: str | None = None) -> Any:
    """The plain data of a text, or `ConfigError` that says where it is no such text."""
    try:
        data = FORMATS[format].parse(text)
    except ConfigError as error:
        raise ConfigError(error.problems, source) from None
    except RecursionError:
        raise ConfigError([("", "there are too many levels")], source) from None
    # An integer of thousands of digits, or a day that no calendar has.
    except ValueError as error:
        raise ConfigError([("", str(error))], source) from None
    if isinstance(data, dict) and isinstance(data.get("$schema"), str):
        del data["$schema"]  # How a JSON file tells an editor of its schema.
    return data


def write(data: Any, format: str) -> str:
    """Plain data as text that `parse` makes the same of."""
    return FORMATS[format].write(data)


def load(
    kinds: tuple[type, ...], path: str | os.PathLike[str], kind: type | None
) -> Any:
    """The module that a file says."""
    source = os.fspath(path)
    format = format_of(path)
    data = parse(decode_text(Path(path).read_bytes(), source), format, source)
    try:
        return decode(kinds, data, kind)
    except ConfigError as error:
        raise ConfigError(error.problems, source) from None


def decode_text(content: bytes, source: str | None = None) -> str:
    """The text of a file, which is to be UTF-8."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        found = content[error.start]
        text = f"expected UTF-8, got the byte {found:#04x} at {error.start}"
        raise ConfigError([("", text)], source) from None


def save(
    kinds: tuple[type, ...],
    module: Any,
    path: str | os.PathLike[str],
    kind: type | None,
) -> None:
    """Writes the file that says a module."""
    text = write(encode(kinds, module, kind), format_of(path))
    try:
        content = text.encode()
    except UnicodeEncodeError as error:
        wrong = error.object[error.start]
        raise ConfigError([("", f"{wrong!r} is nothing that UTF-8 has")]) from None
    Path(path).write_bytes(content)


def format_of(path: str | os.PathLike[str]) -> str:
    """The format that a path says by its suffix."""
    suffix = Path(path).suffix.lower().removeprefix(".")
    format = "yaml" if suffix == "yml" else suffix
    if format not in FORMATS:
        raise ValueError(
            f"A document is a file that ends in .toml, .yaml, .yml or .json, got "
            f"{os.fspath(path)!r}."
        )
    return format


def _fail(text: str, line: int | None = None, column: int | None = None) -> NoReturn:
    where = "" if line is None else f"line {line}, column {column}: "
    raise ConfigError([("", f"{where}{text}")])


def _parse_toml(text: str) -> Any:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        # Its line and column are attributes only in newer versions of Python.
        message, _, place = str(error).removesuffix(")").rpartition(" (at ")
        line, column = map(int, re.findall(r"\d+", place) or _end(text))
        _fail(message, line, column)


def _end(text: str) -> tuple[int, int]:
    """The line and the column after the last character."""
    lines = text.split("\n")
    return len(lines), len(lines[-1]) + 1


def _write_toml(data: Any) -> str:
    for path in _paths_of_none(data, ()):
        raise ConfigError([(place_text(path), "TOML has no word for None")])
    return tomlkit.dumps(data)


def _paths_of_none(data: Any, path: tuple[str | int, ...]) -> Any:
    if data is None:
        yield path
    elif isinstance(data, dict):
        for key, value in data.items():
            yield from _paths_of_none(value, (*path, key))
    elif isinstance(data, list):
        for number, value in enumerate(data):
            yield from _paths_of_none(value, (*path, number))


def _parse_yaml(text: str) -> Any:
    try:
        for event in _yaml().parse(text):
            if getattr(event, "tag", None) is not None:
                mark = event.start_mark
                _fail(
                    f"documents have no tags, got {event.tag}",
                    mark.line + 1,
                    mark.column + 1,
                )
        return _yaml().load(text)
    except MarkedYAMLError as error:
        problem = " ".join(str(error.problem or error.context).split())
        mark = error.problem_mark or error.context_mark
        _fail(problem, mark.line + 1, mark.column + 1)
    except YAMLError as error:
        _fail(" ".join(str(error).split()))


def _write_yaml(data: Any) -> str:
    stream = io.StringIO()
    _yaml().dump(data, stream)
    return stream.getvalue()


def _yaml() -> YAML:
    """YAML 1.2, in which 1e-3 is a number and `off` a word."""
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # pyright: ignore[reportAttributeAccessIssue]
    yaml.width = 2**16
    return yaml


def _parse_json(text: str) -> Any:
    try:
        return json.loads(
            text, object_pairs_hook=_object, parse_constant=_no_json_constant
        )
    except json.JSONDecodeError as error:
        _fail(error.msg, error.lineno, error.colno)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            return Doubled(pairs, key)
        seen.add(key)
    return dict(pairs)


def _no_json_constant(word: str) -> NoReturn:
    _fail(f"JSON has no word {word}")


def _write_json(data: Any) -> str:
    try:
        return json.dumps(data, indent=2, allow_nan=False) + "\n"
    except ValueError:
        _fail("JSON has no infinities; TOML and YAML have")


FORMATS = MappingProxyType(
    {
        "toml": Format(_parse_toml, _write_toml),
        "yaml": Format(_parse_yaml, _write_yaml),
        "json": Format(_parse_json, _write_json),
    }
)
