"""The fields of a module: their types, defaults and meanings."""

import dataclasses
import functools
import inspect
import re
import sys
from collections.abc import Mapping, Sequence
from types import MappingProxyType, NoneType
from typing import (
    Annotated,
    Any,
    get_args,
    get_origin,
    get_type_hints,
    Literal,
    NamedTuple,
)

import jax

from .._annotations import is_union


NONE = "none"  # Stands for None, for which TOML has no word.

ARGUMENT = re.compile(r"^- ((?:`\w+`,\s+)*`\w+`): (.*(?:\n(?: +.*)?)*)", re.MULTILINE)
# The same in Google's style, which Optax writes.
SECTION = re.compile(r"^Args:\n((?:(?: +.*)?\n?)+)", re.MULTILINE)
ITEM = re.compile(
    r"^( +)(\w+)(?: \([^)]*\))?: (.*(?:\n(?:\1 +.*| *(?=\n)))*)", re.MULTILINE
)
LINK = re.compile(r"\[`(\w+)`\]\[\]")
REFERENCE = re.compile(rf"as in {LINK.pattern}\.")


class Field(NamedTuple):
    """One key of the tables that describe a class."""

    name: str
    annotation: Any
    required: bool
    default: Any  # As the module would hold it; None where the key is required.
    meaning: str


@functools.lru_cache(maxsize=1024)
def fields_of(cls: type) -> tuple[Field, ...]:
    """The fields of a class that its constructor accepts."""
    hints = get_type_hints(cls, include_extras=True)
    meanings = meanings_of(cls)
    fields = tuple(
        Field(
            name=name,
            annotation=hints[name],
            required=default is dataclasses.MISSING,
            default=None if default is dataclasses.MISSING else default,
            meaning=meanings.get(name, ""),
        )
        for name, default in _defaults(cls).items()
    )
    if "name" in hints:
        raise TypeError(
            f"`{cls.__name__}.name` cannot be in a document, where `name` selects the "
            "class. Rename the field."
        )
    return fields


def _defaults(cls: Any) -> dict[str, Any]:
    """The default of each field, as converted by the class; `MISSING` if none."""
    missing = dataclasses.MISSING
    if not dataclasses.is_dataclass(cls):
        return {name: cls._field_defaults.get(name, missing) for name in cls._fields}
    return {x.name: _default(x) for x in dataclasses.fields(cls) if x.init}


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    if field.default is dataclasses.MISSING:
        return field.default
    return field.metadata.get("converter", lambda x: x)(field.default)


@functools.lru_cache(maxsize=1024)
def meanings_of(cls: type) -> Mapping[str, str]:
    """The meaning of each argument by the docstring of a class, on one line."""
    found = {}
    doc = inspect.getdoc(cls) or ""
    sections = "".join(SECTION.findall(doc))
    in_sections = [(name, text) for _, name, text in ITEM.findall(sections)]
    for names, text in (*ARGUMENT.findall(doc), *in_sections):
        for name in re.findall(r"\w+", names):
            meaning = _referred(cls, name, " ".join(text.split()))
            found[name] = LINK.sub(r"`\1`", meaning)
    return MappingProxyType(found)


def _referred(cls: type, name: str, text: str) -> str:
    """The text itself, or that of the class to which it refers the reader."""
    if (match := REFERENCE.fullmatch(text)) is None:
        return text
    other = getattr(sys.modules[cls.__module__], match[1], cls)
    return text if other is cls else meanings_of(other).get(name, text)


def title_of(cls: type) -> str:
    return cls.__name__.removeprefix("Abstract")


def summary_of(cls: type) -> str:
    """The first paragraph of the docstring, on one line."""
    if cls.__doc__ is None or cls.__doc__.startswith(f"{cls.__name__}("):
        return ""  # What `dataclasses` writes where the author does not.
    return " ".join((inspect.getdoc(cls) or "").partition("\n\n")[0].split())


def arms_of(annotation: Any, limits: tuple[Any, ...] = ()) -> list[tuple[Any, Any]]:
    """The members of a union, each with its limits from `Annotated`."""
    if get_origin(annotation) is Annotated:
        return arms_of(get_args(annotation)[0], (*limits, *annotation.__metadata__))
    if is_union(annotation):
        return [x for arm in get_args(annotation) for x in arms_of(arm, limits)]
    return [(NoneType if annotation is None else annotation, limits)]


def is_module(annotation: Any) -> bool:
    """Whether a type is described by a table: a module, dataclass or `NamedTuple`."""
    if not isinstance(annotation, type):
        return False
    is_named_tuple = issubclass(annotation, tuple) and hasattr(annotation, "_fields")
    return is_named_tuple or dataclasses.is_dataclass(annotation)


def items_of(annotation: Any) -> tuple[Any, ...] | None:
    """The types of the items if this is a type of tuples, with `...` as in `tuple`."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is tuple:
        return arguments
    return (*arguments, ...) if origin is Sequence else None


def is_scalar_array(annotation: Any) -> bool:
    """Whether this is a jaxtyping annotation of a 0-d array."""
    if getattr(annotation, "dim_str", None) != "":
        return False
    return issubclass(jax.Array, annotation.array_type)


def is_text(annotation: Any) -> bool:
    """Whether any word may be a value, including the word for None."""
    return annotation is str or (
        get_origin(annotation) is Literal and NONE in get_args(annotation)
    )
