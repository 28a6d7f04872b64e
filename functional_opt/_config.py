"""What every module of the library is: frozen, checked at construction, a pytree."""

import dataclasses
import inspect
import math
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    dataclass_transform,
    get_args,
    get_origin,
    get_type_hints,
    Literal,
    Union,
)

import equinox as eqx
from annotated_types import Interval, Predicate
from beartype.door import is_bearable
from jax.core import Tracer

from ._fields import duration, number, part, setting


# Written twice: pyright reads the decorator of the metaclass, mypy that of the class.
@dataclass_transform(
    eq_default=False,
    frozen_default=True,
    field_specifiers=(eqx.field, number, setting, part, duration),
)
class _ConfigMeta(type(eqx.Module)):  # type: ignore[misc]
    """The metaclass of Equinox modules, for fields declared by our functions."""

    # To pyright a subclass of Equinox's metaclass is a dataclass, and so not hashable.
    __hash__ = type.__hash__


@dataclass_transform(
    eq_default=False,
    frozen_default=True,
    field_specifiers=(eqx.field, number, setting, part, duration),
)
class AbstractConfig(eqx.Module, metaclass=_ConfigMeta):
    """A module whose fields are checked against their annotations when it is made.

    A field annotated with `Annotated[..., Interval(ge=0, lt=1)]` is held to that
    range. Traced values have a type but no value yet: their range is not checked.
    """

    def __check_init__(self) -> None:
        check_fields(self)
        self._check()

    def _check(self) -> None:
        """Checks the fields together; each on its own is checked by then."""

    def _in_run(self, total_steps: int) -> Any:
        """The module in a run of so many updates: for what only a run can tell."""
        del total_steps
        return self


def check_fields(config: Any) -> None:
    """Holds every field of a dataclass to its annotation."""
    annotations = _annotations(type(config))
    for name, annotation in annotations.items():
        place = f"`{type(config).__name__}.{name}`"
        value = getattr(config, name)
        if not _fits(value, annotation):
            raise TypeError(
                f"{place} must be {_describe(annotation)}, got {value!r}."
                f"{_hint(type(config), name, annotations, value)}"
            )
        _check_value(place, value, annotation)


def _annotations(cls: type) -> dict[str, Any]:
    hints = get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def _fits(value: Any, annotation: Any) -> bool:
    if isinstance(value, bool):  # To Python it is an int.
        return any(x in (bool, Any, object) for x in _alternatives(annotation))
    if isinstance(value, tuple):
        return any(_fits_tuple(value, x) for x in _alternatives(annotation))
    return is_bearable(value, annotation)


def _fits_tuple(value: tuple[Any, ...], annotation: Any) -> bool:
    """Looks at every item, where beartype looks at one by chance."""
    if get_origin(annotation) is not tuple:
        return is_bearable(value, annotation)
    items = get_args(annotation)
    if items[1:] == (...,):
        items = items[:1] * len(value)
    return len(items) == len(value) and all(map(_fits, value, items))


def _check_value(place: str, value: Any, annotation: Any) -> None:
    if isinstance(value, Tracer):
        return
    # A float is compared, not the array itself: under `jax.jit` even the comparison
    # of a concrete array is traced.
    known = float(value) if _is_number(value) else value
    if isinstance(known, float) and not math.isfinite(known):
        raise ValueError(f"{place} must be finite, got {value!r}.")
    for limit in _limits(value, annotation):
        if not holds(limit, known):
            raise ValueError(f"{place} must be {limit_text(limit)}, got {value!r}.")


def _is_number(value: Any) -> bool:
    if isinstance(value, int | float):
        return not isinstance(value, bool)
    return eqx.is_inexact_array(value) and value.ndim == 0


def _limits(value: Any, annotation: Any) -> list[Any]:
    """Finds the limits that an annotation sets to values of this type."""
    if get_origin(annotation) is Annotated:
        metadata = annotation.__metadata__
        return [x for x in metadata if isinstance(x, Interval | Predicate)]
    arms = get_args(annotation) if is_union(annotation) else ()
    return [x for arm in arms if is_bearable(value, arm) for x in _limits(value, arm)]


def holds(limit: Interval | Predicate, value: Any) -> bool:
    if isinstance(limit, Predicate):
        return limit.func(value)
    return (
        (limit.ge is None or value >= limit.ge)
        and (limit.gt is None or value > limit.gt)
        and (limit.le is None or value <= limit.le)
        and (limit.lt is None or value < limit.lt)
    )


def limit_text(limit: Interval | Predicate) -> str:
    if isinstance(limit, Predicate):
        return limit.func.__name__
    low = f"[{limit.ge}" if limit.ge is not None else f"({limit.gt}"
    high = f"{limit.le}]" if limit.le is not None else f"{limit.lt})"
    if "None" not in low + high:
        return f"in {low}, {high}"
    bounds = {
        "at least": limit.ge,
        "greater than": limit.gt,
        "at most": limit.le,
        "less than": limit.lt,
    }
    return " and ".join(f"{word} {x}" for word, x in bounds.items() if x is not None)


def is_union(annotation: Any) -> bool:
    return get_origin(annotation) in (Union, UnionType)


def _alternatives(annotation: Any) -> list[Any]:
    """Takes unions and `Annotated` apart."""
    if get_origin(annotation) is Annotated:
        return _alternatives(get_args(annotation)[0])
    if is_union(annotation):
        return [x for arm in get_args(annotation) for x in _alternatives(arm)]
    return [annotation]


def _describe(annotation: Any) -> str:
    """Says in words which values an annotation allows."""
    *others, last = [x for arm in _alternatives(annotation) for x in _names(arm)]
    return f"{', '.join(others)} or {last}" if others else last


def _names(annotation: Any) -> list[str]:
    if get_origin(annotation) is Literal:
        return [repr(value) for value in get_args(annotation)]
    return [_name(annotation)]


def _name(annotation: Any) -> str:
    if annotation is NoneType:
        return "None"
    if getattr(annotation, "dim_str", None) == "":  # a scalar of jaxtyping's
        return f"a 0-d {annotation.dtype.__name__.lower()} array"
    if get_args(annotation)[1:] == (...,):
        return f"a tuple, each item {_describe(get_args(annotation)[0])}"
    name = getattr(annotation, "__name__", str(annotation))
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def _hint(cls: type, name: str, annotations: dict[str, Any], value: Any) -> str:
    """Says what to do about a module in the wrong place, or a value without one."""
    if isinstance(value, type) and issubclass(value, AbstractConfig):
        return f" Pass an instance: `{value.__name__}(...)`."
    if isinstance(value, AbstractConfig):
        for other, annotation in annotations.items():
            if is_bearable(value, annotation):
                return f" Did you mean `{cls.__name__}.{other}`?"
        return ""
    for kind in _alternatives(annotations[name]):
        if _takes(kind, value):
            return f" Did you mean `{kind.__name__}({value!r})`?"
    return ""


def _takes(kind: Any, value: Any) -> bool:
    """Whether a class that a field allows could be made of the value."""
    if not (isinstance(kind, type) and issubclass(kind, AbstractConfig)):
        return False
    if inspect.isabstract(kind) or len(dataclasses.fields(kind)) != 1:
        return False
    try:
        kind(value)  # pyright: ignore[reportCallIssue]
    except (TypeError, ValueError):
        return False
    return True
