"""From plain data to modules."""

from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError

from .errors import ConfigError, place_text
from .problems import problems_of
from .wires import adapter_of


DEEPEST = 64
MOST_VALUES = 100_000

Path = tuple[str | int, ...]


def decode(kinds: tuple[type, ...], data: Any, kind: type | None) -> Any:
    """The module that a document says."""
    problems = list(_structural_problems(data))
    if problems:
        raise ConfigError(problems)
    try:
        return adapter_of(kinds, kind).validate_python(data)
    except ValidationError as error:
        raise ConfigError(problems_of(error)) from None


class Doubled(dict[str, Any]):
    """A table in which a key was given twice, which a format's reader has found."""

    def __init__(self, pairs: list[tuple[str, Any]], key: str) -> None:
        super().__init__(pairs)
        self.key = key


def _structural_problems(data: Any) -> Iterator[tuple[str, str]]:
    """What no document may have, whatever it says.

    A value that is shared counts as often as it is found, as does one inside itself.
    """
    waiting: list[tuple[Path, Any]] = [((), data)]
    found = 1
    while waiting:
        path, value = waiting.pop()
        if not isinstance(value, dict | list | tuple):
            continue
        found += len(value)
        if found > MOST_VALUES:
            yield "", f"there are more than {MOST_VALUES:,} values"
            return
        if len(path) > DEEPEST:
            yield place_text(path[:3]), f"there are more than {DEEPEST} levels"
            return
        if isinstance(value, dict):
            yield from _key_problems(path, value)
            waiting += [((*path, str(key)), x) for key, x in value.items()]
        else:
            waiting += [((*path, number), x) for number, x in enumerate(value)]


def _key_problems(path: Path, table: dict[Any, Any]) -> Iterator[tuple[str, str]]:
    if isinstance(table, Doubled):
        yield place_text((*path, table.key)), "the key is given twice"
    for key in table:
        if not isinstance(key, str):
            yield place_text(path), f"expected a word for a key, got {key!r}"
