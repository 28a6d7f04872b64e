"""The tables of docs/runtimes.md, written by the tests that measure their rows."""

import datetime
import os
import platform
import re
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest


PAGE = Path(__file__).parents[2] / "docs" / "runtimes.md"

Row = Mapping[str, Any]


class Tables:
    """Rows that tests record, by table and name.

    **Arguments:**

    - `expected`: for each table the names of its rows, in order.
    """

    def __init__(self, expected: Mapping[str, Any]) -> None:
        self._expected = {title: list(names) for title, names in expected.items()}
        self._rows: dict[tuple[str, str], Row] = {}

    def add(self, title: str, name: str, **cells: Any) -> None:
        assert name in self._expected[title]
        self._rows[title, name] = cells

    def write(self) -> None:
        """Writes the tables to the page, if all tests have recorded their rows."""
        text, missing = PAGE.read_text(), []
        for title, names in self._expected.items():
            missing += [name for name in names if (title, name) not in self._rows]
        if missing:
            pytest.skip(f"the page stays as it is, without {', '.join(missing)}")
        for title, names in self._expected.items():
            table = _table({name: self._rows[title, name] for name in names})
            text = _replaced(text, title, table)
        PAGE.write_text(text)


def write_text(title: str, text: str) -> None:
    """Writes a sentence to the page."""
    PAGE.write_text(_replaced(PAGE.read_text(), title, text))


def machine() -> str:
    """The date, the machine and the versions."""
    path = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", path.read_text() if path.exists() else "")
    processor = found[1] if found else platform.machine()
    return (
        f"Measured on {datetime.date.today()} on {os.cpu_count()} cores ({processor}), "
        f"with JAX {version('jax')}, Optax {version('optax')} and Python "
        f"{platform.python_version()}."
    )


def _replaced(page: str, title: str, text: str) -> str:
    """A page with other text between the comments that name it."""
    begin, end = f"<!-- generated: {title} -->\n", f"<!-- end: {title} -->"
    before, found, rest = page.partition(begin)
    _, ends, after = rest.partition(end)
    assert found and ends, f"the page has no `{begin.strip()}` and `{end}`"
    return f"{before}{begin}\n{text}\n\n{end}{after}"


def _table(rows: Mapping[str, Row]) -> str:
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    lines = [columns, ["---"] + ["--:"] * (len(columns) - 1)]
    lines += [[_cell(row.get(name, "")) for name in columns] for row in rows.values()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
