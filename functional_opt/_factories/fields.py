"""Converts the parameters of a factory, such as `optax.lamb`, to fields of a module."""

import inspect
from collections.abc import Callable
from types import NoneType
from typing import Annotated, Any, get_args, get_origin, Literal, NamedTuple

import equinox as eqx
import jax
import numpy as np
import optax
from annotated_types import Interval

from .._annotations import alternatives, Named
from .._base import AbstractOptimizer, AbstractSchedule
from .._fields import as_dtype, as_integer, as_number
from .._types import Scalar, Schedule, Transformation
from .._where import Mask


ANYTHING = Annotated[Any, Named("Any", "")]
ARRAYS = (jax.Array, np.ndarray)
SCALARS = (float, int, bool, complex, np.bool, np.number, NoneType, *ARRAYS)
TRANSFORMATIONS = (
    optax.GradientTransformation,
    optax.GradientTransformationExtraArgs,
)


class Declared(NamedTuple):
    """A field: its type, how a value is converted, and whether it is structure."""

    type: Any
    convert: Callable[[Any], Any]
    static: bool


class Parameter(NamedTuple):
    """A parameter of a factory: its name, the types that it allows, its default."""

    name: str
    types: tuple[Any, ...]
    default: Any

    @staticmethod
    def of(parameter: inspect.Parameter, annotation: Any) -> "Parameter":
        default = parameter.default
        if annotation is inspect.Parameter.empty:
            is_known = default is not None and default is not parameter.empty
            annotation = type(default) if is_known else Any
        return Parameter(parameter.name, tuple(alternatives(annotation)), default)

    def allows(self, *kinds: Any) -> bool:
        return any(kind in self.types for kind in kinds)

    def allows_functions(self) -> bool:
        return any(kind is Callable or _is_callable(kind) for kind in self.types)

    def allows_arrays(self) -> bool:
        return self.allows(*ARRAYS) or isinstance(self.default, ARRAYS)

    def allows_trees(self) -> bool:
        """Whether anything else than numbers and functions of them is allowed."""
        return any(x not in SCALARS and not _is_callable(x) for x in self.types)

    def allows_none(self) -> bool:
        return self.default is None or self.allows(NoneType)


def _is_callable(kind: Any) -> bool:
    return get_origin(kind) is Callable


def _same(value: Any) -> Any:
    return value


def declared(parameter: Parameter) -> Declared:
    """The field of a parameter; `ANYTHING` where files can hold no value of it."""
    found = next(x for rule in RULES if (x := rule(parameter)) is not None)
    if parameter.allows_none() and found.type is not ANYTHING:
        return found._replace(type=found.type | None)
    return found


def _dtype(parameter: Parameter) -> Declared | None:
    if "dtype" in parameter.name or parameter.allows(np.dtype):
        return Declared(np.dtype, as_dtype, static=True)
    return None


def _mask(parameter: Parameter) -> Declared | None:
    """Optax accepts trees as masks too."""
    if not parameter.name.endswith("mask"):
        return None
    kind = Mask | bool if isinstance(parameter.default, bool) else Mask
    return Declared(kind | ANYTHING, _same, static=True)


def _transformation(parameter: Parameter) -> Declared | None:
    if not parameter.allows(*TRANSFORMATIONS):
        return None
    return Declared(AbstractOptimizer | Transformation, _same, static=False)


def _switch(parameter: Parameter) -> Declared | None:
    if parameter.types == (bool,) or isinstance(parameter.default, bool):
        return Declared(bool, _same, static=True)
    return None


def _word(parameter: Parameter) -> Declared | None:
    words = [x for x in parameter.types if x is str or get_origin(x) is Literal]
    if not words:
        return None
    kind = words[0]
    for other in words[1:]:
        kind = kind | other
    if any(x not in (*words, NoneType) for x in parameter.types):
        kind = kind | ANYTHING
    return Declared(kind, _same, static=True)


