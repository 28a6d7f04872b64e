"""From modules to plain data: tables, lists, numbers, words and bools."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from .choices import bases_of, Choice, choice_of, root_choice
from .errors import ConfigError, place_text, shown
from .fields import arms_of, fields_of, is_module, is_text, items_of, NONE


Path = tuple[str | int, ...]


def encode(kinds: tuple[type, ...], module: Any, kind: type | None) -> dict[str, Any]:
    """The table that says a module."""
    encoder = Encoder(kinds)
    data = encoder.table(module, root_choice(kinds, kind), ())
    if encoder.problems:
        raise ConfigError((place_text(path), text) for path, text in encoder.problems)
    return data


def plain_default(kinds: tuple[type, ...], value: Any, annotation: Any) -> Any:
    """The plain data of a field's default; `None` also where there is none."""
    encoder = Encoder(kinds)
    data = encoder.value(value, annotation, ())
    return None if encoder.problems else data


class Encoder:
    """Walks through a module, and collects what has no plain data."""

    def __init__(self, kinds: tuple[type, ...]) -> None:
        self.problems: list[tuple[Path, str]] = []
        self._kinds = kinds

    def table(self, module: Any, choice: Choice, path: Path) -> Any:
        """A module at a place where these classes may be."""
        cls = type(module)
        if cls not in (*choice.options.values(), choice.default):
            known = ", ".join(choice.options) or "none"
            text = f"{cls.__name__} is no class that may be here; known: {known}"
            return self._refuse(path, text)
        name = choice.name_of(cls)
        data = {} if name is None else {"name": name}
        for field in fields_of(cls):
            value = getattr(module, field.name)
            if value is None and not field.required and field.default is None:
                continue
            data[field.name] = self.value(value, field.annotation, (*path, field.name))
        return data

    def value(self, value: Any, annotation: Any, path: Path) -> Any:
        """A value of a field with this annotation, or of an item of a tuple."""
        if is_module(type(value)):
            choice = choice_of(bases_of(annotation), self._kinds)
            return self.table(value, choice, path)
        match value:
            case None:
                return _none(annotation)
            case bool() | str():
                return value
            case int():
                return int(value)
            case float():
                return float(value)
            case np.dtype() if _is_named(value):
                return value.name
            case tuple():
                items = zip(value, _item_annotations(annotation, value), strict=True)
                return [
                    self.value(item, each, (*path, number))
                    for number, (item, each) in enumerate(items)
                ]
            case jax.Array() if value.shape == () and not isinstance(value, Tracer):
                return _array(value)
        return self._refuse(path, f"{shown(value)} has no plain data")

    def _refuse(self, path: Path, text: str) -> None:
        self.problems.append((path, text))


def _none(annotation: Any) -> str | None:
    is_word = not any(is_text(arm) for arm, _ in arms_of(annotation))
    return NONE if is_word else None


def _is_named(dtype: np.dtype) -> bool:
    """Whether its name says all of a dtype: not so of another byte order."""
    try:
        return jnp.dtype(dtype.name) == dtype
    except TypeError:
        return False


def _array(value: jax.Array) -> dict[str, Any]:
    data = {"array": value.item()}
    return data if value.weak_type else {**data, "dtype": value.dtype.name}


def _item_annotations(annotation: Any, value: tuple[Any, ...]) -> Iterator[Any]:
    """The annotation of each item of a tuple."""
    for arm, _ in arms_of(annotation):
        items = items_of(arm) or ()
        if items[1:] == (...,):
            return iter(items[:1] * len(value))
        if len(items) == len(value):
            return iter(items)
    return iter([Any] * len(value))
