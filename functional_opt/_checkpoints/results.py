"""The results of a restore."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxtyping import PyTree

from .matching import MatchReport


class _Restored(NamedTuple):
    step: int
    params: PyTree
    state: PyTree


class Restored(_Restored):
    """A restored training run: a tuple of step, parameters and state.

    **Attributes:**

    - `step`: the number of completed updates.
    - `params`, `state`: the saved values, whole or in pieces like the arguments of
        `restore`.
    - `extra`: a mapping with the `extra` values that were saved.
    - `recipe_changes`: the differences between the saved recipe and that of
        `Checkpoints`, one text per field.
    - `report`: with `match="by path"`, the leaves that were restored or not.

    !!! Example

        >>> import functional_opt as fo, jax.numpy as jnp, optax, tempfile
        >>> params = {"weight": jnp.ones(3)}
        >>> state = optax.adam(1e-3).init(params)
        >>> checkpoints = fo.Checkpoints(tempfile.mkdtemp())
        >>> checkpoints.save(1, params, state, extra={"epoch": 2})
        >>> restored = checkpoints.restore(params, state)
        >>> restored.step, restored.extra["epoch"]
        (1, 2)
    """

    extra: Mapping[str, Any]
    recipe_changes: tuple[str, ...]
    report: MatchReport | None


class Read(NamedTuple):
    """The values that were read from a checkpoint: trees, and possibly `extra`."""

    step: int
    trees: list[Any]
    extra: Mapping[str, Any]
    changes: list[str]
    report: MatchReport | None
