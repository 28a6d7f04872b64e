"""The `TypedDict` with which pydantic validates a table."""

from typing import Any

import typing_extensions
from pydantic import ConfigDict

from .fields import summary_of


# Pydantic refuses that of `typing` before Python 3.12. To pyright both are syntax.
TypedDict: Any = typing_extensions.TypedDict


def table(key: str, keys: dict[str, Any], cls: type) -> Any:
    """A strict table with exactly these keys.

    **Arguments:**

    - `key`: its name in a JSON Schema.
    - `keys`: the type of each key.
    - `cls`: the class whose name and docstring editors show.
    """
    wire = TypedDict(key, keys)
    wire.__doc__ = summary_of(cls)
    wire.__module__ = cls.__module__
    wire.__pydantic_config__ = ConfigDict(
        title=cls.__name__, extra="forbid", strict=True
    )
    return wire
