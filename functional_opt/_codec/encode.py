"""Encodes modules as plain data: tables, lists, numbers, words and bools."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from .._annotations import fits
from .._config import AbstractConfig
from .choices import bases_of, Choice, choice_of, root_choice
from .errors import ConfigError, known, Location, location_text, shown
from .fields import arms_of, Field, fields_of, is_module, is_text, items_of, NONE


def encode(kinds: tuple[type, ...], module: Any, kind: type | None) -> dict[str, Any]:
    """Returns the table that describes a module."""
    encoder = Encoder(kinds)
    data = encoder.table(module, root_choice(kinds, kind), ())
    if encoder.problems:
        raise ConfigError((location_text(at), text) for at, text in encoder.problems)
    return data


def plain_default(kinds: tuple[type, ...], value: Any, annotation: Any) -> Any:
    """Returns the plain data of a default, `None` if it has none."""
    encoder = Encoder(kinds)
    data = encoder.value(value, annotation, ())
    return None if encoder.problems else data


class Encoder:
    """Walks through a module and collects values that plain data cannot represent."""

    def __init__(self, kinds: tuple[type, ...]) -> None:
        self.problems: list[tuple[Location, str]] = []
        self._kinds = kinds

    def table(self, module: Any, choice: Choice, path: Location) -> Any:
        """Encodes a module where one of these classes is expected."""
        cls = type(module)
        if cls not in (*choice.options.values(), choice.default):
            in_files = choice.options or choice.default is not None
            if not (in_files or isinstance(module, AbstractConfig)):
                text = f"a `{cls.__name__}` exists in Python only"
                return self._refuse(path, text)
            options = known(choice.options, cls.__name__.lower())
            text = f"`{cls.__name__}` is not known here; {options}"
            return self._refuse(path, text)
        name = choice.name_of(cls)
        data = {} if name is None else {"name": name}
        for field in fields_of(cls):
            value = getattr(module, field.name)
            if not field.required and self._is_implied(value, field):
                continue
            data[field.name] = self.value(value, field.annotation, (*path, field.name))
        return data

    def value(self, value: Any, annotation: Any, path: Location) -> Any:
        """Encodes the value of a field with this annotation, or an item of a tuple."""
        choice = choice_of(bases_of(annotation), self._kinds)
        if is_module(type(value)) and type(value) not in choice.options.values():
            value = _number_of(value, annotation)
        if is_module(type(value)):
            return self.table(value, choice, path)
        match value:
            case None:
                return _none(annotation)
            case bool():
                return value
            case str():
                return str.__str__(value)  # It may be of an enumeration.
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
        return self._refuse(path, _why_not(value))

    def _is_implied(self, value: Any, field: Field) -> bool:
        """Whether to leave out a field that has its default: None, or no plain data."""
        if value is not field.default:
            return False
        encoder = Encoder(self._kinds)
        encoder.value(value, field.annotation, ())
        return value is None or bool(encoder.problems)

    def _refuse(self, path: Location, text: str) -> None:
        self.problems.append((path, text))


def _why_not(value: Any) -> str:
    """The error for a value that a file cannot represent."""
    match value:
        case Tracer():
            text = "a traced value has no number yet; encode outside of `jax.jit`"
        case jax.Array() | np.ndarray():
            text = f"only 0-d arrays fit in a file, this has shape {value.shape}"
        case np.dtype():
            text = "only dtypes in native byte order have a name"
        case _ if callable(value):
            text = (
                "a function exists in Python only; use a module of the registry or a "
                "rule such as `Where`"
            )
        case _:
            text = "a value of this type exists in Python only"
    return f"{text}; got {shown(value)}"


def _number_of(module: Any, annotation: Any) -> Any:
    """The single value from which a module was constructed, if it may replace it."""
    fields = fields_of(type(module))
    value = getattr(module, fields[0].name) if len(fields) == 1 else None
    return value if value is not None and fits(value, annotation) else module


def _none(annotation: Any) -> str | None:
    is_word = not any(is_text(arm) for arm, _ in arms_of(annotation))
    return NONE if is_word else None


def _is_named(dtype: np.dtype) -> bool:
    """Whether the name of a dtype is enough: it omits the byte order."""
    try:
        return jnp.dtype(dtype.name) == dtype
    except TypeError:
        return False


def _array(value: jax.Array) -> dict[str, Any]:
    data = {"array": value.item()}
    return data if value.weak_type else {**data, "dtype": value.dtype.name}


def _item_annotations(annotation: Any, value: tuple[Any, ...]) -> Iterator[Any]:
    """Yields the annotation of each item of a tuple."""
    for arm, _ in arms_of(annotation):
        items = items_of(arm) or ()
        if items[1:] == (...,):
            return iter(items[:1] * len(value))
        if len(items) == len(value):
            return iter(items)
    return iter([Any] * len(value))
