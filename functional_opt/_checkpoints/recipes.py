"""The recipe of a run in a checkpoint, and its changes since then."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from .._codec.errors import ConfigError
from .._config import AbstractConfig
from .._registry import Registry
from .._where import AbstractWhere


PYTHON = "python"  # the key for the name of a value that exists in Python only


def record_recipe(recipe: Any, registry: Registry | None) -> dict[str, Any]:
    """The entries of a manifest for a recipe; empty if there is none.

    These are its fields, and the document from which it can be built again.
    """
    if recipe is None:
        return {}
    record: dict[str, Any] = {"fields": dict(_fields(recipe, "recipe"))}
    if registry is not None:
        try:
            record["document"] = registry.encode(recipe)
        except ConfigError:  # It contains values of Python only.
            record["document"] = None
    return {"recipe": record}


def changes(manifest: Mapping[str, Any], recipe: Any) -> list[str]:
    """The changes of a recipe, field by field; empty if one of the two is unknown."""
    if recipe is None or "recipe" not in manifest:
        return []
    before, now = manifest["recipe"]["fields"], dict(_fields(recipe, "recipe"))
    found: list[str] = []
    replaced: list[str] = []  # Of another class, the fields say nothing more.
    for name in {**before, **now}:
        if any(name.startswith((f"{other}.", f"{other}[")) for other in replaced):
            continue
        if name in before and name in now and before[name] == now[name]:
            if _is_python(now[name]):
                found.append(f"{name} is {_text(now[name])}, and cannot be compared")
            continue
        was, is_now = _text(before.get(name, ...)), _text(now.get(name, ...))
        found.append(f"{name} was {was}, is {is_now}")
        replaced.append(name)
    return found


def _fields(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """The paths and values of all fields; for a module its class."""
    is_ours = isinstance(value, AbstractConfig | AbstractWhere)
    if is_ours and dataclasses.is_dataclass(value):  # a rule of users may be none
        yield path, {"class": type(value).__name__}
        start = "" if path == "recipe" else f"{path}."
        for field in dataclasses.fields(value):
            yield from _fields(getattr(value, field.name), f"{start}{field.name}")
    elif isinstance(value, tuple | list):
        yield path, {"items": len(value)}
        for number, item in enumerate(value):
            yield from _fields(item, f"{path}[{number}]")
    elif isinstance(value, Mapping):
        yield path, {"items": len(value)}
        for key, item in value.items():
            yield from _fields(item, f"{path}[{key!r}]")
    else:
        yield path, _plain(value)


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.dtype):
        return value.name
    is_number = isinstance(value, jax.Array | np.ndarray | np.generic)
    if is_number and not isinstance(value, Tracer) and value.ndim == 0:
        return value.item()
    name = getattr(value, "__qualname__", type(value).__qualname__)
    return {PYTHON: f"{getattr(value, '__module__', '?')}.{name}"}


def _is_python(value: Any) -> bool:
    return isinstance(value, Mapping) and PYTHON in value


def _text(value: Any) -> str:
    match value:
        case {"class": name}:
            return name
        case {"items": count}:
            return f"a sequence of {count}"
        case {"python": name}:
            return f"the Python value `{name}`"
        case _ if value is ...:
            return "not there"
    return repr(value)
