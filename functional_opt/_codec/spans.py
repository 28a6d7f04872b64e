"""The positions of the keys and values of a document in its text."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from .bounds import DEEPEST, MOST_VALUES, refuse, too_deep, too_many
from .errors import Location, Position
from .problems import About, Problem


class Mistake(Exception):
    """A text that is not a document of its format, from one offset to another."""

    def __init__(self, text: str, start: int, end: int | None = None) -> None:
        self.text = text
        self.start = start
        self.end = start + 1 if end is None else end
        super().__init__(text)


class Span(NamedTuple):
    """One key or value: its location in the document, and its part of the text."""

    location: Location
    is_key: bool
    start: int
    end: int


def check_bounds(spans: Iterable[Span]) -> None:
    """Refuses a text with too many values or levels, before it is parsed.

    The spans of a text that is not a document may be anything, but come to an end.
    """
    count = 0
    for span in spans:
        count += not span.is_key
        if count > MOST_VALUES:
            refuse(too_many())
        if len(span.location) > DEEPEST + 1:
            refuse(too_deep())


def located(
    problems: list[Problem], spans: Iterator[Span], text: str, source: str
) -> Iterator[tuple[Problem, Position | None]]:
    """Adds its position to each problem: of the closest key above, if not its own."""
    wanted = {x.location[:n] for x in problems for n in range(len(x.location) + 1)}
    found: dict[tuple[Location, bool], list[Span]] = {}
    for span in spans:
        if span.location in wanted:
            found.setdefault((span.location, span.is_key), []).append(span)
    for problem in problems:
        span = _span_of(problem, found)
        if span is None:
            yield problem, None
            continue
        if problem.about is About.KEY_GIVEN_TWICE:
            first = found[problem.location, True][0]
            line, _ = line_and_column(text, first.start)
            problem = problem._replace(text=f"{problem.text}, first on line {line}")
        yield problem, position(text, source, span.start, span.end)


def _span_of(
    problem: Problem, found: dict[tuple[Location, bool], list[Span]]
) -> Span | None:
    location = problem.location
    if problem.about is About.VALUE and (location, False) in found:
        return found[location, False][0]
    for length in range(len(location), 0, -1):
        for is_key in (True, False):
            if spans := found.get((location[:length], is_key)):
                return spans[-1 if length == len(location) else 0]
    return None


def position(text: str, source: str, start: int, end: int) -> Position:
    """The position of a part of a text, up to the end of its first line."""
    line, column = line_and_column(text, start)
    begin = start - column + 1
    stop = text.find("\n", start)
    whole = text[begin : stop if stop >= 0 else len(text)].rstrip("\r")
    width = min(end - start, len(whole) - column + 1)
    return Position(source, line, column, whole, max(1, width))


def line_and_column(text: str, offset: int) -> tuple[int, int]:
    """Both counted from 1."""
    begin = text.rfind("\n", 0, offset) + 1
    return text.count("\n", 0, offset) + 1, offset - begin + 1


def offset_of(text: str, line: int, column: int) -> int:
    """The offset of a line and a column, both counted from 1."""
    begin = 0
    for _ in range(line - 1):
        begin = text.find("\n", begin) + 1
    return begin + column - 1
