"""JSON, by the standard library, but strictly: no `NaN`, and no key twice."""

import json
import math
import re
from collections.abc import Iterator
from typing import Any, NoReturn

from .bounds import refuse, too_deep
from .decode import TableWithDuplicate
from .errors import ConfigError, location_text
from .plain import leaves
from .scanner import Scanner
from .spans import check_bounds, Mistake, Span


COMMA_BEFORE = re.compile(r",\s*\Z")
LEADING_ZERO = re.compile(r"(?<![\w.+-])-?0\Z")
WORD = re.compile(r"[-\w.+]+")


def parse(text: str) -> Any:
    check_bounds(spans(text))

    def refuse_constant(word: str) -> NoReturn:
        (start, *_) = [x.start for x in spans(text) if text[x.start : x.end] == word]
        said = f"JSON cannot represent {word}; TOML and YAML can"
        raise Mistake(said, start, start + len(word))

    try:
        return json.loads(
            text, object_pairs_hook=_table, parse_constant=refuse_constant
        )
    except json.JSONDecodeError as error:
        raise _mistake(text, error) from None
    except RecursionError:
        refuse(too_deep())
    except ValueError as error:  # Python's limit of digits.
        raise Mistake(str(error), 0) from None


def _mistake(text: str, error: json.JSONDecodeError) -> Mistake:
    """A description of a mistake that `json` found, with a correction if known."""
    offset = error.pos
    found = text[offset : offset + 1]
    if not text.strip():
        return Mistake("the document is empty", 0)
    if not text[offset:].strip():
        return Mistake("the document ends before its last bracket is closed", offset)
    if error.msg.startswith("Unterminated string"):
        return Mistake("the string does not end", offset)
    if error.msg.startswith("Invalid control character"):
        return Mistake(f"a string cannot contain {found!r}; write an escape", offset)
    if found in ("}", "]") and (comma := COMMA_BEFORE.search(text, 0, offset)):
        return Mistake(f"JSON allows no comma before `{found}`", comma.start())
    if found == "," and re.match(r",\s*[]}]", text[offset:]):  # Python 3.13
        return Mistake("JSON allows no comma before the end of a list or table", offset)
    if found == "'":
        return Mistake("JSON strings require double quotes", offset)
    if found in ("#", "/"):
        return Mistake("JSON has no comments", offset)
    if found.isdecimal() and (zero := LEADING_ZERO.search(text, 0, offset)):
        return Mistake("a number cannot begin with 0 and a digit", zero.start(), offset)
    if word := WORD.match(text, offset):
        return Mistake(_word(word[0]), offset, word.end())
    if error.msg == "Extra data":
        return Mistake("a file holds one document, and this follows it", offset)
    return Mistake(error.msg.replace("Expecting", "expected"), offset)


def _word(word: str) -> str:
    if word.lower() in ("true", "false", "null"):
        return f"JSON writes {word.lower()} in lower case"
    if word == "None":
        return "JSON writes null for None"
    if re.match(r"[-+]?\.?\d", word):
        return f"invalid number {word}; JSON requires digits on both sides of a point"
    return f"invalid value {word}; strings and keys require double quotes"


def _table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) == len(pairs):
        return table
    seen: set[str] = set()
    twice = next(key for key, _ in pairs if key in seen or seen.add(key))
    return TableWithDuplicate(pairs, twice)


def spans(text: str) -> Iterator[Span]:
    return Scanner(text, is_toml=False).spans()


def write(data: Any) -> str:
    try:
        return json.dumps(data, indent=2, allow_nan=False) + "\n"
    except ValueError:
        said = "JSON cannot represent infinity; use TOML or YAML"
        raise ConfigError(
            (location_text(location), said)
            for location, value in leaves(data)
            if isinstance(value, float) and not math.isfinite(value)
        ) from None
