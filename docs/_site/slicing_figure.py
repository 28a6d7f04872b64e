"""Draws how a function is sliced: its equations in lanes of stages, and its programs.

Everything is read from the objects that `stage_local` itself makes. The picture is a
part of the page, so that its colours follow the scheme of the page.
"""

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

import jax
import jax.numpy as jnp
from functional_opt._slicing.slicing import Program, slice_jaxpr, Slices
from jax.extend.core import Literal


SHAPES = {"a": (64, 32), "b": (32,), "c": (32, 64)}
STAGES = {"a": 0, "b": 0, "c": 1}
LANES = ((frozenset({0}), 2), (frozenset({0, 1}), 1), (frozenset({1}), 1))
COLUMN, ROW, WIDTH, HEIGHT, TOP, PAD = 136, 62, 124, 38, 34, 16


# --8<-- [start:clip]
def clip(grads: Mapping[str, Any]) -> dict[str, Any]:
    a, b, c = (jnp.sum(jnp.square(grad)) for grad in grads.values())
    scale = 1 / jnp.maximum(jnp.sqrt(a + b + c), 1.0)
    return {name: scale * grad for name, grad in grads.items()}


# --8<-- [end:clip]


@functools.cache
def clipped() -> Slices:
    shapes = {k: jax.ShapeDtypeStruct(x, jnp.float32) for k, x in SHAPES.items()}
    stages = [frozenset({stage}) for stage in STAGES.values()]
    return slice_jaxpr(jax.make_jaxpr(clip)(shapes), stages, stages, 2)


@functools.cache
def names() -> dict[Any, str]:
    """A letter for each value, in the order in which they are computed."""
    return {var: chr(ord("a") + i) for i, var in enumerate(clipped().placed.values)}


def name(atom: Any) -> str:
    return f"{atom.val:g}" if isinstance(atom, Literal) else names()[atom]


def shape(atom: Any) -> str:
    return atom.aval.str_short(short_dtypes=True)


def equation(eqn: Any) -> str:
    (result,) = eqn.outvars
    return f"{name(result)} = {eqn.primitive} {' '.join(map(name, eqn.invars))}"


@dataclass(frozen=True)
class Box:
    """A value in the picture: where it is, and its two lines of text."""

    x: float
    row: int
    text: str
    shape: str
    is_sent: bool

    @property
    def y(self) -> float:
        return TOP + self.row * ROW


def boxes() -> dict[Any, Box]:
    """The values in lanes, those of a later round below those of an earlier one."""
    placed = clipped().placed
    sent = {message.var for messages in clipped().rounds for message in messages}
    makers = {eqn.outvars[0]: eqn for eqn in placed.equations}
    levels = _levels()
    order = sorted(set(levels.values()))
    found: dict[Any, Box] = {}
    for var in placed.values:
        eqn = makers.get(var)
        found[var] = Box(
            _column(var, eqn, found),
            order.index(levels[var]),
            name(var) if eqn is None else equation(eqn),
            shape(var),
            var in sent,
        )
    return found


def _levels() -> dict[Any, tuple[float, int]]:
    """After how many rounds each value is known, and its depth."""
    placed = clipped().placed
    makers = {eqn.outvars[0]: eqn for eqn in placed.equations}
    levels: dict[Any, tuple[float, int]] = {}
    for var, value in placed.values.items():
        operands = _operands(makers[var]) if var in makers else []
        depth = max((levels[atom][1] + 1 for atom in operands), default=0)
        levels[var] = (value.made.first, depth)
    return levels


def _operands(eqn: Any) -> list[Any]:
    return [atom for atom in eqn.invars if not isinstance(atom, Literal)]


def _column(var: Any, eqn: Any, found: Mapping[Any, Box]) -> float:
    """An input is in a column of its own, a result among operands of its stages."""
    values = clipped().placed.values
    starts, start = {}, 0
    for stages, width in LANES:
        starts[stages] = start
        start += width
    home = values[var].home
    if eqn is None:
        before = [x for x in found if values[x].home == home]
        return starts[home] + len(before)
    near = [found[x].x for x in _operands(eqn) if values[x].home == home]
    return sum(near) / len(near) if near else starts[home]


