"""Checkpoints of a training run, which fit any number of stages and processes."""

import contextlib
import operator
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Literal, NamedTuple, SupportsIndex

from jaxtyping import PyTree

from .._config import AbstractConfig
from .._registry import Registry
from .._stages.local import StageLocal
from .._types import typed
from .background import Background
from .extras import Extra
from .recipes import changes, record_recipe
from .results import Read, Restored as Restored
from .trees import check_whole, Training
from .wording import in_words, log_differences


Match = Literal["exact", "by path"]


class _Found(NamedTuple):
    step: int
    path: Any
    others: Sequence[int]
    manifest: dict[str, Any]


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
    - `recipe`: the recipe of the run, or another module of this library. Its fields are
        saved in every checkpoint, and `restore` reports which of them have changed.
    - `registry`: the classes in `recipe`, if `saved_recipe` is to build it again.

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
    recipe: AbstractConfig | None = None
    registry: Registry | None = None
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
        extra: Mapping[str, Any] | None = None,
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
        - `extra`: whatever else the run needs, by name: pytrees such as an
            `equinox.nn.State`, PRNG keys, the position in the data. Arrays, numbers,
            strings, bools and None can be saved. In many processes it must be the same
            in all of them, or consist of arrays that are sharded over them.
        - `wait`: whether to return only when the checkpoint is complete. If false,
            `save` returns when the arrays are copied to the host; the next step may
            then reuse their memory. `wait()`, the next `save` and `restore` wait for
            the rest, and raise the error that it ended with, if any.

        **Raises:** `ValueError` if a later checkpoint exists, or if pieces are missing
        or do not fit; `OSError` if the directory cannot be written.
        """
        step = _as_step(step)
        if staged is None:
            check_whole(params, state)
        training = Training.of(params, state, staged)
        besides, storage = Extra.of(extra or {}), _storage()
        content = storage.Content.of(
            {**training.written, **besides.written},
            [storage.Copy(*copy) for copy in (*training.copies, *besides.copies)],
            [*training.paths, *besides.leaves],
            training.required | set(besides.leaves),
            {
                "format": storage.FORMAT,
                "step": step,
                "extra": besides.structure,
                **record_recipe(self.recipe, self.registry),
            },
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
        extra: Mapping[str, Any] | None = None,
        match: Match = "exact",
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
        - `extra`: values of the same structure as those that were saved, by name. Only
            needed for values with nodes other than dicts, lists and tuples, and for
            shardings; other values are restored as they were saved.
        - `match`: "exact" requires the same leaves on both sides. "by path" restores
            the leaves that have the same path, shape and dtype, leaves the others as
            they are given, and lists all of them in the `report` of the result.

        **Returns:** step, parameters and state; see `Restored` for more. Arrays that
        replace arrays which are committed to devices or have a sharding get that
        sharding.

        **Raises:** `FileNotFoundError` if there is no such checkpoint; `ValueError`
        naming the first path that differs if it is of another model or optimizer, or
        what cannot be read if it is damaged.
        """
        if staged is None:
            check_whole(params, state)
        training = Training.of(params, state, staged)
        read = self._read(training, staged, step, match, extra or {})
        restored = Restored(read.step, *read.trees)
        restored.extra, restored.report = read.extra, read.report
        restored.recipe_changes = tuple(read.changes)
        log_differences(read)
        return restored

    @typed
    def restore_params(
        self,
        params: PyTree,
        staged: StageLocal | None = None,
        *,
        step: SupportsIndex | None = None,
        match: Match = "exact",
    ) -> PyTree:
        """Restores the parameters alone, such as for evaluation or fine-tuning.

        A fresh optimizer state is made of the result by `init`.

        **Arguments:** as of `restore`. With `match="by path"`, what was not restored is
        logged as a warning.

        **Returns:** the parameters, whole or in pieces like `params`.
        """
        training = Training.of_params(params, staged)
        read = self._read(training, staged, step, match, None)
        log_differences(read)
        return read.trees[0]

    @typed
    def saved_recipe(self, *, step: SupportsIndex | None = None) -> Any:
        """The recipe that a checkpoint was saved with; requires `registry`.

        **Arguments:**

        - `step`: the checkpoint; the latest if omitted.

        **Raises:** `ValueError` if it was saved without `recipe` or `registry`, or if
        the recipe contains values that exist in Python only.
        """
        chosen, _, _, manifest = self._find(step)
        document = manifest.get("recipe", {}).get("document")
        if document is None or self.registry is None:
            raise ValueError(
                f"The checkpoint of step {chosen} in `{self.directory}` does not hold "
                "a recipe that can be built again. Save and read it with "
                "`Checkpoints(directory, recipe=..., registry=...)`."
            )
        return self.registry.decode(document)

    def _find(self, step: SupportsIndex | None) -> _Found:
        self.wait()
        storage = _storage()
        with self._access():
            wanted = None if step is None else _as_step(step)
            chosen, path, others = storage.choose(self._opened, wanted)
        with in_words(self.directory, chosen, path, others):
            manifest = storage.read_manifest(path, chosen)
        return _Found(chosen, path, others, manifest)

    def _read(
        self,
        training: Training,
        staged: StageLocal | None,
        step: SupportsIndex | None,
        match: Match,
        extra: Mapping[str, Any] | None,
    ) -> Read:
        """Reads the trees, and `extra` if it is not None."""
        storage = _storage()
        chosen, path, others, manifest = self._find(step)
        found = changes(manifest, self.recipe)
        with in_words(self.directory, chosen, path, others, found):
            by_path = match == "by path"
            leaves, report = storage.read_training(
                path, training, manifest["leaves"], by_path
            )
            values = {} if extra is None else storage.read_extra(path, extra, manifest)
        trees = training.replace(leaves)
        if staged is None:
            trees = [whole for (whole,) in trees]
        return Read(chosen, trees, values, found, report)

    @contextlib.contextmanager
    def _access(self) -> Iterator[None]:
        """Names a missing package if `etils.epath` cannot reach the directory."""
        try:
            yield
        except ImportError as error:
            raise ModuleNotFoundError(
                f"`{self.directory}` cannot be reached: {error}"
            ) from error


def _as_step(step: SupportsIndex) -> int:
    number = operator.index(step)
    if number < 0 or isinstance(step, bool):
        raise ValueError(f"`step` must be at least 0, got {step}.")
    return number


def _storage() -> ModuleType:
    """The implementation that requires Orbax, an optional dependency."""
    try:
        from . import storage
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"Checkpoints require the package `{error.name}`: `python -m pip install "
            '"functional_opt[checkpoint]"`.',
            name=error.name,
        ) from error
    return storage
