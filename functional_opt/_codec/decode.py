"""Decodes plain data to modules."""

import itertools
import math
from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError

from .bounds import (
    DEEPEST,
    LONGEST,
    MOST_TABLES,
    MOST_VALUES,
    too_deep,
    too_long,
    too_many,
    too_many_tables,
)
from .errors import ConfigError, Location, location_text, shown
from .notation import Notation
from .problems import About, MOST_PROBLEMS, Problem, problems_of, Reading, Refused
from .wires import adapter_of


def decode(kinds: tuple[type, ...], data: Any, kind: type | None) -> Any:
    """Builds the module that plain data describes."""
    try:
        return read(kinds, data, kind, Notation())
    except Refused as refused:
        problems = [(location_text(x.location), x.text) for x in refused.problems]
        raise ConfigError(problems) from None


def read(
    kinds: tuple[type, ...], data: Any, kind: type | None, notation: Notation
) -> Any:
    """As `decode`, but raises `Refused`. Errors suggest text in this notation."""
    problems = list(itertools.islice(_structural_problems(data), MOST_PROBLEMS))
    if problems:
        raise Refused(problems)
    adapter = adapter_of(kinds, kind)
    reading = Reading(notation, MOST_PROBLEMS)
    try:
        module = adapter.validate_python(data, context=reading)
        if not reading.is_full:
            return module
        # A union had many mistakes by one of its types, but fits another.
        return adapter.validate_python(data, context=Reading(notation, math.inf))
    except ValidationError as error:
        problems = problems_of(error, notation)[:MOST_PROBLEMS]
        if reading.is_full:
            problems.append(Problem((), "there may be more mistakes than these"))
        raise Refused(problems) from None


class TableWithDuplicate(dict[str, Any]):
    """A table in which a key was given twice, as the reader of a format found."""

    def __init__(self, pairs: list[tuple[str, Any]], key: str) -> None:
        super().__init__(pairs)
        self.key = key


def _structural_problems(data: Any) -> Iterator[Problem]:
    """The problems of a document that do not depend on its classes.

    A shared value counts every time it is reached, so that cyclic values exceed the
    bounds.
    """
    waiting: list[tuple[Location, Any]] = [((), data)]
    found, tables = 1, 0
    while waiting:
        location, value = waiting.pop()
        if isinstance(value, str) and len(value) > LONGEST:
            yield Problem(location, too_long())
        if not isinstance(value, dict | list | tuple):
            continue
        found += len(value)
        tables += isinstance(value, dict)
        if found > MOST_VALUES or tables > MOST_TABLES:
            is_tables = found <= MOST_VALUES
            yield Problem((), too_many_tables() if is_tables else too_many())
            return
        if len(location) > DEEPEST:
            yield Problem(location[:3], too_deep())
            return
        if isinstance(value, dict):
            yield from _key_problems(location, value)
            waiting += [((*location, step_of(key)), x) for key, x in value.items()]
        else:
            waiting += [((*location, number), x) for number, x in enumerate(value)]


def _key_problems(location: Location, table: dict[Any, Any]) -> Iterator[Problem]:
    if isinstance(table, TableWithDuplicate):
        about = About.KEY_GIVEN_TWICE
        yield Problem((*location, table.key), "the key is given twice", about)
    for key in table:
        if not isinstance(key, str):
            text = f"a key must be a string, got {shown(key)}"
            yield Problem((*location, step_of(key)), text, About.KEY)


def step_of(key: Any) -> str:
    """A key in a location, of whatever type it is."""
    return key if isinstance(key, str) else shown(key)
