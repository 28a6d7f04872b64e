"""The page of measurements: one section per module, with its tables."""

import datetime
import os
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


START = """\
# Benchmarks

`nox -s bench` writes this page, and `out/benchmarks.json` with all measurements. `nox
-s bench -- --quick` runs on small sizes and writes no page; `nox -s bench -- -k step`
selects measurements by name.

Alternatives are compared in one process, in a random order in each round. Times are
medians, and include waiting for all results. Brackets hold the middle half of the
times.

{machine}
"""

QUICK = """\
These are measurements of `--quick`, with small sizes and few rounds. They show that
everything runs, and little about speed.
"""

Row = Mapping[str, Any]


@dataclass
class Report:
    """The tables of each section, and the rows of each table."""

    sections: dict[str, dict[str, list[Row]]] = field(default_factory=dict)

    def add(self, section: str, table: str, cells: Row) -> None:
        self.sections.setdefault(section, {}).setdefault(table, []).append(cells)

    def page(self, quick: bool) -> str:
        start = START.format(machine=machine())
        return "\n".join([start, *([QUICK] if quick else []), self.tables()])

    def tables(self) -> str:
        parts = []
        for section, tables in self.sections.items():
            title, _, text = section.strip().partition("\n")
            parts.append(f"## {title.removesuffix('.')}\n{text}".rstrip())
            parts += [_table(title, rows) for title, rows in tables.items()]
        return "\n\n".join(part.strip() for part in parts) + "\n"


def machine() -> str:
    """The date, the devices and the versions."""
    import jax
    import optax

    devices = jax.devices()
    virtual = " (virtual)" if devices[0].platform == "cpu" else ""
    return (
        f"Measured on {datetime.date.today()} on {len(devices)} x "
        f"{devices[0].device_kind}{virtual}, with {os.cpu_count()} cores "
        f"({_processor()}), JAX {jax.__version__}, Optax {optax.__version__} and "
        f"Python {platform.python_version()}."
    )


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    text = path.read_text() if path.exists() else ""
    named = re.search(r"model name\s*: (.*)", text)
    return named[1] if named else platform.machine()


def _table(title: str, rows: list[Row]) -> str:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = [
        f"**{title}**",
        "",
        f"| {' | '.join(columns)} |",
        f"| {' | '.join('--:' for _ in columns)} |",
    ]
    lines += [
        f"| {' | '.join(_cell(row.get(name, '')) for name in columns)} |"
        for row in rows
    ]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
