"""YAML 1.2: events from LibYAML, values by the core schema.

PyYAML's own loaders follow YAML 1.1, in which `1e-3` is a string and `off` is false,
and build a document before anyone can count its values. Of PyYAML only the events of
its C parser are used, which are the syntax and the positions.
https://yaml.org/spec/1.2.2/#103-core-schema
"""

import math
import re
from collections.abc import Iterator
from types import MappingProxyType
from typing import Any

import yaml

from .bounds import DEEPEST, MOST_VALUES, refuse, too_deep, too_many
from .decode import step_of, TableWithDuplicate
from .errors import Location
from .spans import Mistake, Span


CONSTANTS = MappingProxyType(
    {
        **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
        **dict.fromkeys(("true", "True", "TRUE"), True),
        **dict.fromkeys(("false", "False", "FALSE"), False),
        **dict.fromkeys((".nan", ".NaN", ".NAN"), math.nan),
        **{
            f"{sign}{x}": math.inf
            for sign in ("", "+")
            for x in (".inf", ".Inf", ".INF")
        },
        **{f"-{x}": -math.inf for x in (".inf", ".Inf", ".INF")},
    }
)
INTEGER = re.compile(r"[-+]?[0-9]++")
OCTAL = re.compile(r"0o[0-7]++")
HEXADECIMAL = re.compile(r"0x[0-9a-fA-F]++")
FLOAT = re.compile(r"[-+]?(?:\.[0-9]++|[0-9]++(?:\.[0-9]*+)?)(?:[eE][-+]?[0-9]++)?")
MERGE = "<<"
MEANINGS = MappingProxyType(
    {
        "expected key": "expected a key; check the indentation",
        "expected <document start>": "a file holds one document, and this follows it",
        "mapping values are not allowed in this context": "a second colon with a "
        "space; put a value with a colon in quotes, and a table on lines of its own",
    }
)


def parse(text: str) -> Any:
    return _Builder().build(_events(text))


def _events(text: str) -> Iterator[Any]:
    """The events of the only document in a text."""
    try:
        documents = 0
        for event in yaml.parse(text, Loader=yaml.CBaseLoader):
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    start = event.start_mark.index
                    said = "a file holds one document, and a second one begins here"
                    raise Mistake(said, start, start + 3)
            yield event
    except yaml.MarkedYAMLError as error:
        raise _mistake(error, text) from None
    except yaml.reader.ReaderError as error:
        # Its position counts bytes.
        start = max(0, text.find(chr(error.character)))
        raise Mistake(error.reason, start) from None
    except UnicodeEncodeError as error:
        raise Mistake("UTF-8 has no surrogates", error.start) from None


def _mistake(error: yaml.MarkedYAMLError, text: str) -> Mistake:
    mark = error.problem_mark or error.context_mark
    offset = len(text) if mark is None else min(mark.index, len(text))
    said = " ".join(str(error.problem or error.context).split())
    said = said.removeprefix("did not find ")
    found = text[offset : offset + 1]
    if said == "found unexpected end of stream" and error.context_mark is not None:
        return Mistake("the string does not end", error.context_mark.index)
    if found == "\t":
        said = "YAML does not allow tabs for indentation; use spaces"
    elif said == "expected key" and found in ("]", "}"):
        said = f"no bracket is open that `{found}` could close"
    elif said == "found character that cannot start any token":
        said = f"a value cannot begin with `{found}`; put it in quotes"
    return Mistake(MEANINGS.get(said, said), offset)


def scalar(text: str) -> Any:
    """The value of a plain scalar, by the core schema of YAML 1.2."""
    if text in CONSTANTS:
        return CONSTANTS[text]
    if INTEGER.fullmatch(text):
        return int(text)
    if OCTAL.fullmatch(text):
        return int(text[2:], 8)
    if HEXADECIMAL.fullmatch(text):
        return int(text, 16)
    return float(text) if FLOAT.fullmatch(text) else text


