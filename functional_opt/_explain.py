"""What each parameter gets: its optimizer, the scale of its schedule, its decay."""

from typing import Any, NamedTuple

import jax
from jaxtyping import PyTree

from ._paths import path_text
from ._types import Scalar
from ._where import Mask


class Assigned(NamedTuple):
    """What one parameter gets."""

    optimizer: str
    schedule_scale: Scalar
    weight_decay: Any


def assigned(
    optimizer: Any,
    params: PyTree,
    weight_decay: Scalar | None,
    mask: Mask | None,
) -> PyTree:
    """The same for all parameters, but for the mask of the decay."""
    if weight_decay is None:
        weight_decay = _first(optimizer, "weight_decay", "weight_decay_rate")
    mask = mask or _first(optimizer, "mask", "weight_decay_mask")
    decays = jax.tree.map(lambda _: True, params) if mask is None else mask(params)
    name = type(optimizer).__name__
    return jax.tree.map(
        lambda decay: Assigned(name, 1.0, weight_decay or 0.0 if decay else 0.0), decays
    )


def _first(optimizer: Any, *names: str) -> Any:
    """A field by the names that Optax has for it."""
    found = (getattr(optimizer, name, None) for name in names)
    return next((value for value in found if value is not None), None)


def is_assigned(node: Any) -> bool:
    return isinstance(node, Assigned)


def table(params: PyTree, assignments: PyTree) -> str:
    """A line for each parameter."""
    rows = [("path", "shape", "optimizer", "schedule", "decay")]
    leaves = jax.tree_util.tree_leaves_with_path(params)
    given = jax.tree.leaves(assignments, is_leaf=is_assigned)
    for (path, leaf), found in zip(leaves, given, strict=True):
        rows.append(
            (
                path_text(path),
                str(tuple(leaf.shape)),
                found.optimizer,
                f"x {_number(found.schedule_scale)}",
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


def _number(value: Any) -> str:
    return str(value) if callable(value) else f"{float(value):g}"
