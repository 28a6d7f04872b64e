"""Finds the keys and values in the text of a TOML or JSON document.

It reads no values and checks nothing: that is left to `tomllib` and `json`, which do
not report positions. Both formats have tables and lists in brackets. TOML adds dotted
keys, lines, and headers that open the table of the lines below them. The text of an
invalid document gives some spans too, and the walk always moves on.
"""

import json
import re
import tomllib
from collections.abc import Iterator

from .errors import Location
from .spans import Span


# The quantifiers are possessive, so that no text causes backtracking.
SPACE = re.compile(r"(?:[ \t\r]++|#[^\n]*+)*+")
SPACE_AND_LINES = re.compile(r"(?:\s++|#[^\n]*+)*+")
STRING = (
    r'"""(?:[^"\\]++|\\[\s\S]|"(?!""))*+"{3,5}+'
    r"|'''(?:[^']++|'(?!''))*+'{3,5}+"
    r'|"(?:[^"\\\n]++|\\.)*+"'
    r"|'[^'\n]*+'"
)
KEY = re.compile(rf"(?:{STRING}|[^\s\[\]{{}}=,.:#\"']++)")
DOT = re.compile(r"[ \t]*+\.[ \t]*+")
# A date of TOML may have a space before the time of day.
VALUE = re.compile(rf"(?:{STRING}|[^\s\[\]{{}}=,#\"']++(?: \d[\d:.Z+-]*+)?)")


class Scanner:
    """A walk through a text, with the tables and lists that are open.

    `_open` has the location of each, and the index of its current item if it is a list.
    In TOML the first one is the table of the last header.
    """

    def __init__(self, text: str, *, is_toml: bool) -> None:
        self._text = text
        self._is_toml = is_toml
        self._open: list[tuple[Location, int | None]] = [((), None)] if is_toml else []
        self._expects_key = is_toml
        self._location: Location = ()  # Of the value that is expected.
        self._lengths: dict[Location, int] = {}  # Of the lists that headers make.

    def spans(self) -> Iterator[Span]:
        """All keys and values, in the order of the text."""
        offset = self._skip(0)
        while offset < len(self._text):
            end = offset + 1
            for span in self._at(offset):
                end = max(end, span.end)
                yield span
            offset = self._skip(end)

    def _skip(self, offset: int) -> int:
        """The end of spaces and comments; of empty lines too, but between TOML keys."""
        space = SPACE if self._at_line_level else SPACE_AND_LINES
        found = space.match(self._text, offset)
        return offset if found is None else found.end()

    @property
    def _at_line_level(self) -> bool:
        return self._is_toml and len(self._open) == 1

    def _at(self, offset: int) -> Iterator[Span]:
        """The spans that begin at an offset; afterwards, what is expected next."""
        match self._text[offset]:
            case "\n":
                self._expects_key = True
            case "=" | ":":
                self._expects_key = False
            case ",":
                self._next_item()
            case "]" | "}" if not self._at_line_level:
                self._open = self._open[:-1]
            case "[" if self._at_line_level and self._expects_key:
                yield from self._header(offset)
            case "[" | "{" as bracket:
                yield Span(self._location, False, offset, offset + 1)
                self._open_bracket(bracket)
            case _ if self._expects_key:
                yield from self._key(offset)
            case _:
                if found := VALUE.match(self._text, offset):
                    yield Span(self._location, False, offset, found.end())

    def _open_bracket(self, bracket: str) -> None:
        index = 0 if bracket == "[" else None
        self._open.append((self._location, index))
        self._expects_key = index is None
        self._location += () if index is None else (index,)

    def _next_item(self) -> None:
        if self._open:
            location, index = self._open[-1]
            self._expects_key = index is None
            if index is not None:
                self._open[-1] = location, index + 1
                self._location = (*location, index + 1)

    def _key(self, offset: int) -> Iterator[Span]:
        """A key and, in TOML, those after its dots."""
        location = self._open[-1][0] if self._open else ()
        for key, start, end in self._keys(offset):
            location += (key,)
            yield Span(location, True, start, end)
        self._location = location
        self._expects_key = False

    def _keys(self, offset: int) -> Iterator[tuple[str, int, int]]:
        while found := KEY.match(self._text, offset):
            yield self._key_of(found[0]), offset, found.end()
            dot = DOT.match(self._text, found.end()) if self._is_toml else None
            if dot is None:
                return
            offset = dot.end()

    def _key_of(self, text: str) -> str:
        if text[0] not in "\"'":
            return text
        if "\\" not in text:
            return text[1:-1]
        try:
            if self._is_toml:
                return next(iter(tomllib.loads(f"{text} = 0")))
            return json.loads(text)
        except ValueError:
            return text

    def _header(self, offset: int) -> Iterator[Span]:
        """`[a.b]` opens a table, `[[a.b]]` one more item of a list."""
        is_list = self._text.startswith("[[", offset)
        keys = list(self._keys(self._skip(offset + 1 + is_list)))
        location: Location = ()
        end = offset + 1
        for number, (key, start, end) in enumerate(keys, start=1):
            location += (key,)
            yield Span(location, True, start, end)
            if is_list and number == len(keys):
                self._lengths[location] = self._lengths.get(location, 0) + 1
            if location in self._lengths:
                location += (self._lengths[location] - 1,)
        closing = self._text[end : end + 1 + is_list]
        yield Span(location, False, offset, end + closing.count("]"))
        self._open = [(location, None)]
        self._expects_key = False
