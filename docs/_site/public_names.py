"""The public names, and the page of the reference that each is on."""

import inspect
import re
from collections.abc import Iterator
from typing import Any

import functional_opt as fo


# Each page, and the private rooms whose public names it describes, the narrowest first.
ROOMS = {
    "optimizers": ("_optimizers", "_groups", "_composition"),
    "schedules": ("_schedules", "_durations"),
    "stages": ("_stages", "_slicing"),
    "checkpoints": ("_checkpoints",),
    "testing": ("testing",),
}
OTHERS = "recipes"

TITLES = {
    "optimizers": "Optimizers",
    "schedules": "Schedules",
    "recipes": "Recipes and registries",
    "stages": "Stage-local updates",
    "checkpoints": "Checkpoints",
    "testing": "Testing",
}


def public() -> dict[str, Any]:
    """The public objects by the path that users import them by."""
    found = dict(_of(fo, "functional_opt"))
    return found | dict(_of(fo.testing, "functional_opt.testing", fo.testing.__all__))


def _of(
    module: Any, path: str, names: list[str] | None = None
) -> Iterator[tuple[str, Any]]:
    for name in names or vars(module):
        value = getattr(module, name)
        if not name.startswith("_") and not inspect.ismodule(value):
            yield f"{path}.{name}", value


def page_of(value: Any) -> str:
    """The page of the reference that describes an object."""
    if isinstance(value, type):
        if issubclass(value, fo.AbstractSchedule):
            return "schedules"
        if issubclass(value, fo.AbstractOptimizer):
            return "optimizers"
    room = value.__module__.removeprefix("functional_opt.").partition(".")[0]
    found = (page for page, rooms in ROOMS.items() if room in rooms)
    return next(found, OTHERS)


def pages() -> dict[str, list[str]]:
    """The paths on each page: what users subclass comes first."""
    found: dict[str, list[str]] = {page: [] for page in TITLES}
    for path, value in public().items():
        found[page_of(value)].append(path)
    for paths in found.values():
        paths.sort(key=lambda path: not path.rpartition(".")[2].startswith("Abstract"))
    return found


def summary(value: Any) -> str:
    """The first sentence of a docstring, without references to names beside it."""
    first = " ".join((inspect.getdoc(value) or "").partition("\n\n")[0].split())
    return re.sub(r"\[(`\w+`)\]\[\]", r"\1", first)
