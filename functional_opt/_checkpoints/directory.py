"""The directory of the checkpoints of a run, and how a checkpoint becomes complete.

A save writes to a draft directory with a unique name, and then publishes it in one
step. Unpublished drafts are not listed, and are removed once a later step is complete.
A killed writer therefore leaves no incomplete checkpoint, and two writers cannot damage
each other's checkpoints.
"""

import abc
import contextlib
import logging
import os
import re
import typing
from collections.abc import Iterator

from etils import epath

from .files import entries, is_local, sync_directory, write_file


ITEM = "default"  # what Orbax calls the item of a checkpoint that holds only one
MANIFEST = "leaves.json"
PARTS = "parts"
MARKER = "functional_opt.checkpoint"
ABOUT = b"A checkpoint of functional_opt: default/leaves.json lists what it holds.\n"

_DRAFT = re.compile(r"(\d+)\.([0-9a-f]{16})\.(writing|removed)")
_OF_ORBAX = re.compile(r"(\d+)\.orbax-checkpoint-tmp.*")  # which 0.1.0 wrote with
_PUBLISHED = re.compile(r"(\d+)(\.[0-9a-f]{16})?")
_OURS = re.compile(rf"{ITEM}|{PARTS}|{MARKER}|_CHECKPOINT_METADATA|commit_success\.txt")
_OURS_INSIDE = re.compile(rf"{MANIFEST}|commit_success\.txt|(params|state|extra).*")

logger = logging.getLogger("functional_opt")


class LostError(Exception):
    """Another writer has saved this step or a later one, so the draft is abandoned."""


def overtaken(directory: "AbstractDirectory", step: int) -> ValueError:
    """The error for a writer that has lost."""
    return ValueError(
        f"Cannot save step {step} to `{directory.path}`: another writer has saved this "
        "step or a later one there meanwhile. Use one directory per run."
    )


def open_directory(given: str | os.PathLike[str]) -> "AbstractDirectory":
    """The directory of a path or a URI; nothing is read yet.

    **Raises:** `ValueError` for an empty string, and for a URI that `etils.epath` has
    no backend for.
    """
    text = os.fspath(given)
    if not text:
        raise ValueError(
            "The directory of checkpoints must not be ''. Use '.' for the current one."
        )
    if re.match(r"[A-Za-z][\w+.-]+:/(?!/)", text):
        raise ValueError(
            f"`{text}` is a URI without its second slash, which `pathlib.Path` "
            "removes. Pass the directory as a string or as an `etils.epath.Path`; a "
            f"local directory of that name is `./{text}`."
        )
    try:
        path = epath.Path(given)
    except KeyError:
        scheme = text.partition("://")[0]
        raise ValueError(
            f"`{text}` cannot be a directory of checkpoints: `etils.epath` has no "
            f"backend for `{scheme}://`. Use a local path, or a URI such as gs:// or "
            "s3://."
        ) from None
    if is_local(path):
        return LocalDirectory(path.expanduser().resolve())
    return ObjectStore(path)


class AbstractDirectory(abc.ABC):
    """A directory of checkpoints, one subdirectory per step."""

    path: epath.Path

    @abc.abstractmethod
    def published(self) -> dict[int, epath.Path]:
        """The complete checkpoints by step, in order."""

    @abc.abstractmethod
    def draft(self, step: int, token: str) -> epath.Path:
        """The directory that a save of this step writes to."""

    @abc.abstractmethod
    def publish(self, draft: epath.Path, step: int, manifest: bytes) -> None:
        """Publishes a draft as the complete checkpoint of its step.

        **Raises:** `LostError` if another writer was faster.
        """

    @abc.abstractmethod
    def remove(self, path: epath.Path) -> None:
        """Removes a checkpoint or draft; an interrupted removal is not listed."""

    @abc.abstractmethod
    def garbage(self, latest: int) -> Iterator[epath.Path]:
        """The drafts of killed writers, up to the latest step."""


def begin(directory: AbstractDirectory, step: int, token: str) -> epath.Path:
    """Creates the directory of a draft."""
    draft = directory.draft(step, token)
    for path in (directory.path, draft, draft / ITEM, draft / PARTS):
        path.mkdir(parents=True, exist_ok=True)
    (draft / MARKER).write_bytes(ABOUT)
    return draft


def broken(directory: AbstractDirectory, after: int) -> Iterator[int]:
    """Later steps with a checkpoint that lacks its manifest.

    A killed writer does not cause this: drafts have other names, and the oldest
    checkpoints are removed first.
    """
    for path in entries(directory.path):
        if path.name.isdecimal() and int(path.name) > after and _is_ours(path):
            yield int(path.name)


def sweep(directory: AbstractDirectory, keep: int | None) -> None:
    """Removes the checkpoints beyond `keep`, and the drafts of killed writers."""
    published = directory.published()
    old = list(published.values())[:-keep] if keep is not None else []
    for path in (*old, *directory.garbage(max(published))):
        try:
            directory.remove(path)
        except OSError as error:  # The checkpoint itself is complete.
            logger.warning("`%s` could not be removed: %s", path, error)


