"""The errors and log messages of a restore."""

import contextlib
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from .errors import DamagedError, DifferentError
from .results import Read


logger = logging.getLogger("functional_opt")


@contextlib.contextmanager
def in_words(
    directory: str | os.PathLike[str],
    step: int,
    path: Any,
    others: Iterable[int],
    changes: Sequence[str] = (),
) -> Iterator[None]:
    """The error for a checkpoint that cannot be restored.

    **Arguments:**

    - `directory`, `step`, `path`: the checkpoint and its location.
    - `others`: the steps of all checkpoints.
    - `changes`: how the recipe differs from the saved one.
    """
    name = f"The checkpoint of step {step} in `{directory}`"
    try:
        yield
    except DifferentError as error:
        raise ValueError(
            f"{name} is of another model or optimizer: {error}. {_remedy(changes)}"
        ) from None
    except DamagedError as error:
        if not path.exists():
            raise FileNotFoundError(
                f"{name} has been removed while it was read."
            ) from error
        remedy = others_text(others, step)
        raise ValueError(f"{name} is damaged: {error}. {remedy}".strip()) from error


def log_differences(read: Read) -> None:
    """Logs differences from the saved run that are allowed."""
    fits = read.report is None or read.report.is_complete
    if read.changes and fits and len(read.trees) > 1:
        logger.warning(
            "The recipe has changed since step %s was saved: %s. The state matches, so "
            "training can continue.",
            *(read.step, "; ".join(read.changes)),
        )
    if not fits:
        logger.warning("Restored by path from step %s: %s", read.step, read.report)


def others_text(steps: Iterable[int], damaged: int) -> str:
    """The other checkpoints besides a damaged one."""
    others = [str(other) for other in steps if other != damaged]
    return f"There are others, of step {', '.join(others)}." if others else ""


def _remedy(changes: Sequence[str]) -> str:
    if not changes:
        return "Pass `restore` what was saved."
    return (
        f"The recipe has changed: {'; '.join(changes)}. Training cannot continue from "
        "this state: restore with the recipe that was saved, or use `restore_params` "
        'and a fresh state, or `match="by path"`.'
    )
