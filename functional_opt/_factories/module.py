"""Optimizer classes from factory functions, such as those of Optax."""

import dataclasses
import functools
import inspect
import sys
import types
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY
from typing import Any, final, get_type_hints, NamedTuple, overload

import jax
import numpy as np
import optax
from annotated_types import Interval

from .._annotations import alternatives
from .._base import AbstractOptimizer
from .._schedules.constant import Constant
from .._types import LearningRate, typed
from .fields import (
    ANYTHING,
    as_interval,
    declared,
    field_with,
    is_field,
    Parameter,
    with_range,
)


Factory = Callable[..., optax.GradientTransformation]


class Options(NamedTuple):
    """The options of `from_optax`, in addition to the signature of the factory."""

    name: str | None
    ranges: tuple[tuple[str, Interval], ...]
    learning_rate: str | None


@overload
def from_optax(
    factory: Factory,
    *,
    name: str | None = None,
    ranges: Mapping[str, Any] | None = None,
    learning_rate: str | None = None,
) -> type[Any]: ...


@overload
def from_optax(
    factory: None = None,
    *,
    name: str | None = None,
    ranges: Mapping[str, Any] | None = None,
    learning_rate: str | None = None,
) -> Callable[[Factory], type[Any]]: ...


@typed
def from_optax(
    factory: Callable[..., Any] | None = None,
    *,
    name: str | None = None,
    ranges: Mapping[str, Any] | None = None,
    learning_rate: str | None = None,
) -> Any:
    """Creates an `AbstractOptimizer` class from a factory such as `optax.lamb`.

    The parameters of the factory become fields with their names, types and defaults.
    The learning rate becomes the argument of `build`. The class can be used like the
    optimizers of this library: in a `Recipe`, in `Groups`, in a `Registry`, in files
    and on stages. `from_optax` can also decorate a function that returns an Optax
    transformation.

    Values that files cannot represent, such as functions and arrays, can only be set in
    Python; saving them to a file raises an error.

    ```python
    >>> import functional_opt as fo
    >>> import optax
    >>> Lamb = fo.from_optax(optax.lamb, name="Lamb", ranges={"b1": (0, 1)})
    >>> Lamb(b1=0.8).b1
    0.8
    >>> fo.Registry.of(Lamb)["lamb"] is Lamb
    True
    >>> @fo.from_optax
    ... def clipped_sgd(learning_rate, max_delta: float = 1.0):
    ...     return optax.chain(optax.clip(max_delta), optax.sgd(learning_rate))
    >>> recipe = fo.Recipe(optimizer=clipped_sgd(max_delta=0.5), schedule=0.1)

    ```

    **Arguments:**

    - `factory`: a function that returns an Optax transformation. Without it, the result
        is a decorator.
    - `name`: the name of the class, in lower case also its name in a registry and in
        files. If omitted, the name of the factory.
    - `ranges`: the valid numbers for some of the parameters: a pair (low, high), both
        inclusive, or an `annotated_types.Interval`.
    - `learning_rate`: the name of the parameter for the learning rate. If omitted,
        `learning_rate` if there is one, or else the first positional parameter.

    **Returns:** a class. The same arguments return the same class.

    **Raises:** `ValueError` for a parameter that cannot be a field, a name that is not
    a parameter, or a factory without a learning rate.
    """
    given = {key: as_interval(key, limit) for key, limit in (ranges or {}).items()}
    options = Options(name, tuple(sorted(given.items())), learning_rate)
    if factory is None:
        return functools.partial(_class_of, options=options)
    return _class_of(factory, options)


@functools.cache
def _class_of(factory: Factory, options: Options) -> type[Any]:
    name = options.name or getattr(factory, "__name__", None)
    if name is None or not name.isidentifier():
        raise ValueError(f"`from_optax` requires `name`, since {factory!r} has none.")
    parameters = _parameters(factory, name)
    rate = _rate_of(parameters, options.learning_rate, name)
    fields = _fields(parameters, rate, dict(options.ranges), name)

    def fill(body: dict[str, Any]) -> None:
        body["__annotations__"] = {"_": KW_ONLY}
        for key, field in fields.items():
            body["__annotations__"][key] = field.type
            body[key] = field_with(field, parameters[key].default)
        body["__doc__"] = factory.__doc__ or f"`{name}`, from its factory."
        body["__module__"] = factory.__module__
        body["__qualname__"] = options.name or factory.__qualname__
        body["build"] = _build_of(factory, parameters, rate)
        body["__hash__"] = _hash
        body["__reduce__"] = functools.partialmethod(_reduced, factory, options)

    return final(types.new_class(name, (AbstractOptimizer,), {}, fill))


def _parameters(factory: Factory, name: str) -> dict[str, inspect.Parameter]:
    """The parameters with the types that annotations stand for."""
    function = factory.func if isinstance(factory, functools.partial) else factory
    try:
        hints = get_type_hints(function)
    except (NameError, TypeError, AttributeError):
        hints = {}  # Strings that only a type checker can resolve.
    found = {}
    for key, parameter in inspect.signature(factory).parameters.items():
        if parameter.kind is parameter.VAR_POSITIONAL:
            raise ValueError(
                f"`from_optax` cannot make fields of `*{key}` of `{name}`. Wrap it in "
                "a function with a parameter for each hyperparameter."
            )
        if parameter.kind is not parameter.VAR_KEYWORD:
            raw = parameter.annotation
            known = parameter.empty if isinstance(raw, str) else raw
            found[key] = parameter.replace(annotation=hints.get(key, known))
    return found


