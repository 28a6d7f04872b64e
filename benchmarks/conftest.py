"""Devices for the stages, sizes, and the page and tables of measurements."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from report import Report


DEVICES = "--xla_force_host_platform_device_count"

# JAX reads this once, when it is first used: nothing above may import it.
if DEVICES not in (flags := os.environ.get("XLA_FLAGS", "")):
    os.environ["XLA_FLAGS"] = f"{flags} {DEVICES}=8".strip()

# On GPUs, JAX would otherwise reserve the memory that `worker.py` needs.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

REPORT = pytest.StashKey[Report]()

SECTIONS = [f"test_{name}" for name in ("step", "memory", "round", "host")]
SECTIONS += ["test_compilation", "test_derivation"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--quick", action="store_true", help="small sizes and few rounds, to try it out"
    )
    parser.addoption("--page", type=Path, help="where to write the tables")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[REPORT] = Report()


def pytest_collection_modifyitems(items: list[pytest.Function]) -> None:
    items.sort(key=lambda item: SECTIONS.index(item.path.stem))


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    report, page = config.stash[REPORT], config.getoption("--page")
    quick = bool(config.getoption("--quick"))
    if report.sections:
        terminalreporter.write_line(report.tables())
    if page is not None:
        page.write_text(report.page(quick))


@pytest.fixture
def quick(pytestconfig: pytest.Config) -> bool:
    return bool(pytestconfig.getoption("--quick"))


@pytest.fixture
def record(request: pytest.FixtureRequest, benchmark: Any) -> Callable[..., None]:
    """Adds a row to a table below the text of the module, and to the JSON file."""
    quick = request.config.getoption("--quick")

    def add(table: str, **cells: Any) -> None:
        if quick:
            cells.pop("aim", None)
        request.config.stash[REPORT].add(request.module.__doc__, table, cells)
        benchmark.extra_info.setdefault(table, []).append(cells)

    return add
