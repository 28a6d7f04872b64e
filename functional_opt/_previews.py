"""Previews of a schedule: its phases, corners and values as text and as a plot."""

import os
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np


@runtime_checkable
class Schedule(Protocol):
    def __call__(self, count: jax.typing.ArrayLike) -> Any: ...

    def phases(self) -> tuple[tuple[str, int | None], ...]: ...


def spans(schedule: Schedule) -> list[tuple[str, int, int | None]]:
    """Name, first and last count of each phase of nonzero duration."""
    phases = [(name, steps) for name, steps in schedule.phases() if steps != 0]
    ends = [*accumulate(steps or 0 for _, steps in phases)]
    return [
        (name, start, None if steps is None else start + steps)
        for (name, steps), start in zip(phases, [0, *ends], strict=False)
    ]


def length(schedule: Schedule) -> int | None:
    """The total duration of the phases in updates; None if the last has no end."""
    found = spans(schedule)
    return found[-1][2] if found else 0


def corners(schedule: Schedule) -> tuple[int, ...]:
    ends = [end for _, _, end in spans(schedule) if end is not None]
    return (0, *ends)


def spans_text(schedule: Schedule) -> str:
    """The phases with their counts: `warmup 0-500, decay 500-10000`."""
    return ", ".join(
        f"{name} {start}-{'' if end is None else end}"
        for name, start, end in spans(schedule)
    )


def check_fits(schedule: Schedule, total_steps: int) -> None:
    end = length(schedule)
    if end is not None and end > total_steps:
        raise ValueError(
            f"`{type(schedule).__name__}` takes {end} updates, but the run has "
            f"{total_steps}: {spans_text(schedule)}. Shorten a phase, or set its "
            "duration to a `Fraction` of the run."
        )


def values(schedule: Schedule, counts: Sequence[int] | jax.typing.ArrayLike) -> Any:
    evaluate = jax.jit(lambda counts: schedule(counts))
    return np.asarray(evaluate(jnp.asarray(counts)))


def describe(schedule: Schedule) -> str:
    begins = {start: name for name, start, _ in reversed(spans(schedule))}
    points = corners(schedule)
    found = _without_noise(values(schedule, points))
    rows = [("update", "value", "")]
    rows += [
        (str(count), f"{value:.6g}", begins.get(count, "end"))
        for count, value in zip(points, found, strict=True)
    ]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return "\n".join(
        f"{count:>{widths[0]}}  {value:<{widths[1]}}  {name}".rstrip()
        for count, value, name in rows
    )


def _without_noise(found: np.ndarray) -> np.ndarray:
    """Sets values to zero that are rounding errors compared with the largest value."""
    noise = np.finfo(found.dtype).eps * np.max(np.abs(found))
    return np.where(np.abs(found) <= noise, 0.0, found)


def plot(schedule: Schedule, target: Any, total_steps: int | None) -> None:
    if not isinstance(target, str | os.PathLike):
        _draw(schedule, target, _range(schedule, total_steps))
        return
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError(
            "Plotting a schedule requires Matplotlib: "
            "`python -m pip install 'functional_opt[plot]'`."
        ) from None
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    _draw(schedule, figure.subplots(), _range(schedule, total_steps))
    figure.savefig(target)


def _range(schedule: Schedule, total_steps: int | None) -> int:
    end = length(schedule)
    if total_steps is None and not end:
        raise ValueError(
            f"`{type(schedule).__name__}` has no end: set the range of the plot with "
            "`plot(..., total_steps=...)`."
        )
    return total_steps or max(end + end // 20, 1)  # pyright: ignore[reportOptionalOperand]


def _draw(schedule: Schedule, axes: Any, total_steps: int) -> None:
    counts = np.unique(np.linspace(0, total_steps, 1_001).round().astype(int))
    axes.plot(counts, values(schedule, counts))
    points = [count for count in corners(schedule) if count <= total_steps]
    axes.plot(points, values(schedule, points), "o", color="C0")
    for name, start, end in spans(schedule):
        if start < total_steps:
            middle = (start + min(end or total_steps, total_steps)) / 2
            axes.annotate(
                name,
                (middle, 1),
                xycoords=("data", "axes fraction"),
                xytext=(0, 3),
                textcoords="offset points",
                ha="center",
                fontsize="small",
            )
    for count in points[1:]:
        axes.axvline(count, color="0.85", linewidth=0.8, zorder=0)
    axes.set(xlabel="updates completed", ylabel="value")
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
