"""A recipe as text: fields and defaults, learning rate, parameters, state."""

import argparse
import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

import functional_opt as fo

from .._codec.errors import ConfigError, location_text
from .._codec.fields import fields_of, is_module
from .._durations import unresolved
from .._names import name_of
from .shapes import read_model


CHAIN = (
    "skip_nonfinite",
    "skip_spikes",
    "accumulate",
    "clip_norm",
    "clip",
    "optimizer",
    "weight_decay",
    "clip_update",
    "ema_decay",
)


OWN_DECAYS = ("weight_decay", "weight_decay_rate", "adam_weight_decay")


def show(module: Any, options: argparse.Namespace) -> str:
    """All information about a module that is known before a run."""
    parts = [table(("field", "value", "default"), field_rows(module))]
    if isinstance(module, fo.Recipe):
        parts.insert(0, chain(module))
    if (rate := rate_text(module, options.total_steps)) is not None:
        parts.append(rate)
    if options.model_shapes is not None:
        parts += on_model(module, options.model_shapes, options.total_steps)
    return "\n\n".join(parts) + "\n"


def chain(recipe: fo.Recipe) -> str:
    """The transformations of a gradient in order, as far as they are not defaults."""
    fields = {field.name: field for field in fields_of(fo.Recipe)}
    values = {name: getattr(recipe, name) for name in CHAIN if name in fields}
    links = [
        _link(name, value)
        for name, value in values.items()
        if fields[name].required or value != fields[name].default
    ]
    return f"gradient -> {' -> '.join(links)} -> update"


def _link(name: str, value: Any) -> str:
    if isinstance(value, fo.AbstractOptimizer):
        return value_text(value)
    return name if value is True else f"{name} {value_text(value)}"


def rate_text(module: Any, total_steps: int | None) -> str | None:
    """The learning rate at the corners of its schedule."""
    schedule = schedule_of(module, total_steps)
    if schedule is None or isinstance(schedule, fo.Constant):
        return None
    _check_known(schedule)
    return f"learning rate\n{schedule.describe()}"


def plot(module: Any, target: str, total_steps: int | None) -> None:
    """Draws the learning rate."""
    schedule = schedule_of(module, total_steps)
    if schedule is None:
        raise ConfigError([("", f"{value_text(module)} has no learning rate to plot")])
    _check_known(schedule)
    with refused(""):
        schedule.plot(target, total_steps)


def schedule_of(module: Any, total_steps: int | None) -> fo.AbstractSchedule | None:
    """The schedule of a recipe, or the module if it is one; resolved if possible.

    `None` if there is none.
    """
    schedule = module.schedule if isinstance(module, fo.Recipe) else module
    if not isinstance(schedule, fo.AbstractSchedule):
        return None
    with refused("schedule"):
        return schedule if total_steps is None else schedule.resolve(total_steps)


def _check_known(schedule: fo.AbstractSchedule) -> None:
    """Refuses durations that depend on the number of updates of the run."""
    problems = [
        (
            "schedule",
            f"`{type(config).__name__}.{name}` depends on the number of updates of the "
            f"run, got {getattr(config, name)!r}; pass --total-steps",
        )
        for config, name in unresolved(schedule)
    ]
    if problems:
        raise ConfigError(problems)


@contextlib.contextmanager
def refused(location: str) -> Iterator[None]:
    """Reports errors of a module in use as problems of its document."""
    try:
        yield
    except ValueError as error:
        raise ConfigError([(location, str(error))]) from None


def on_model(module: Any, path: str, total_steps: int | None) -> list[str]:
    """The treatment of each parameter, and state and exchanges per stage."""
    if not isinstance(module, fo.Recipe):
        text = f"--model-shapes requires a recipe, got {value_text(module)}"
        raise ConfigError([("", text)])
    shapes, partition = read_model(path)
    with refused(""):
        staged = module.build_mpmd(shapes, partition, total_steps=total_steps)
        return [module.explain(shapes), str(staged)]


def difference(first: Any, second: Any) -> str:
    """A table of the fields that differ; nothing if there are none."""
    values = [{row[0]: row[1] for row in field_rows(x)} for x in (first, second)]
    rows = [
        (location, *(found.get(location, "") for found in values))
        for location in dict.fromkeys((*values[0], *values[1]))
        if values[0].get(location) != values[1].get(location)
    ]
    return table(("field", "first", "second"), rows) + "\n" if rows else ""


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Columns that are as wide as their longest cells."""
    rows = [head, *rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) for cell, width in zip(row, widths, strict=True)
        ).rstrip()
        for row in rows
    )


def field_rows(module: Any) -> list[tuple[str, str, str]]:
    """The location, value and default of each field, and of the fields in it."""
    name = name_of(type(module))
    rows = [] if isinstance(module, fo.Recipe) else [("name", name, "")]
    return [*rows, *_rows(module, (), None)]


def _rows(
    module: Any, above: tuple[str | int, ...], decay: str | None
) -> Iterator[tuple[str, str, str]]:
    """The rows of a module; `decay` is the weight decay that replaces its own."""
    is_optimizer = isinstance(module, fo.AbstractOptimizer)
    if not is_optimizer and getattr(module, "weight_decay", None) is not None:
        decay = location_text((*above, "weight_decay"))
    for field in fields_of(type(module)):
        path = (*above, field.name)
        value = getattr(module, field.name)
        text = value_text(value)
        if is_optimizer and decay is not None and field.name in OWN_DECAYS:
            text = f"{text} (replaced by {decay})"
        default = "" if field.required else value_text(field.default)
        yield location_text(path), text, default
        yield from _inner_rows(value, path, decay)


def _inner_rows(
    value: Any, path: tuple[str | int, ...], decay: str | None
) -> Iterator[Any]:
    if is_module(type(value)):
        yield from _rows(value, path, decay)
    elif isinstance(value, tuple):
        for number, item in enumerate(value):
            if is_module(type(item)):
                yield location_text((*path, number)), value_text(item), ""
            yield from _inner_rows(item, (*path, number), decay)


def value_text(value: Any) -> str:
    """A value as in a file; a module by its name."""
    match value:
        case None:
            return "none"
        case bool():
            return str(value).lower()
        case tuple():
            return f"[{', '.join(map(value_text, value))}]"
        case np.dtype():
            return value.name
        case jax.Array():
            return f"{value.item()} ({value.dtype.name} array)"
        case str():
            return repr(value)
    return name_of(type(value)) if is_module(type(value)) else repr(value)