def _rate_of(
    parameters: Mapping[str, inspect.Parameter], given: str | None, name: str
) -> str | None:
    """The name of the learning rate, or None if optimizers inside have it."""
    if given is not None and given not in parameters:
        raise ValueError(
            f"`learning_rate` must be a parameter of `{name}`, got {given!r}. Its "
            f"parameters are {', '.join(parameters)}."
        )
    if given is not None or "learning_rate" in parameters:
        return given or "learning_rate"
    kinds = {key: _of(parameter) for key, parameter in parameters.items()}
    if any(AbstractOptimizer in _arms(kind) for kind in kinds.values()):
        return None
    first = next(iter(parameters), None)
    if first is None or parameters[first].kind is inspect.Parameter.KEYWORD_ONLY:
        raise ValueError(
            f"`{name}` has no parameter `learning_rate` and none by position. Name "
            "the learning rate: `from_optax(..., learning_rate=...)`."
        )
    return first


def _of(parameter: inspect.Parameter) -> Parameter:
    return Parameter.of(parameter, parameter.annotation)


def _arms(parameter: Parameter) -> list[Any]:
    return alternatives(declared(parameter).type)


def _fields(
    parameters: Mapping[str, inspect.Parameter],
    rate: str | None,
    ranges: Mapping[str, Interval],
    name: str,
) -> dict[str, Any]:
    fields = {
        key: declared(_of(parameter))
        for key, parameter in parameters.items()
        if key != rate
    }
    for key in fields:
        if not is_field(key):
            raise ValueError(
                f"`{name}` has a parameter `{key}`, which cannot be a field. Wrap it "
                "in a function with another name for it."
            )
    for key, limit in ranges.items():
        if key not in fields:
            raise ValueError(
                f"`ranges` holds {key!r}, which is not a hyperparameter of `{name}`. "
                f"They are {', '.join(fields) or 'none'}."
            )
        fields[key] = with_range(fields[key], key, limit)
    return fields


def _build_of(
    factory: Factory, parameters: Mapping[str, inspect.Parameter], rate: str | None
) -> Any:
    takes_schedules = rate is None or _takes_schedules(parameters[rate])
    by_position = [key for key, x in parameters.items() if x.kind is x.POSITIONAL_ONLY]

    def call(given: dict[str, Any], at: Any = None) -> optax.GradientTransformation:
        given = given if rate is None else given | {rate: at}
        args = [given.pop(key) for key in by_position]
        return factory(*args, **given)

    @typed
    def build(
        self: Any, schedule: LearningRate
    ) -> optax.GradientTransformationExtraArgs:
        given = {
            key: value.build(schedule) if _is_optimizer(value) else value
            for key in parameters
            if key != rate
            for value in (getattr(self, key),)
        }
        if takes_schedules or not callable(schedule):
            return optax.with_extra_args_support(call(given, schedule))
        if isinstance(schedule, Constant):
            return optax.with_extra_args_support(call(given, schedule.value))
        # What the rate is at an update is known only there.
        return optax.inject_hyperparams(lambda rate: call(given, rate))(schedule)

    return build


def _takes_schedules(parameter: inspect.Parameter) -> bool:
    of_rate = _of(parameter)
    return of_rate.allows_functions() or declared(of_rate).type is ANYTHING


def _is_optimizer(value: Any) -> bool:
    return isinstance(value, AbstractOptimizer)


def _hash(self: Any) -> int:
    """As of other modules, but arrays count by their shapes alone."""
    leaves, structure = jax.tree.flatten(self)
    known = (
        (x.shape, str(x.dtype)) if isinstance(x, jax.Array | np.ndarray) else x
        for x in leaves
    )
    return hash((structure, *known))


def _reduced(self: Any, factory: Factory, options: Options) -> Any:
    """To pickle and copy: by the class if it has a name, or else by its factory.

    Defaults are left out: some are functions that have no name.
    """
    cls, defaults = type(self), _defaults(type(self))
    given = {
        key: value
        for key, value in vars(self).items()
        if key not in defaults or value is not defaults[key]
    }
    if _named(cls.__module__, cls.__qualname__) is cls:
        return _blank, (cls,), given
    return _blank_of, (factory, options), given


def _defaults(cls: Any) -> dict[str, Any]:
    missing, found = dataclasses.MISSING, {}
    for field in dataclasses.fields(cls):
        if field.default_factory is not missing:
            found[field.name] = field.default_factory()
        elif field.default is not missing:
            found[field.name] = field.metadata["converter"](field.default)
    return found


def _named(module: str, name: str) -> Any:
    found = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


def _blank(cls: type[Any]) -> Any:
    """An instance before its fields are set, but for those that have defaults."""
    made = object.__new__(cls)
    vars(made).update(_defaults(cls))
    return made


def _blank_of(factory: Factory, options: Options) -> Any:
    return _blank(_class_of(factory, options))
