"""What each device does when: programs in a profile of JAX, and a picture of them."""

import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch


INK, GREY = "#1f2933", "#7b8794"


class Span(NamedTuple):
    """One run of a program on a device; times are in milliseconds."""

    device: int
    program: str
    start: float
    end: float


def spans_of(function: Callable[[], Any]) -> list[Span]:
    """Profiles a function that runs programs, and returns when each of them ran.

    Times count from the start of the first program.
    """
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(function())
        (path,) = Path(folder).rglob("*.xplane.pb")
        profile = jax.profiler.ProfileData.from_file(str(path))
        found = _spans(profile)
    first = min((span.start for span in found), default=0.0)
    return [s._replace(start=s.start - first, end=s.end - first) for s in found]


def _spans(profile: Any) -> list[Span]:
    """Joins the operations of each run of a program on a device."""
    runs: dict[Any, Span] = {}
    for plane in profile.planes:
        for event in (event for line in plane.lines for event in line.events):
            stats = dict(event.stats)
            if "hlo_op" not in stats or "hlo_module" not in stats:
                continue
            # A plane of the host has the operations of all of its devices.
            number = stats.get("device_ordinal")
            device = _last_number(plane.name) if number is None else int(number)
            program = str(stats["hlo_module"]).removeprefix("jit_")
            start, length = event.start_ns / 1e6, event.duration_ns / 1e6
            new = Span(device, program, start, start + length)
            key = stats.get("run_id"), device, program
            old = runs.get(key, new)
            earliest, latest = min(old.start, new.start), max(old.end, new.end)
            runs[key] = Span(device, program, earliest, latest)
    return sorted(runs.values(), key=lambda span: span.start)


def _last_number(name: str) -> int:
    return int(re.findall(r"\d+", name)[-1])


def draw(
    panels: Mapping[str, Sequence[Span]],
    colours: Mapping[str, str],
    names: Mapping[str, str],
    path: Path,
) -> None:
    """Draws one panel per timeline, with one row per device.

    **Arguments:**

    - `panels`: the spans of each panel, by its title.
    - `colours`, `names`: of each program; all others are left out.
    - `path`: the file to write.
    """
    figure = Figure(figsize=(9, 2.4 * len(panels) + 0.6), dpi=150, layout="constrained")
    rows = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
    for axes, (title, spans) in zip(rows, panels.items(), strict=True):
        _draw_panel(axes, title, spans, colours)
    rows[-1].set_xlabel("milliseconds", color=INK)
    patches = [Patch(color=colours[p], label=names[p]) for p in colours]
    figure.legend(
        handles=patches, loc="outside lower center", ncols=len(patches), frameon=False
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _draw_panel(
    axes: Axes, title: str, spans: Sequence[Span], colours: Mapping[str, str]
) -> None:
    shown = [span for span in spans if span.program in colours]
    for span in shown:
        length = span.end - span.start
        axes.barh(
            span.device,
            length,
            left=span.start,
            color=colours[span.program],
            height=0.7,
        )
    devices = sorted({span.device for span in shown})
    axes.set_yticks(devices, [f"stage {device}" for device in devices])
    axes.invert_yaxis()
    axes.set_title(title, loc="left", color=INK, fontsize=10, weight="bold")
    axes.spines[["top", "right", "left", "bottom"]].set_visible(False)
    axes.tick_params(colors=GREY, length=0)
    axes.grid(axis="x", color="#e4e7eb", linewidth=0.6)
    axes.set_axisbelow(True)