class _Builder:
    """Builds the data of a document from its events, within the bounds."""

    def __init__(self) -> None:
        self._open: list[_Collection] = []
        self._anchors: dict[str, Any] = {}
        self._count = 0
        self._root: Any = None

    def build(self, events: Iterator[Any]) -> Any:
        for event in events:
            if getattr(event, "tag", None) is not None:
                start, end = event.start_mark.index, event.end_mark.index
                said = f"tags are not allowed, got {event.tag}"
                raise Mistake(said, start, end)
            if isinstance(event, yaml.CollectionEndEvent):
                collection = self._open.pop()
                self._add(collection.data(), collection.event)
            elif isinstance(event, yaml.CollectionStartEvent):
                if len(self._open) >= DEEPEST:
                    refuse(too_deep())
                self._open.append(_Collection(event))
            elif isinstance(event, yaml.NodeEvent):
                self._add(self._leaf(event), event)
        return self._root

    def _leaf(self, event: Any) -> Any:
        if isinstance(event, yaml.AliasEvent):
            start, end = event.start_mark.index, event.end_mark.index
            if event.anchor not in self._anchors:
                raise Mistake(f"no anchor `&{event.anchor}` before here", start, end)
            return self._anchors[event.anchor]
        if not event.implicit[0]:
            return event.value
        try:
            return scalar(event.value)
        except ValueError as error:  # Python's limit of digits.
            raise Mistake(str(error), event.start_mark.index) from None

    def _add(self, value: Any, event: Any) -> None:
        """Adds a finished value to the innermost open collection."""
        self._count += 1
        if self._count > 2 * MOST_VALUES:  # Keys count here too.
            refuse(too_many())
        if event.anchor is not None and not isinstance(event, yaml.AliasEvent):
            self._anchors[event.anchor] = value
        if not self._open:
            self._root = value
        else:
            self._count += self._open[-1].add(value, event)


class _Collection:
    """A list or table that is being read."""

    def __init__(self, event: Any) -> None:
        self.event = event
        self._is_table = isinstance(event, yaml.MappingStartEvent)
        self._values: list[Any] = []  # Of a table, keys and values in turn.
        self._merged: list[tuple[str, Any]] = []
        self._merges = False

    def add(self, value: Any, event: Any) -> int:
        """Adds a value. Returns how many more a merge key has brought."""
        is_key = self._is_table and len(self._values) % 2 == 0
        if is_key and isinstance(value, dict | list):
            raise Mistake("a key must be a string", event.start_mark.index)
        self._values.append(value)
        if self._merges and not is_key:
            del self._values[-2:]
            self._merges = False
            before = len(self._merged)
            for pair in _pairs_to_merge(value, event):
                self._merged.append(pair)
                if len(self._merged) > MOST_VALUES:
                    refuse(too_many())
            return len(self._merged) - before
        is_plain = isinstance(event, yaml.ScalarEvent) and event.implicit[0]
        self._merges = is_key and is_plain and value == MERGE
        return 0

    def data(self) -> Any:
        if not self._is_table:
            return self._values
        pairs = list(zip(self._values[::2], self._values[1::2], strict=True))
        table = dict(pairs)
        for key, value in self._merged:  # The first one wins, and keys of its own do.
            table.setdefault(key, value)
        if len(dict(pairs)) == len(pairs):
            return table
        seen: set[Any] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        return TableWithDuplicate(list(table.items()), step_of(twice))


def _pairs_to_merge(value: Any, event: Any) -> Iterator[tuple[str, Any]]:
    tables = value if isinstance(value, list) else [value]
    for table in tables:
        if not isinstance(table, dict):
            start, end = event.start_mark.index, event.end_mark.index
            raise Mistake("`<<` merges tables, and this is not one", start, end)
        yield from table.items()


def write(data: Any) -> str:
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, width=2**16)


class _Dumper(yaml.SafeDumper):
    """Quotes each string that YAML 1.1 or 1.2 would take for something else."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


for pattern in (INTEGER, OCTAL, HEXADECIMAL, FLOAT):
    whole = re.compile(rf"(?:{pattern.pattern})\Z")
    _Dumper.add_implicit_resolver("tag:yaml.org,2002:float", whole, None)


def spans(text: str) -> Iterator[Span]:
    """All keys and values. What an alias or a merge key repeats is not among them."""
    path: list[tuple[Location, int | None]] = []
    location: Location = ()
    expects_key = False
    for event in _events(text):
        if isinstance(event, yaml.CollectionEndEvent):
            path.pop()
        elif isinstance(event, yaml.NodeEvent):
            start, end = event.start_mark.index, event.end_mark.index
            if expects_key:
                location = (*path[-1][0], str(getattr(event, "value", "")))
                yield Span(location, True, start, end)
                expects_key = False
                continue
            yield Span(location, False, start, end)
            if isinstance(event, yaml.CollectionStartEvent):
                is_table = isinstance(event, yaml.MappingStartEvent)
                path.append((location, None if is_table else -1))
        else:
            continue
        if path:
            parent, index = path[-1]
            expects_key = index is None
            if index is not None:
                path[-1] = parent, index + 1
                location = (*parent, index + 1)
