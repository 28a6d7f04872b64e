"""Checkpoints of a training run, which fit any number of stages and processes."""

import contextlib
import operator
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, NamedTuple, SupportsIndex

from jaxtyping import PyTree

from .._stages.local import StageLocal
from .._types import typed
from .background import Background
from .errors import DamagedError, DifferentError
from .trees import Training


class Restored(NamedTuple):
    """A training run as a checkpoint holds it.

    **Attributes:**

    - `step`: the number of updates completed.
    - `params`, `state`: as they were saved, whole or in pieces as `restore` was asked.
    """

    step: int
    params: PyTree
    state: PyTree


@typed
@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one training run, in a directory.

    A checkpoint holds the leaves of parameters and optimizer state under their paths in
    the whole tree. It does not depend on how the tree was split or where it was, so
    that training continues with the same bits in another number of stages or processes.

    **Arguments:**

    - `directory`: holds one subdirectory per checkpoint. A local path, in which `~` is
        expanded, or a URI such as `gs://bucket/run` that `etils.epath` can write to. In
        many processes it must name the same directory in all of them.
    - `keep`: the number of latest checkpoints to keep; all of them if omitted.

    **Raises:** `ValueError` for a URI that is not supported; `ModuleNotFoundError` if
    Orbax is not installed.

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
    _opened: Any = field(init=False, repr=False, compare=False)
    _background: Background = field(
        init=False, repr=False, compare=False, default_factory=Background
    )

    def __post_init__(self) -> None:
        if self.keep is not None and self.keep < 1:
            raise ValueError(
                f"`keep` must be at least 1, or None to keep all, got {self.keep}."
            )
        opened = _storage().open_directory(self.directory)
        object.__setattr__(self, "_opened", opened)

    @property
    def steps(self) -> tuple[int, ...]:
        """The steps that have a complete checkpoint, in order."""
        with self._access():
            return tuple(self._opened.published())

    @property
    def latest(self) -> int | None:
        """The last of `steps`, or None if there is no complete checkpoint."""
        return max(self.steps, default=None)

    @property
    def progress(self) -> Any:
        """How far a save in the background has come; None if there is none.

        A tuple of `step`, `written` and `total`, the latter two in bytes of arrays that
        this process writes.
        """
        save = self._background.save
        return None if save is None else save.progress

    @typed
    def save(
        self,
        step: SupportsIndex,
        params: PyTree,
        state: PyTree,
        staged: StageLocal | None = None,
        *,
        wait: bool = True,
    ) -> None:
        """Saves a training run.

        Until the checkpoint is complete it has another name: a run that is killed
        continues from the checkpoint before. In many processes all of them must call
        this; each writes the leaves of its own stages.

        Saving again what the latest checkpoint holds, such as at the end of a run that
        has just saved, does nothing.

        **Arguments:**

        - `step`: the number of updates completed, at least 0, and more than in any
            checkpoint that is already there.
        - `params`, `state`: whole trees; or, with `staged`, one piece per stage, and
            None for the stages of other processes.
        - `staged`: the `StageLocal` that the pieces belong to.
        - `wait`: whether to return only when the checkpoint is complete. If false,
            `save` returns when the arrays are copied to the host; the next step may
            then reuse their memory. `wait()`, the next `save` and `restore` wait for
            the rest, and raise the error that it ended with, if any.

        **Raises:** `ValueError` if a later checkpoint exists, or if pieces are missing
        or do not fit; `OSError` if the directory cannot be written.
        """
        step = _as_step(step)
        training = Training.of(params, state, staged)
        storage = _storage()
        header = {"format": storage.FORMAT, "step": step}
        content = storage.Content.of(
            training.written,
            [storage.Copy(*copy) for copy in training.copies],
            training.paths,
            training.required,
            header,
        )
        with self._background.lock, self._access():
            self.wait()
            storage.Saver(self._opened, self.keep, self._background).save(
                step, content, wait
            )

    def wait(self) -> None:
        """Waits for a save in the background, and raises the error it ended with."""
        self._background.wait()

    @typed
    def restore(
        self,
        params: PyTree,
        state: PyTree,
        staged: StageLocal | None = None,
        *,
        step: SupportsIndex | None = None,
    ) -> Restored:
        """Restores a training run, into any number of stages and processes.

        Arrays come from the checkpoint; functions and Python numbers are those of
        `params`. In many processes all of them must call this; each reads the leaves
        of its own stages.

        **Arguments:**

        - `params`, `state`: what to replace, for its structure, shapes, dtypes and
            shardings, such as a model and its `init`; `jax.ShapeDtypeStruct`s suffice.
            Whole trees; or, with `staged`, one piece per stage, and None for the stages
            of other processes.
        - `staged`: the `StageLocal` that the pieces belong to.
        - `step`: the checkpoint to restore; the latest if omitted.

        **Returns:** step, parameters and state. Arrays that replace arrays which are
        committed to devices or have a sharding get that sharding.

        **Raises:** `FileNotFoundError` if there is no such checkpoint; `ValueError`
        naming the first path that differs if it is of another model or optimizer, or
        what cannot be read if it is damaged.
        """
        self.wait()
        training = Training.of(params, state, staged)
        storage = _storage()
        with self._access():
            wanted = None if step is None else _as_step(step)
            chosen, path = storage.choose(self._opened, wanted)
        with self._in_words(chosen, path):
            manifest = storage.read_manifest(path, chosen)
            leaves = storage.read_training(path, training, manifest["leaves"])
        pieces = training.replace(leaves)
        if staged is None:
            pieces = [whole for (whole,) in pieces]
        return Restored(chosen, *pieces)

    @contextlib.contextmanager
    def _access(self) -> Iterator[None]:
        """Says what is missing where `etils.epath` cannot reach the directory."""
        try:
            yield
        except ImportError as error:
            raise ModuleNotFoundError(
                f"`{self.directory}` cannot be reached: {error}"
            ) from error

    @contextlib.contextmanager
    def _in_words(self, step: int, path: Any) -> Iterator[None]:
        """Says which checkpoint it is that cannot be restored, and what to do."""
        name = f"The checkpoint of step {step} in `{self.directory}`"
        try:
            yield
        except DifferentError as error:
            raise ValueError(
                f"{name} is of another model or optimizer: {error}. Pass `restore` "
                "what was saved."
            ) from None
        except DamagedError as error:
            if not path.exists():
                raise FileNotFoundError(
                    f"{name} has been removed while it was read."
                ) from error
            remedy = _storage().others_text(self.steps, step)
            raise ValueError(f"{name} is damaged: {error}. {remedy}".strip()) from error


def _as_step(step: SupportsIndex) -> int:
    number = operator.index(step)
    if number < 0 or isinstance(step, bool):
        raise ValueError(f"`step` must be at least 0, got {step}.")
    return number


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
