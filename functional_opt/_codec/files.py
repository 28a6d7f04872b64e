"""Documents as text: TOML, YAML and JSON, by the suffix of a file."""

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from . import json_text, toml_text, yaml_text
from .bounds import check_size, LARGEST
from .decode import read
from .encode import encode
from .errors import ConfigError, Location, location_text, Position
from .notation import Notation
from .problems import Problem, Refused
from .spans import located, Mistake, position, Span


class Format(NamedTuple):
    """A text format: its parser, its writer, and the positions of keys and values."""

    parse: Callable[[str], Any]
    write: Callable[[Any], str]
    spans: Callable[[str], Iterator[Span]]


FORMATS = MappingProxyType(
    {
        "toml": Format(toml_text.parse, toml_text.write, toml_text.spans),
        "yaml": Format(yaml_text.parse, yaml_text.write, yaml_text.spans),
        "json": Format(json_text.parse, json_text.write, json_text.spans),
    }
)


class Change(NamedTuple):
    """A value that replaces another one of the document, and the argument for it."""

    location: Location
    argument: str


class Document(NamedTuple):
    """The plain data of a text, and the text itself for errors."""

    data: Any
    text: str
    format: str
    source: str
    changes: tuple[Change, ...] = ()

    def decode(self, kinds: tuple[type, ...], kind: type | None) -> Any:
        """Builds the module that the document describes."""
        is_toml = self.format == "toml"
        header = toml_text.first_header(self.text) if is_toml else None
        try:
            return read(kinds, self.data, kind, Notation(self.format, header))
        except Refused as refused:
            raise self.error(refused.problems) from None

    def error(self, problems: Iterable[Problem]) -> ConfigError:
        """The error of a document with these mistakes, each with its position."""
        problems = list(problems)
        spans = FORMATS[self.format].spans(self.text)
        found = located(problems, spans, self.text, self.source)
        pairs = [(problem, self._changed(problem) or at) for problem, at in found]
        return ConfigError(
            ((location_text(x.location), x.text) for x, _ in pairs),
            self.source,
            (at for _, at in pairs),
        )

    def _changed(self, problem: Problem) -> Position | None:
        """The last argument that has changed the value."""
        for change in reversed(self.changes):
            if problem.location[: len(change.location)] == change.location:
                return Position(change.argument)
        return None


def parse(text: str, format: str, source: str = "<text>") -> Document:
    """Reads a text, or raises `ConfigError` with the position of the mistake."""
    try:
        check_size(len(text))
        data = FORMATS[format].parse(text)
        if data is None:
            raise Mistake("the document is empty", 0)
    except Refused as refused:
        problems = [(location_text(x.location), x.text) for x in refused.problems]
        raise ConfigError(problems, source) from None
    except Mistake as mistake:
        at = position(text, source, mistake.start, mistake.end)
        raise ConfigError([("", mistake.text)], source, [at]) from None
    if isinstance(data, dict) and isinstance(data.get("$schema"), str):
        del data["$schema"]  # By this key, a JSON file names its schema to editors.
    return Document(data, text, format, source)


def write(data: Any, format: str) -> str:
    """Writes plain data as text from which `parse` reads the same data."""
    return FORMATS[format].write(data)


def load(
    kinds: tuple[type, ...], path: str | os.PathLike[str], kind: type | None
) -> Any:
    """Builds the module that a file describes."""
    source = os.fspath(path)
    format = format_of(path)
    with Path(path).open("rb") as file:
        content = file.read(LARGEST + 1)
    return parse(decode_text(content, source), format, source).decode(kinds, kind)


def decode_text(content: bytes, source: str) -> str:
    """The text of a file, which must be UTF-8."""
    try:
        check_size(len(content))
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = content[: error.start].decode()
        line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
        text = f"expected UTF-8, got the byte {content[error.start]:#04x}"
        raise ConfigError([("", text)], f"{source}:{line}:{column}") from None
    except Refused as refused:
        raise ConfigError([("", x.text) for x in refused.problems], source) from None


def save(
    kinds: tuple[type, ...],
    module: Any,
    path: str | os.PathLike[str],
    kind: type | None,
) -> None:
    """Writes the file that describes a module."""
    text = write(encode(kinds, module, kind), format_of(path))
    try:
        content = text.encode()
    except UnicodeEncodeError as error:
        wrong = error.object[error.start]
        raise ConfigError([("", f"UTF-8 cannot represent {wrong!r}")]) from None
    Path(path).write_bytes(content)


def format_of(path: str | os.PathLike[str]) -> str:
    """The format of a file, by its suffix."""
    suffix = Path(path).suffix.lower().removeprefix(".")
    format = "yaml" if suffix == "yml" else suffix
    if format not in FORMATS:
        raise ValueError(
            "The name of a document must end in .toml, .yaml, .yml or .json, got "
            f"{os.fspath(path)!r}."
        )
    return format
