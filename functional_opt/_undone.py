"""Optimizers that determine new parameters, and wrappers that would undo this."""

from collections.abc import Iterable
from typing import Any


# The `UNDOES` of a wrapper that declares none.
UNDECLARED = "its change of updates"


def check_undone(holder: Any, held: Iterable[Any]) -> None:
    """Refuses what determines new parameters inside what changes them afterwards."""
    for optimizer in held:
        if optimizer.DETERMINES is None:
            continue
        outside, inside = type(holder).__name__, type(optimizer).__name__
        raise ValueError(
            f"`{outside}` cannot hold `{inside}`, which determines "
            f"{optimizer.DETERMINES}: {holder.UNDOES} would undo it. "
            f"{_remedy(holder, inside, f'`{inside}({outside}(...))`')}"
            f"{_declaration(holder)}"
        )


def check_clip_update(kind: str, clip: Any, clipping: Any, held: Iterable[Any]) -> None:
    """Refuses to clip the updates of what determines new parameters.

    **Arguments:**

    - `kind`: the class with the field `clip_update`.
    - `clip`: the clip, or None.
    - `clipping`: the optimizer around the clipped one.
    - `held`: all inside it.
    """
    for optimizer in held:
        if clip is None or optimizer.DETERMINES is None:
            continue
        name = type(optimizer).__name__
        inside = f"`{name}(Groups((Group(..., clip_update=...),)))`"
        raise ValueError(
            f"`{kind}.clip_update` = {clip} would undo what `{name}` determines, "
            f"{optimizer.DETERMINES}. {_remedy(clipping, name, inside)}"
        )


def _declaration(holder: Any) -> str:
    """What a wrapper may declare that does not say what it does to updates."""
    if holder.UNDOES != UNDECLARED:
        return ""
    return (
        f" If `{type(holder).__name__}` does not change what the optimizer inside "
        "determines, set its class variable `UNDOES` to None."
    )


def _remedy(holder: Any, inside: str, other_way_round: str) -> str:
    if inside in holder.REFUSED_BY:
        return "Omit one of them."
    return f"Write {other_way_round} instead."
