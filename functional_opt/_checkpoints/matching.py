"""Restoring what fits by path, and reporting what does not."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from .records import counts, fits, Record


@dataclass(frozen=True)
class MatchReport:
    """What `match="by path"` has done with each leaf.

    **Attributes:**

    - `loaded`: the paths that were restored.
    - `missing`: the paths that the checkpoint does not have; their leaves are as given.
    - `unexpected`: the paths of the checkpoint that are not here.
    - `reinitialized`: the paths that are on both sides with different shapes, dtypes or
        kinds; their leaves are as given.
    """

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    reinitialized: tuple[str, ...]

    @property
    def is_complete(self) -> bool:
        """Whether the leaves on both sides were the same."""
        return not (self.missing or self.unexpected or self.reinitialized)

    def __str__(self) -> str:
        kinds = {
            "loaded": self.loaded,
            "missing": self.missing,
            "unexpected": self.unexpected,
            "re-initialized": self.reinitialized,
        }
        lines = [f"{len(self.loaded)} leaves loaded"]
        for kind, paths in kinds.items():
            if kind != "loaded":
                lines += [f"{len(paths)} {kind}", *(f"  {path}" for path in paths)]
        return "\n".join(lines)


def match_by_path(
    paths: Sequence[str],
    required: Collection[str],
    here: Mapping[str, Record | None],
    saved: Mapping[str, Record],
) -> MatchReport:
    """Sorts paths by what a checkpoint has there.

    **Arguments:** as of `difference_text`.
    """
    loaded, missing, different = [], [], []
    for path in paths:
        mine, theirs = here.get(path), saved.get(path)
        if theirs is None:
            if path in required or counts(path, mine):
                missing.append(path)
        elif path in here and not fits(path, mine, theirs):
            different.append(path)
        else:
            loaded.append(path)
    known = set(paths)
    unexpected = [p for p, theirs in saved.items() if p not in known]
    return MatchReport(*map(tuple, (loaded, missing, unexpected, different)))


def unplaced(report: MatchReport, leaves: Mapping[str, Any]) -> str | None:
    """The first leaf that is neither in the checkpoint nor more than a shape here."""
    for path in (*report.missing, *report.reinitialized):
        if isinstance(leaves.get(path), jax.ShapeDtypeStruct):
            return path
    return None
