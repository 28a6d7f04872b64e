"""Restores the leaves that match by path, and reports the others."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from .records import counts, fits, Record


@dataclass(frozen=True)
class MatchReport:
    """The result of `match="by path"` for each leaf.

    **Attributes:**

    - `loaded`: the paths that were restored.
    - `missing`: the paths that are not in the checkpoint; their leaves are unchanged.
    - `unexpected`: the paths that are only in the checkpoint.
    - `reinitialized`: the paths that exist on both sides with different shapes, dtypes
        or kinds; their leaves are unchanged.
    """

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    reinitialized: tuple[str, ...]

    @property
    def is_complete(self) -> bool:
        """Whether all leaves were restored, and no others are in the checkpoint."""
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
    """Sorts paths by whether they can be restored.

    **Arguments:** as in `difference_text`.
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
