"""The `TypedDict` that pydantic holds a table to."""

from typing import Any

import typing_extensions
from pydantic import ConfigDict


# Pydantic refuses that of `typing` before Python 3.12. To pyright both are syntax.
TypedDict: Any = typing_extensions.TypedDict


def table(title: str, keys: dict[str, Any], summary: str, module: str) -> Any:
    """A strict table with these keys and no other."""
    wire = TypedDict(title, keys)
    wire.__doc__ = summary
    wire.__module__ = module
    wire.__pydantic_config__ = ConfigDict(extra="forbid", strict=True)
    return wire
