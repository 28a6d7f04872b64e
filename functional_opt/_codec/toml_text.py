"""TOML: read by `tomllib`, written by `tomlkit`."""

import re
import tomllib
from collections.abc import Iterator
from typing import Any

import tomlkit

from .bounds import refuse, too_deep
from .errors import ConfigError, Location, location_text, shown
from .plain import leaves
from .scanner import Scanner
from .spans import check_bounds, line_and_column, Mistake, offset_of, Span


WORD = re.compile(r"[^\s,\]}#]+")
COMMA_BEFORE = re.compile(r",[ \t]*\Z")
HEADER = re.compile(r"^[ \t]*(\[{1,2}[^\]\n]+\]{1,2})", re.MULTILINE)


def parse(text: str) -> Any:
    check_bounds(spans(text))
    try:
        return tomllib.loads(text)
    except RecursionError:
        refuse(too_deep())
    except tomllib.TOMLDecodeError as error:
        # Its line and column are attributes only in newer versions of Python.
        message, _, where = str(error).removesuffix(")").rpartition(" (at ")
        line_column = [int(x) for x in re.findall(r"\d+", where)]
        offset = offset_of(text, *line_column) if line_column else len(text)
        raise _mistake(text, message, offset) from None
    except ValueError as error:  # A day that no calendar has, or too many digits.
        raise Mistake(str(error), 0) from None


def _mistake(text: str, message: str, offset: int) -> Mistake:
    """A description of a mistake that `tomllib` found, with a correction if known."""
    if message.startswith("Cannot ") and (twice := _given_twice(text, offset)):
        return twice
    if message == "Invalid value" and (
        word := re.compile(r"[^\s,\]}#]+").match(text, offset)
    ):
        return Mistake(f"{_invalid(word[0])}", offset, word.end())
    is_end = text[offset : offset + 1] == "\n"
    if is_end and message.startswith("Illegal character"):
        return Mistake("the string does not end on its line", offset)
    if is_end and message.startswith("Invalid initial character"):
        return Mistake("a table in braces must be on one line", offset)
    if text[offset : offset + 1] == "}" and (
        comma := COMMA_BEFORE.search(text, 0, offset)
    ):
        return Mistake("TOML allows no comma before `}`", comma.start())
    return Mistake(message[:1].lower() + message[1:], offset)


def _invalid(word: str) -> str:
    if re.fullmatch(r"[+-]?\.\d.*", word):
        return (
            f"a number requires a digit before the point: {word.replace('.', '0.', 1)}"
        )
    if word.lower() in ("true", "false"):
        return f"TOML writes {word.lower()} in lower case"
    if word.lower() in ("none", "null", "nil", "~"):
        return 'TOML has no null; write "none"'
    return f"invalid value {shown(word)}; a string requires quotes"


def _given_twice(text: str, offset: int) -> Mistake | None:
    """The key on the line of an offset, if it was given before."""
    known: dict[Location, Span] = {}
    key = None
    mistake = None
    for span in spans(text):
        if span.start > offset:
            break
        if span.is_key:
            key = span
            known.setdefault(span.location, span)
        elif key is not None and known.get(span.location, key) is not key:
            first, _ = line_and_column(text, known[span.location].start)
            name = location_text(span.location)
            said = f"{name}: the key is given twice, first on line {first}"
            mistake = Mistake(said, key.start, key.end)
    if mistake is None or "\n" in text[mistake.start : offset]:
        return None
    return mistake


def spans(text: str) -> Iterator[Span]:
    return Scanner(text, is_toml=True).spans()


def first_header(text: str) -> str | None:
    found = HEADER.search(text)
    return None if found is None else found[1]


def write(data: Any) -> str:
    if problems := [
        (location_text(location), "TOML has no null; use YAML or JSON")
        for location, value in leaves(data)
        if value is None
    ]:
        raise ConfigError(problems)
    return tomlkit.dumps(data)
