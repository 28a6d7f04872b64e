"""What every module of the library is: frozen, checked at construction, a pytree."""

import dataclasses
import inspect
from typing import Any, dataclass_transform, get_type_hints, TYPE_CHECKING

import equinox as eqx

from ._annotations import converted, fits
from ._calls import wrong_call, wrong_value
from ._fields import duration, number, part, setting
from ._signatures import any_shown_as


class Checked(type):
    """A metaclass that refuses arguments which do not fit the fields, in our words."""

    # To pyright a metaclass with a `__call__` accepts what that accepts.
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


# Written twice: pyright reads the decorator of the metaclass, mypy that of the class.
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
            # Equinox puts Any here for what has a converter.
            if annotations.get(field.name) is Any:
                annotations[field.name] = any_shown_as(field.type)

    # To pyright a subclass of Equinox's metaclass is a dataclass, and so not hashable.
    __hash__ = type.__hash__


@dataclass_transform(
    eq_default=False,
    frozen_default=True,
    field_specifiers=(eqx.field, number, setting, part, duration),
)
class AbstractConfig(eqx.Module, metaclass=ConfigMeta):
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
    """The field that a module belongs to."""
    if not isinstance(value, AbstractConfig):
        return ""
    names = (name for name, kind in annotations.items() if fits(value, kind))
    name = next(names, None)
    return "" if name is None else f"Did you mean `{cls.__name__}.{name}`?"
