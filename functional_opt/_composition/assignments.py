"""Assigns to each parameter its optimizer, learning rate and weight decay."""

import functools
from typing import Any, NamedTuple

import jax
from jaxtyping import PyTree

from .._base import AbstractOptimizer
from .._paths import path_text
from .._types import Scalar
from .decay import Decayed, decayed, own_decay, WithDecay
from .frozen import Frozen
from .held import AbstractPartitionedOptimizer, by_part, only_held
from .rates import WithRate


class Assigned(NamedTuple):
    """The assignment of one parameter.

    **Attributes:**

    - `optimizer`: the name of its optimizer.
    - `schedule`: its learning rate; None for that of the whole optimizer.
    - `schedule_scale`: factor on the learning rate.
    - `weight_decay`: its weight decay per unit of learning rate.
    """

    optimizer: str
    schedule: Any
    schedule_scale: Scalar
    weight_decay: Any


def is_assigned(node: Any) -> bool:
    return isinstance(node, Assigned)


@functools.singledispatch
def assigned(optimizer: AbstractOptimizer, params: PyTree) -> PyTree:
    """The assignment of each parameter by an optimizer: a tree of `Assigned`."""
    name = type(optimizer).__name__
    inner = only_held(optimizer, "`Recipe.explain`")
    if inner is None:
        found = jax.tree.map(lambda _: Assigned(name, None, 1.0, 0.0), params)
    else:
        found = _map(
            lambda x: x._replace(optimizer=f"{name}({x.optimizer})"),
            assigned(inner, params),
        )
    return _with_own_decay(optimizer, params, found)


def _with_own_decay(
    optimizer: AbstractOptimizer, params: PyTree, found: PyTree
) -> PyTree:
    decay, mask, _ = own_decay(optimizer)
    decays = True if mask is None else mask(params) if callable(mask) else mask
    decays = jax.tree.map(  # A mask may be a prefix of the tree.
        lambda is_decayed, own: jax.tree.map(lambda _: is_decayed, own),
        *(decays, params),
    )
    return _map(
        lambda x, is_decayed: (
            x._replace(weight_decay=_sum(x.weight_decay, decay)) if is_decayed else x
        ),
        *(found, decays),
    )


@assigned.register
def _(optimizer: Decayed, params: PyTree) -> PyTree:
    return _with_own_decay(optimizer, params, assigned(optimizer.optimizer, params))


@assigned.register
def _(optimizer: WithDecay, params: PyTree) -> PyTree:
    return assigned(decayed(optimizer.optimizer, optimizer.weight_decay), params)


@assigned.register
def _(optimizer: WithRate, params: PyTree) -> PyTree:
    def at_rate(found: Assigned) -> Assigned:
        schedule = optimizer.schedule if found.schedule is None else found.schedule
        scale = found.schedule_scale * optimizer.scale
        return found._replace(schedule=schedule, schedule_scale=scale)

    return _map(at_rate, assigned(optimizer.optimizer, params))


@assigned.register
def _(optimizer: Frozen, params: PyTree) -> PyTree:
    return jax.tree.map(lambda _: Assigned("Frozen", None, 0.0, 0.0), params)


@assigned.register
def _(optimizer: AbstractPartitionedOptimizer, params: PyTree) -> PyTree:
    def of_part(label: str, inner: AbstractOptimizer, own: PyTree) -> PyTree:
        return _map(
            lambda x: x._replace(optimizer=f"{label}: {x.optimizer}"),
            assigned(inner, own),
        )

    return by_part(optimizer, params, of_part, is_leaf=is_assigned)


def _map(function: Any, assignments: PyTree, *rest: PyTree) -> PyTree:
    return jax.tree.map(function, assignments, *rest, is_leaf=is_assigned)


def _sum(one: Any, other: Any) -> Any:
    """Adds decays; the sum of a schedule and something else is text."""
    if not any(callable(x) or isinstance(x, str) for x in (one, other)):
        return one + other
    return " + ".join(text for x in (one, other) if (text := _number(x)) != "0")


def table(params: PyTree, assignments: PyTree) -> str:
    """One line per parameter."""
    rows = [("path", "shape", "optimizer", "schedule", "decay")]
    leaves = jax.tree_util.tree_leaves_with_path(params)
    given = jax.tree.leaves(assignments, is_leaf=is_assigned)
    for (path, leaf), found in zip(leaves, given, strict=True):
        rows.append(
            (
                path_text(path),
                str(tuple(leaf.shape)),
                found.optimizer,
                _rate(found),
                _number(found.weight_decay),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            f"{text:<{width}}" for text, width in zip(row, widths, strict=True)
        ).rstrip()
        for row in rows
    )


def _rate(found: Assigned) -> str:
    scale = f"x {_number(found.schedule_scale)}"
    if found.schedule is None:
        return scale
    if callable(found.schedule):
        name = type(found.schedule).__name__
        return name if scale == "x 1" else f"{name} {scale}"
    return _number(found.schedule * found.schedule_scale)


def _number(value: Any) -> str:
    if callable(value):
        return type(value).__name__
    if isinstance(value, str):
        return value
    return f"{float(value):g}"
