"""The base class of all modules: a frozen pytree, validated at construction."""

import dataclasses
import inspect
from typing import Any, dataclass_transform, get_type_hints, TYPE_CHECKING

import equinox as eqx

from ._annotations import converted, fits
from ._calls import wrong_call, wrong_value
from ._fields import duration, number, part, setting
from ._signatures import any_shown_as


class Checked(type):
    """A metaclass with better errors for arguments that do not match the fields."""

    # Pyright would take the signature of this `__call__` for that of every class.
    if not TYPE_CHECKING:

        def __call__(cls, *args: Any, **kwargs: Any) -> Any:
            if not inspect.isabstract(cls):
                _check_call(cls, args, kwargs)
            return super().__call__(*args, **kwargs)


def _check_call(cls: type, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    signature = inspect.signature(cls.__init__)
    try:
        signature.bind(None, *args, **kwargs)
    except TypeError:
        elsewhere = getattr(cls, "ELSEWHERE", {})
        raise wrong_call(
            cls.__name__, signature, (None, *args), kwargs, elsewhere, "field"
        ) from None


# Twice, since pyright reads the decorator of the metaclass, and mypy that of the class.
@dataclass_transform(
    eq_default=False,
    frozen_default=True,
    field_specifiers=(eqx.field, number, setting, part, duration),
)
class ConfigMeta(Checked, type(eqx.Module)):  # type: ignore[misc]
    """The metaclass of Equinox modules, for fields declared by our functions."""

    def __init__(cls, name: str, bases: tuple[type, ...], namespace: Any, **_: Any):
        super().__init__(name, bases, namespace)
        annotations = cls.__init__.__annotations__
        for field in dataclasses.fields(cls):
            # Equinox annotates a field with a converter by the type of the converter's
            # argument, which is `Any`.
            if annotations.get(field.name) is Any:
                annotations[field.name] = any_shown_as(field.type)

    # Pyright treats a subclass of the metaclass of Equinox as an unhashable dataclass.
    __hash__ = type.__hash__


@dataclass_transform(
    eq_default=False,
    frozen_default=True,
    field_specifiers=(eqx.field, number, setting, part, duration),
)
class AbstractConfig(eqx.Module, metaclass=ConfigMeta):
    """A module with fields that are checked against their annotations at construction.

    The value of a field annotated with `Annotated[..., Interval(ge=0, lt=1)]` must be
    in that range. The range of a traced value cannot be checked.
    """

    def __check_init__(self) -> None:
        check_fields(self)
        self._check()

    def _check(self) -> None:
        """Checks combinations of fields, after each field has been checked."""

    def _in_run(self, total_steps: int) -> Any:
        """The module in a run of `total_steps` updates, on which fields may depend."""
        del total_steps
        return self


def check_fields(config: Any) -> None:
    """Raises an error if a field of a dataclass does not match its annotation."""
    annotations = field_types(type(config))
    for name, annotation in annotations.items():
        given = getattr(config, name)
        value = converted(given, annotation)
        if value is not given:
            object.__setattr__(config, name, value)
        hint = _other_field(type(config), value, annotations)
        if (error := wrong_value(value, annotation, hint)) is not None:
            raise type(error)(f"`{type(config).__name__}.{name}` {error}")


def field_types(cls: type) -> dict[str, Any]:
    """The annotation of each field, by its name."""
    hints = get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def _other_field(cls: type, value: Any, annotations: dict[str, Any]) -> str:
    """A hint at the field that accepts a module which was passed to another field."""
    if not isinstance(value, AbstractConfig):
        return ""
    names = (name for name, kind in annotations.items() if fits(value, kind))
    name = next(names, None)
    return "" if name is None else f"Did you mean `{cls.__name__}.{name}`?"