def _tuple(parameter: Parameter) -> Declared | None:
    kinds = [x for x in parameter.types if x is tuple or get_origin(x) is tuple]
    if len(kinds) != 1:
        return None
    items = get_args(kinds[0]) or tuple(map(type, parameter.default or ()))
    of_items = [
        x if x is ... else declared(Parameter("", tuple(alternatives(x)), 0.0))
        for x in items
    ]
    known = [x for x in of_items if x is not ...]
    if not known or any(x.type is ANYTHING for x in known):
        return None
    kind = tuple[tuple(x if x is ... else x.type for x in of_items)]
    if float in parameter.types:
        kind = kind | Scalar
    static = any(x.static for x in known)

    def convert(value: Any) -> Any:
        if not isinstance(value, tuple | list):
            return as_number(value)
        return tuple(value) if static else tuple(map(as_number, value))

    return Declared(kind, convert, static)


def _number(parameter: Parameter) -> Declared | None:
    if parameter.allows_trees():
        return None
    if parameter.allows(float):
        if parameter.allows_functions():
            kind = AbstractSchedule | Schedule | Scalar
            return Declared(kind, as_number, static=False)
        if type(parameter.default) is int and parameter.allows(int):
            # It may be a size, which is not to be traced or made a float.
            return Declared(int | float, as_integer, static=True)
        return Declared(Scalar, as_number, static=False)
    if parameter.allows(int) and not parameter.allows_arrays():
        return Declared(int, as_integer, static=True)
    return None


def _array(parameter: Parameter) -> Declared | None:
    if not parameter.allows_arrays() or parameter.allows_functions():
        return None
    is_seed = parameter.allows(int) and not parameter.allows_trees()
    kind = int | ANYTHING if is_seed else ANYTHING
    return Declared(kind, as_integer, static=False)


def _anything(parameter: Parameter) -> Declared:
    del parameter
    return Declared(ANYTHING, _same, static=True)


RULES: tuple[Callable[[Parameter], Declared | None], ...] = (
    *(_dtype, _mask, _transformation, _switch, _word, _tuple, _number, _array),
    _anything,
)


def with_range(field: Declared, name: str, limit: Any) -> Declared:
    """The same field with its numbers held to a range."""
    arms = alternatives(field.type)
    if not {int, float} & set(arms):
        raise ValueError(f"`ranges` holds {name!r}, which is not a number.")
    kind: Any = Annotated[_numbers(arms), as_interval(name, limit)]
    others: list[Any] = [x for x in (AbstractSchedule, NoneType) if x in arms]
    if AbstractSchedule in others:
        others.append(Schedule)
    for other in others:
        kind = kind | other
    return field._replace(type=kind)


def _numbers(arms: list[Any]) -> Any:
    if float not in arms:
        return int
    return int | float if int in arms else Scalar


def as_interval(name: str, limit: Any) -> Interval:
    """A range as an `Interval`; a pair of numbers includes both ends."""
    if isinstance(limit, tuple | list) and len(limit) == 2:
        return Interval(ge=limit[0], le=limit[1])
    bounds = {x: getattr(limit, x, None) for x in ("ge", "gt", "le", "lt")}
    if all(bound is None for bound in bounds.values()):
        raise TypeError(
            f"`ranges[{name!r}]` must be a pair (low, high), which includes both, or "
            f"a range such as `annotated_types.Interval(ge=0, lt=1)`, got {limit!r}."
        )
    return Interval(**bounds)


def field_with(declared: Declared, default: Any) -> Any:
    """The field for the body of a class."""
    if default is inspect.Parameter.empty:
        given = {}
    elif getattr(type(default), "__hash__", None) is None:
        given = {"default_factory": lambda: default}  # As dataclasses require.
    else:
        given = {"default": default}
    return eqx.field(converter=declared.convert, static=declared.static, **given)


def is_field(name: str) -> bool:
    """Whether a field may have this name, without hiding a part of the class."""
    return not hasattr(AbstractOptimizer, name) and name != "name"
