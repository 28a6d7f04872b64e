"""Saves and restores in a directory, with Orbax, TensorStore and etils."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
from etils import epath

from . import directory as directories
from .background import Background
from .content import Content as Content, Copy as Copy
from .directory import (
    AbstractDirectory,
    ITEM,
    MANIFEST,
    open_directory as open_directory,
)
from .errors import DifferentError
from .extras import is_under, named_leaves, RestoredExtra, targets_of
from .matching import match_by_path, MatchReport, unplaced
from .merging import first_difference
from .processes import from_all, from_first
from .reading import FORMAT as FORMAT, read_leaves, read_manifest as read_manifest
from .records import difference_text, Record, record_of
from .saving import Save
from .trees import Training
from .wording import others_text


MOST_STEPS = 50  # that are named to all processes
SHORT = 2000  # characters of an error that are sent to all processes


@dataclass(frozen=True)
class Saver:
    """Saves to a directory; the first process manages its content."""

    directory: AbstractDirectory
    keep: int | None
    background: Background

    def save(self, step: int, content: Content, wait: bool) -> None:
        verdict = _from_first(lambda: self._begin(step))
        path = self.directory.path / verdict["name"]
        if verdict["exists"]:
            self._check_same(step, path, content)
            return
        token = verdict["token"]
        if wait:
            Save(self.directory, step, path, token, self.keep, content).run()
            return
        save = Save(self.directory, step, path, token, self.keep, content.copied())
        self.background.start(save, save.run)

    def _begin(self, step: int) -> dict[str, Any]:
        """The draft to write to, or the existing checkpoint of this step.

        Only the first process calls this."""
        published = self.directory.published()
        latest = max(published, default=-1)
        if step < latest:
            raise ValueError(
                f"Cannot save step {step} to `{self.directory.path}`: it already holds "
                f"step {latest}, and steps must increase. To go back to an earlier "
                "step, remove the later checkpoints or use another directory."
            )
        if step == latest:
            return {"exists": True, "name": published[step].name}
        token = os.urandom(8).hex()
        try:
            draft = directories.begin(self.directory, step, token)
        except OSError as error:
            if max(self.directory.published(), default=-1) >= step:
                raise directories.overtaken(self.directory, step) from error
            raise type(error)(
                f"Cannot save step {step}: `{self.directory.path}` cannot be written: "
                f"{error}"
            ) from error
        return {"exists": False, "name": draft.name, "token": token}

    def _check_same(self, step: int, path: epath.Path, content: Content) -> None:
        """Accepts equal content for an existing step, and raises an error otherwise."""
        manifest = read_manifest(path, step)
        different = first_difference(path / ITEM, content, manifest)
        found = [text for text in from_all(different or "") if text]
        if found:
            raise ValueError(
                f"Cannot save step {step} to `{self.directory.path}`: it already holds "
                f"this step with another value of `{found[0]}`, and steps must "
                "increase. Count updates completed, or use another directory."
            )


def choose(
    directory: AbstractDirectory, step: int | None
) -> tuple[int, epath.Path, list[int]]:
    """The checkpoint of a step, found by the first process.

    Other processes may see the latest checkpoint late on some file systems.
    """
    verdict = _from_first(lambda: _find(directory, step))
    return verdict["step"], directory.path / verdict["name"], verdict["steps"]


def read_training(
    path: epath.Path, training: Training, records: dict[str, Record], by_path: bool
) -> tuple[list[list[Any]], MatchReport | None]:
    """Reads the values that replace the leaves of this process, by stage."""
    records = training.of_these(records)
    arguments = (training.paths, training.required, training.records, records)
    report = match_by_path(*arguments) if by_path else None
    different = difference_text(*arguments) if report is None else None
    if report is not None:
        records = {name: records[name] for name in report.loaded}
        given = {h.path: h.leaf for held in training.by_stage for h in held}
        if (name := unplaced(report, given)) is not None:
            different = f"`{name}` is only a shape here, and not in the checkpoint"
    if different is not None:
        raise DifferentError(different)
    leaves = [
        read_leaves(path, [(h.path, h.leaf) for h in held], records)
        for held in training.by_stage
    ]
    return leaves, report


def read_extra(
    path: epath.Path, given: Mapping[str, Any], manifest: Mapping[str, Any]
) -> RestoredExtra:
    """Reads the values of `extra`, in the structures given or the recorded ones."""
    targets, opaque = targets_of(given, manifest)
    named, structure = named_leaves(targets), jax.tree.structure(targets)
    paths = [name for name, _ in named]
    records = {
        name: record
        for name, record in manifest["leaves"].items()
        if any(is_under(name, target) for target in targets)
    }
    here = {name: record_of(leaf) for name, leaf in named}
    if (different := difference_text(paths, paths, here, records)) is not None:
        raise DifferentError(different)
    values = jax.tree.unflatten(structure, read_leaves(path, named, records))
    return RestoredExtra(list(manifest.get("extra", {})), values, opaque)


def _find(directory: AbstractDirectory, step: int | None) -> dict[str, Any]:
    published = directory.published()
    if step is None:
        step = max(published, default=None)
        for lost in directories.broken(directory, -1 if step is None else step):
            raise ValueError(
                f"The checkpoint of step {lost} in `{directory.path}` is damaged: "
                f"`{MANIFEST}` is missing. {others_text(published, lost)}".strip()
            )
    if step in published:
        steps = list(published)[-MOST_STEPS:]
        return {"step": step, "name": published[step].name, "steps": steps}
    if published:
        raise FileNotFoundError(
            f"There is no checkpoint of step {step} in `{directory.path}`, which holds "
            f"steps {', '.join(map(str, published))}."
        )
    why = "" if directory.path.exists() else ", which does not exist"
    raise FileNotFoundError(
        f"There is no complete checkpoint in `{directory.path}`{why}."
    )


def _from_first(find: Any) -> dict[str, Any]:
    """Broadcasts the result of the first process, or its error."""
    verdict: dict[str, Any] = {}
    error: Exception | None = None
    if jax.process_index() == 0:
        try:
            verdict = find()
        except (OSError, ValueError) as caught:
            error, verdict = caught, {"error": str(caught)[:SHORT]}
    verdict = from_first(verdict)
    if error is not None:
        raise error
    if "error" in verdict:
        raise ValueError(verdict["error"])
    return verdict
