"""Checkpoints of a training, which fit any number of stages and processes."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from jaxtyping import PyTree

from .._stages.local import StageLocal
from .._types import typed
from .errors import DamagedError, DifferentError
from .trees import Training


class Restored(NamedTuple):
    """A training as a checkpoint has it.

    **Attributes:**

    - `step`: how many updates it has completed.
    - `params`, `state`: as they were saved, whole or in pieces as `restore` was asked.
    """

    step: int
    params: PyTree
    state: PyTree


@typed
@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one training, in a directory.

    A checkpoint holds parameters and optimizer state as leaves of the whole tree, each
    under its path: how the tree was cut, and where it was, is no part of it. So a
    training goes on in another number of stages or processes, with the same bits.

    **Arguments:**

    - `directory`: where they are, one directory a checkpoint. In many processes all of
        them must see it under this name.
    - `keep`: how many are kept, the latest ones; left out, all.

    **Raises:** `ModuleNotFoundError` if Orbax is not installed.

    !!! Example

        >>> import functional_opt as fo, jax.numpy as jnp, optax, tempfile
        >>> tx, params = optax.adam(1e-3), {"first": jnp.ones(2), "last": jnp.ones(3)}
        >>> checkpoints = fo.Checkpoints(tempfile.mkdtemp(), keep=3)
        >>> checkpoints.save(0, params, tx.init(params))
        >>> partition = fo.partition(params, {"first": 0, "last": 1})
        >>> staged = fo.stage_local(tx, params, partition)
        >>> pieces = partition.split(params)
        >>> step, pieces, states = checkpoints.restore(
        ...     pieces, staged.init(pieces), staged
        ... )
    """

    directory: str | os.PathLike[str]
    keep: int | None = None

    def __post_init__(self) -> None:
        if self.keep is not None and self.keep < 1:
            raise ValueError(
                f"`keep` must be at least 1, or None to keep all, got {self.keep}."
            )
        _storage()

    @property
    def steps(self) -> tuple[int, ...]:
        """The steps of which there is a complete checkpoint, in order."""
        if not self._path.exists():
            return ()
        if not self._path.is_dir():
            raise NotADirectoryError(f"`{self.directory}` is no directory.")
        with self._manager() as manager:
            return tuple(sorted(manager.all_steps()))

    @property
    def latest(self) -> int | None:
        """The last of `steps`, or None if there is no complete checkpoint."""
        return max(self.steps, default=None)

    @typed
    def save(
        self, step: int, params: PyTree, state: PyTree, staged: StageLocal | None = None
    ) -> None:
        """Saves a training. When this returns, the checkpoint is complete.

        Until it is complete it has another name: killed at any moment, a training goes
        on from the checkpoint before. In many processes all of them must call this;
        each writes the leaves of its own stages.

        **Arguments:**

        - `step`: how many updates are completed, at least 0, and more than in any
            checkpoint that is already there.
        - `params`, `state`: whole trees; or, with `staged`, for each stage its piece,
            and None for the stages of other processes.
        - `staged`: what the pieces are of.

        **Raises:** `ValueError` if there is a later checkpoint, or if pieces are
        missing or do not fit.
        """
        training = Training.of(params, state, staged)
        self._check_new(step)
        storage = _storage()
        saved = storage.Save(training.written, training.copies)
        handler = storage.LeavesHandler(training.paths, training.required)
        with self._manager(handler, create=True) as manager:
            manager.save(step, args=saved, force=True)

    @typed
    def restore(
        self,
        params: PyTree,
        state: PyTree,
        staged: StageLocal | None = None,
        *,
        step: int | None = None,
    ) -> Restored:
        """Restores a training, into any number of stages and processes.

        Arrays are the checkpoint's; functions and numbers of Python are those of
        `params`. In many processes all of them must call this; each reads the leaves
        of its own stages.

        **Arguments:**

        - `params`, `state`: what to replace, for its structure, shapes, dtypes and
            shardings, such as a model and its `init`; `jax.ShapeDtypeStruct`s suffice.
            Whole trees; or, with `staged`, for each stage its piece, and None for the
            stages of other processes.
        - `staged`: what the pieces are of.
        - `step`: the checkpoint to restore; left out, the latest.

        **Returns:** step, parameters and state. Arrays that are committed to devices
        or have a sharding get that of what they replace.

        **Raises:** `FileNotFoundError` if there is no such checkpoint; `ValueError`
        naming the first path that differs if it is of another model or optimizer, or
        what cannot be read if it is damaged.
        """
        training, step = Training.of(params, state, staged), self._existing(step)
        storage = _storage()
        handler = storage.LeavesHandler(training.paths, training.required)
        by_stage = [[(h.path, h.leaf) for h in held] for held in training.by_stage]
        with self._manager(handler) as manager, self._in_words(step):
            leaves = manager.restore(
                step, args=storage.Restore(by_stage, training.records)
            )
        pieces = training.replace(leaves)
        if staged is None:
            pieces = [whole for (whole,) in pieces]
        return Restored(step, *pieces)

    @property
    def _path(self) -> Path:
        return Path(self.directory).absolute()

    def _manager(self, handler: Any = None, create: bool = False) -> Any:
        storage = _storage()
        handler = storage.LeavesHandler() if handler is None else handler
        return storage.open_manager(self._path, handler, self.keep, create)

    def _check_new(self, step: int) -> None:
        if step < 0:
            raise ValueError(f"`step` must be at least 0, got {step}.")
        latest = self.latest
        if latest is not None and step <= latest:
            raise ValueError(
                f"`{self.directory}` has a checkpoint of step {latest}, so that none "
                f"of step {step} can be saved there. Remove the later ones first, or "
                "save to another directory."
            )

    def _existing(self, step: int | None) -> int:
        chosen = self.latest if step is None else step
        step = _storage().of_first_process(-1 if chosen is None else chosen)
        steps = self.steps
        if step in steps:
            return step
        if steps:
            raise FileNotFoundError(
                f"There is none of step {step} in `{self.directory}`, which has the "
                f"checkpoints of steps {', '.join(map(str, steps))}."
            )
        why = "" if self._path.exists() else ", which does not exist"
        raise FileNotFoundError(
            f"There is no complete checkpoint in `{self.directory}`{why}."
        )

    @contextlib.contextmanager
    def _in_words(self, step: int) -> Iterator[None]:
        """Says which checkpoint it is that cannot be restored, and what to do."""
        name = f"The checkpoint of step {step} in `{self.directory}`"
        try:
            yield
        except DifferentError as error:
            raise ValueError(
                f"{name} is of another model or optimizer: {error}. Give `restore` "
                "what was saved."
            ) from None
        except DamagedError as error:
            others = [str(other) for other in self.steps if other != step]
            remedy = f"There are others, of step {', '.join(others)}." if others else ""
            raise ValueError(f"{name} is damaged: {error}. {remedy}".strip()) from error


def _storage() -> ModuleType:
    """The part that needs Orbax, which not every user has."""
    try:
        from . import storage
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"Checkpoints need the package `{error.name}`: `python -m pip install "
            '"functional_opt[checkpoint]"`.',
            name=error.name,
        ) from error
    return storage
