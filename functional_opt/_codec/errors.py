"""The error of a document: every mistake, with its position."""

import datetime
import difflib
import json
import re
from collections.abc import Iterable, Mapping
from itertools import zip_longest
from typing import Any, NamedTuple


# The keys and indices that lead to a value in a document.
Location = tuple[str | int, ...]

BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
SHOWN = 80
MOST_WORDS = 24


class Position(NamedTuple):
    """The position of a mistake in a text.

    **Attributes:**

    - `source`: the file, or the argument of the command line.
    - `line`, `column`: counted from 1, in characters. A `line` of 0 means that the
        source has no lines.
    - `text`: the line itself.
    - `width`: the number of characters that the mistake takes on this line.
    """

    source: str
    line: int = 0
    column: int = 0
    text: str = ""
    width: int = 1

    def __str__(self) -> str:
        return f"{self.source}:{self.line}:{self.column}" if self.line else self.source

    def excerpt(self) -> str:
        """The line with the mistake marked below it, as compilers print it."""
        start = max(0, min(self.column - 1 - SHOWN // 2, len(self.text) - SHOWN))
        text = self.text[start : start + SHOWN].replace("\t", " ")
        indent = " " * (self.column - 1 - start)
        width = min(self.width, max(1, len(text) - len(indent)))
        number = f"{self.line:>5}"
        return f"{number} | {text}\n{' ' * len(number)} | {indent}{'^' * width}"


class ConfigError(ValueError):
    """A document that does not describe a module of the registry, with all mistakes.

    ```python
    >>> import functional_opt as fo
    >>> registry = fo.Registry.of(fo.AdamW, fo.Cosine)
    >>> try:
    ...     registry.decode({"optimizer": {"name": "adamwx"}, "clip_norm": -1})
    ... except fo.ConfigError as error:
    ...     print(error)
    optimizer.name: no optimizer is named 'adamwx'; did you mean 'adamw'? known: adamw
    schedule: required key of Recipe is missing
    clip_norm: must be greater than 0, got -1.0

    ```

    **Attributes:**

    - `problems`: pairs of a location in the document, such as `optimizer.b1`, and a
        text. The location of the whole document is empty.
    - `source`: the file that was read, if any.
    - `positions`: for each problem its source, line, column and the line itself, or
        `None` where it is unknown. Empty if no file was read.
    """

    def __init__(
        self,
        problems: Iterable[tuple[str, str]],
        source: str | None = None,
        positions: Iterable[Position | None] = (),
    ) -> None:
        self.problems = tuple(problems)
        self.source = source
        self.positions = tuple(positions)
        super().__init__(self.problems, source, self.positions)

    def __str__(self) -> str:
        pairs = zip_longest(self.problems, self.positions)
        return "\n".join(self._text(problem, position) for problem, position in pairs)

    def _text(self, problem: tuple[str, str], position: Position | None) -> str:
        source = self.source if position is None else str(position)
        line = ": ".join(filter(None, (source, *problem)))
        if position is None or not position.line:
            return line
        return f"{line}\n{position.excerpt()}"


def location_text(location: Iterable[str | int]) -> str:
    """A location as in a document: `parts[1].groups."a/.*".b2`."""
    return "".join(map(_step_text, location)).removeprefix(".")


def _step_text(step: str | int) -> str:
    if isinstance(step, int):
        return f"[{step}]"
    return f".{step if BARE_KEY.fullmatch(step) else json.dumps(step)}"


def shown(value: Any) -> str:
    """A value of a document, short enough for one line."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case datetime.date() | datetime.time():
            return f"the date or time {value.isoformat()}"
        case Mapping() if value:
            keys = ", ".join(str(key)[:SHOWN] for key in list(value)[:4])
            return f"a table with {keys}{', ...' if len(value) > 4 else ''}"
        case list() if len(value) > SHOWN or any(isinstance(x, dict) for x in value):
            return f"a list of {len(value):,} item{'s' if len(value) > 1 else ''}"
    try:
        text = repr(value)
    except ValueError:  # Python refuses to write integers of thousands of digits.
        return f"a {type(value).__name__} too long to show"
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


def suggestion(word: Any, words: Iterable[str]) -> str:
    """The closest valid word, and the valid words near it, or all if they are few."""
    words = list(words)
    text = word[:SHOWN].lower() if isinstance(word, str) else ""
    near = difflib.get_close_matches(text, words, n=1)
    meant = f"did you mean {near[0]!r}? " if near else ""
    return meant + known(words, text)


def known(words: Iterable[str], text: str = "") -> str:
    """The valid words; of many those that are nearest to a text."""
    words = list(words)
    if len(words) <= MOST_WORDS:
        return f"known: {', '.join(words) or 'none'}"
    near = difflib.get_close_matches(text, words, n=MOST_WORDS, cutoff=0)
    shown = [word for word in words if word in near] if text else words[:MOST_WORDS]
    return f"known: {', '.join(shown)} and {len(words) - len(shown)} more"
