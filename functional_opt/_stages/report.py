"""The table of the leaves, bytes and exchanges of each stage."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from .._slicing.errors import where
from .._slicing.slicing import Message
from .derive.functions import HIDDEN, SplitFunction
from .derive.ties import Ties


_HEADER = ("stage", "leaves", "params", "state", "sent per step")


def as_text(step: SplitFunction, ties: Ties | None) -> str:
    """A row per stage, and a line per kind of value that is exchanged, with its reason.

    **Arguments:**

    - `step`: the function of parameters, state and gradients.
    - `ties`: the sums of gradients before it.
    """
    sizes = [
        (
            len(step.avals_of("params", stage)),
            _nbytes(step.avals_of("params", stage)),
            _nbytes(step.avals_of("state", stage)),
            step.bytes_sent(stage) + (0 if ties is None else ties.bytes_sent(stage)),
        )
        for stage in range(step.num_stages)
    ]
    total = tuple(sum(column) for column in zip(*sizes, strict=True))
    rows = [_row(str(stage), row) for stage, row in enumerate(sizes)]
    rows = _aligned([_HEADER, *rows, _row("all", total)])
    return "\n".join([*rows, "", *_reasons(step, ties)])


def _nbytes(avals: Iterable[Any]) -> int:
    return sum(aval.size * aval.dtype.itemsize for aval in avals)


def _row(name: str, sizes: Sequence[int]) -> tuple[str, ...]:
    leaves, *nbytes = sizes
    return (name, str(leaves), *map(_bytes_text, nbytes))


def _bytes_text(nbytes: int) -> str:
    units = ["B", "kB", "MB", "GB"]
    power = min(max(len(str(nbytes)) - 1, 0) // 3, len(units) - 1)
    return f"{nbytes / 1000**power:.{min(power, 1)}f} {units[power]}"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    ]


def _reasons(step: SplitFunction, ties: Ties | None) -> list[str]:
    rounds = [[_reason(m) for m in messages] for messages in step.slices.rounds]
    if ties is not None:
        sums = "for the sums of the gradients of tied parameters"
        rounds.insert(0, [f"{text} {sums}" for text in ties.summands_text()])
    if not rounds:
        return ["Nothing is exchanged."]
    lines = [f"{len(rounds)} round{'s' * (len(rounds) > 1)} of exchange:"]
    for number, reasons in enumerate(rounds):
        for reason, count in Counter(reasons).items():
            lines.append(f"  round {number}: {count} x {reason}")
    return lines


def _reason(message: Message) -> str:
    value = message.var.aval.str_short()
    if message.by_limit:
        value = f"{value} (allowed by `travel_limit`)"
    if message.needed_by is None:
        return f"{value}, a result that other stages hold too"
    line = where(message.needed_by, HIDDEN)
    return f"{value} for `{message.needed_by.primitive}` at {line}"
