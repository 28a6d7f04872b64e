"""The table that shows what each stage holds and what it exchanges, and why."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from .._slicing.errors import where
from .._slicing.slicing import Message
from .derive.functions import HIDDEN, StagedFunction


_HEADER = ("stage", "leaves", "params", "state", "sent a step")


def table(update: StagedFunction, before: Sequence[StagedFunction]) -> str:
    """A row a stage, and a line for each reason why something is exchanged.

    **Arguments:**

    - `update`: the function of gradients, state and parameters.
    - `before`: what is exchanged in rounds before it.
    """
    functions = [*before, update]
    num_stages = update.arguments["params"].num_stages
    sizes = [
        (
            len(update.avals("params", stage)),
            _nbytes(update.avals("params", stage)),
            _nbytes(update.avals("state", stage)),
            sum(_sent(function, stage) for function in functions),
        )
        for stage in range(num_stages)
    ]
    total = tuple(sum(column) for column in zip(*sizes, strict=True))
    rows = [_row(str(stage), row) for stage, row in enumerate(sizes)]
    rows = _aligned([_HEADER, *rows, _row("all", total)])
    return "\n".join([*rows, "", *_reasons(functions)])


def _sent(function: StagedFunction, stage: int) -> int:
    rounds = range(function.num_rounds)
    return sum(function.packing(stage, round).nbytes for round in rounds)


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


def _reasons(functions: Sequence[StagedFunction]) -> list[str]:
    rounds = [
        [_reason(message, function.purpose) for message in messages]
        for function in functions
        for messages in function.slices.rounds
    ]
    if not rounds:
        return ["Nothing is exchanged."]
    lines = [f"{len(rounds)} round{'s' * (len(rounds) > 1)} of exchange:"]
    for number, reasons in enumerate(rounds):
        for reason, count in Counter(reasons).items():
            lines.append(f"  round {number}: {count} x {reason}")
    return lines


def _reason(message: Message, purpose: str | None) -> str:
    aval = message.var.aval.str_short()
    if purpose is not None:
        return f"{aval} for {purpose}"
    if message.needed_by is None:
        return f"{aval}, a result that other stages hold too"
    line = where(message.needed_by, HIDDEN)
    return f"{aval} for `{message.needed_by.primitive}` at {line}"