@typing.final
class LocalDirectory(AbstractDirectory):
    """A directory of a file system: a checkpoint is published by renaming it.

    A rename is atomic, and fails if there is a checkpoint of that name.
    """

    def __init__(self, path: epath.Path):
        self.path = path

    def published(self) -> dict[int, epath.Path]:
        return dict(sorted((s, p) for s, p, whole in self._numbered() if whole))

    def draft(self, step: int, token: str) -> epath.Path:
        final = self.path / str(step)
        if final.exists() and not _is_ours(final):
            raise FileExistsError(f"`{final}` exists, but is not a checkpoint.")
        return self.path / f"{step}.{token}.writing"

    def publish(self, draft: epath.Path, step: int, manifest: bytes) -> None:
        _check_still_ours(draft, step, self.published())
        write_file(draft / ITEM / MANIFEST, manifest)
        final = self.path / str(step)
        self._clear(final)
        try:
            os.rename(draft, final)
        except OSError as error:
            self.remove(draft)
            raise LostError from error
        sync_directory(self.path)

    def remove(self, path: epath.Path) -> None:
        if not path.name.endswith(".removed"):
            token = os.urandom(8).hex()
            step = path.name.partition(".")[0]
            path = path.rename(self.path / f"{step}.{token}.removed")
        path.rmtree(missing_ok=True)

    def garbage(self, latest: int) -> Iterator[epath.Path]:
        for path in entries(self.path):
            found = _DRAFT.fullmatch(path.name) or _OF_ORBAX.fullmatch(path.name)
            if found and (int(found[1]) <= latest or path.name.endswith(".removed")):
                yield path
        for step, path, whole in self._numbered():
            if step <= latest and not whole and _is_ours(path):
                yield path

    def _clear(self, final: epath.Path) -> None:
        """Makes way for a checkpoint where the rest of one is.

        It is moved aside first: another writer may just have put a complete one there.
        """
        if not final.exists() or _is_whole(final):
            return
        aside = final.rename(self.path / f"{final.name}.{os.urandom(8).hex()}.removed")
        if _is_whole(aside):
            os.rename(aside, final)
        else:
            self.remove(aside)

    def _numbered(self) -> Iterator[tuple[int, epath.Path, bool]]:
        """The directories that are named like steps, and whether they are complete."""
        for path in entries(self.path):
            if path.name.isdecimal() and str(int(path.name)) == path.name:
                yield int(path.name), path, _is_whole(path)


@typing.final
class ObjectStore(AbstractDirectory):
    """A directory without renames: a checkpoint is published by its manifest.

    Here only the writing of one file is atomic. Every writer therefore keeps its own
    directory, and two files tell a published directory from an abandoned one. A writer
    that cleans up first removes the marker of an abandoned directory; a writer that
    publishes first writes its manifest and then checks that its marker still exists.
    Whichever of the two comes second sees what the other did.
    """

    def __init__(self, path: epath.Path):
        self.path = path

    def published(self) -> dict[int, epath.Path]:
        whole = [(s, p) for s, p in self._all() if _is_whole(p)]
        return dict(sorted(whole, key=lambda found: (found[0], found[1].name)))

    def draft(self, step: int, token: str) -> epath.Path:
        return self.path / f"{step}.{token}"

    def publish(self, draft: epath.Path, step: int, manifest: bytes) -> None:
        _check_still_ours(draft, step, self.published())
        write_file(draft / ITEM / MANIFEST, manifest)
        others = [p for s, p in self._all() if s == step and p.name != draft.name]
        if any(map(_is_whole, others)) or not (draft / MARKER).exists():
            self.remove(draft)
            raise LostError

    def remove(self, path: epath.Path) -> None:
        (path / ITEM / MANIFEST).unlink(missing_ok=True)
        path.rmtree(missing_ok=True)

    def garbage(self, latest: int) -> Iterator[epath.Path]:
        for step, path in self._all():
            if step > latest or _is_whole(path) or not _is_ours(path):
                continue
            (path / MARKER).unlink(missing_ok=True)
            if not _is_whole(path):
                yield path

    def _all(self) -> Iterator[tuple[int, epath.Path]]:
        _forget_listings(self.path)
        for path in entries(self.path):
            if found := _PUBLISHED.fullmatch(path.name):
                yield int(found[1]), path


def _forget_listings(path: epath.Path) -> None:
    """Clears the listing cache of fsspec, which etils uses for some file systems.

    fsspec caches directory listings, and would not see files of other processes:
    see https://github.com/fsspec/filesystem_spec/blob/master/fsspec/dircache.py.
    """
    scheme = os.fspath(path).partition("://")[0]
    options = {"gs": ("gcs", {"finalize_on_close": True})}
    name, arguments = options.get(scheme, (scheme, {}))
    with contextlib.suppress(ImportError, ValueError):
        import fsspec

        fsspec.filesystem(name, **arguments).invalidate_cache()


def _check_still_ours(
    draft: epath.Path, step: int, published: dict[int, epath.Path]
) -> None:
    if max(published, default=-1) >= step:
        (draft / MARKER).unlink(missing_ok=True)
    if not (draft / MARKER).exists():
        raise LostError


def _is_whole(path: epath.Path) -> bool:
    return (path / ITEM / MANIFEST).exists()


def _is_ours(path: epath.Path) -> bool:
    """Whether a directory contains only the remains of a checkpoint.

    A checkpoint that another program has written with Orbax belongs to the user.
    """
    try:
        names = [child.name for child in path.iterdir()]
        inside = [x.name for x in (path / ITEM).iterdir()] if ITEM in names else []
    except (FileNotFoundError, NotADirectoryError):  # or just removed by another
        return False
    return all(map(_OURS.fullmatch, names)) and all(map(_OURS_INSIDE.fullmatch, inside))
