"""Suggestions for values that an annotation does not allow."""

import dataclasses
import inspect
import math
from typing import Any, get_type_hints

from ._annotations import alternatives, broken_limit, converted, fits, shown


def remedy(value: Any, annotation: Any) -> str:
    """A sentence with a valid alternative; empty if none is known."""
    kinds = [kind for kind in alternatives(annotation) if isinstance(kind, type)]
    if isinstance(value, type) and issubclass(value, tuple(kinds)):
        return f"Pass an instance: `{value.__name__}(...)`."
    made = [kind for kind in kinds if _makes(kind, value)]
    if len(made) == 1:
        return f"Did you mean `{made[0].__name__}({shown(value)})`?"
    if (meant := _meant_number(value, annotation)) is not None:
        return f"Did you mean `{meant!r}`?"
    return next((text for kind in kinds if (text := getattr(kind, "REMEDY", ""))), "")


def _makes(kind: Any, value: Any) -> bool:
    """Whether a class of the library can be constructed from the value alone."""
    if not dataclasses.is_dataclass(kind) or inspect.isabstract(kind):
        return False
    fields = dataclasses.fields(kind)
    if not fields or fields[0].kw_only or any(map(_is_required, fields[1:])):
        return False
    annotation = get_type_hints(kind, include_extras=True)[fields[0].name]
    value = converted(value, annotation)
    return fits(value, annotation) and broken_limit(value, annotation) is None


def _is_required(field: dataclasses.Field[Any]) -> bool:
    missing = dataclasses.MISSING
    return field.default is missing and field.default_factory is missing


def _meant_number(value: Any, annotation: Any) -> int | float | None:
    """The number in a string, or the int equal to a float."""
    if not isinstance(value, str | float):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    if not math.isfinite(number):
        return None
    candidates = [int(number), number] if number.is_integer() else [number]
    fitting = (x for x in candidates if fits(converted(x, annotation), annotation))
    return next(fitting, None)
