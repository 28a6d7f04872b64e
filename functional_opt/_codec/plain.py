"""Walks through plain data."""

from collections.abc import Iterator
from typing import Any

from .errors import Location


def leaves(data: Any, location: Location = ()) -> Iterator[tuple[Location, Any]]:
    """Each number, string, bool and `None` with its location."""
    match data:
        case dict():
            for key, value in data.items():
                yield from leaves(value, (*location, key))
        case list():
            for number, value in enumerate(data):
                yield from leaves(value, (*location, number))
        case _:
            yield location, data