def picture() -> str:
    """The values, their operands and the exchange."""
    found = boxes()
    width = sum(columns * COLUMN + 2 * PAD for _, columns in LANES)
    height = TOP + (max(box.row for box in found.values()) + 1) * ROW
    parts = [*_lanes(height), *_exchange(found, width), *_edges(found)]
    parts += [_drawn(box) for box in found.values()]
    return (
        f'<figure class="slicing"><svg viewBox="0 0 {width} {height}" '
        f'style="min-width: {width}px" role="img" '
        f'aria-label="The equations of the clip, by stage">{"".join(parts)}</svg>'
        "</figure>"
    )


def _lanes(height: int) -> Iterator[str]:
    x = 0
    for number, (stages, columns) in enumerate(LANES):
        title = f"stage {min(stages)}" if len(stages) == 1 else "every stage"
        width = columns * COLUMN + 2 * PAD
        size = f'x="{x}" y="0" width="{width}" height="{height}"'
        yield f'<rect class="lane-{number}" {size}/>'
        yield f'<text class="lane" x="{x + width / 2}" y="20">{title}</text>'
        x += width


def _exchange(found: Mapping[Any, Box], width: int) -> Iterator[str]:
    rows = [box.row for box in found.values() if box.is_sent]
    y = TOP + (max(rows) + 1) * ROW - (ROW - HEIGHT) / 2
    yield f'<line class="exchange" x1="0" x2="{width}" y1="{y}" y2="{y}"/>'
    middle = width - COLUMN / 2 - PAD
    yield f'<text class="exchange" x="{middle}" y="{y - 6}">round 0</text>'


def _edges(found: Mapping[Any, Box]) -> Iterator[str]:
    for eqn in clipped().placed.equations:
        for operand in dict.fromkeys(_operands(eqn)):
            start, end = found[operand], found[eqn.outvars[0]]
            kind = "message" if start.is_sent else "edge"
            yield f'<path class="{kind}" d="{_path(start, end)}"/>'


def _path(start: Box, end: Box) -> str:
    """From below a box to above another; around the boxes between them."""
    x1, x2 = _middle(start), _middle(end)
    y1, y2 = start.y + HEIGHT, end.y
    if x1 == x2 and end.row > start.row + 1:
        side = -1 if start.x == 0 else 1
        x, y1, y2 = x1 + side * WIDTH / 2, y1 - HEIGHT / 2, y2 + HEIGHT / 2
        out = x + side * PAD
        down = f"Q {out} {y1} {out} {y1 + PAD} V {y2 - PAD} Q {out} {y2} {x} {y2}"
        return f"M {x} {y1} {down}"
    middle = (y1 + y2) / 2
    return f"M {x1} {y1} C {x1} {middle} {x2} {middle} {x2} {y2}"


def _middle(box: Box) -> float:
    """The middle of a box, to the right of its lane's padding and of other lanes."""
    pads, start = PAD, 0
    for _, columns in LANES:
        start += columns
        pads += 2 * PAD if box.x >= start else 0
    return pads + (box.x + 0.5) * COLUMN


def _drawn(box: Box) -> str:
    x, kind = _middle(box), "sent" if box.is_sent else "value"
    return (
        f'<rect class="{kind}" x="{x - WIDTH / 2}" y="{box.y}" rx="4" width="{WIDTH}" '
        f'height="{HEIGHT}"/><text class="{kind}" x="{x}" y="{box.y + 16}">'
        f'{escape(box.text)}</text><text class="shape" x="{x}" y="{box.y + 31}">'
        f"{escape(box.shape)}</text>"
    )


def programs() -> str:
    """The programs of both stages, as tabs."""
    slices = clipped()
    tabs = []
    for stage in range(2):
        results = [i for i, owner in enumerate(STAGES.values()) if owner == stage]
        code = [
            *_program("round 0", slices.message_program(stage, 0)),
            *_program("after round 0", slices.result_program(stage, results)),
        ]
        block = ["", "```text", *code, "```"]
        tabs += [
            f'=== "Stage {stage}"',
            *(f"    {line}".rstrip() for line in block),
            "",
        ]
    return "\n".join(tabs)


def _program(title: str, program: Program) -> Iterator[str]:
    jaxpr = program.closed.jaxpr
    yield f"{title}: ({', '.join(map(name, jaxpr.invars))})"
    for eqn in jaxpr.eqns:
        yield f"    {equation(eqn)}"
    yield f"    return {', '.join(map(name, jaxpr.outvars))}"
