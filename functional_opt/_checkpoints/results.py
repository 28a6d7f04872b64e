"""What a restore returns."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxtyping import PyTree

from .matching import MatchReport


class _Restored(NamedTuple):
    step: int
    params: PyTree
    state: PyTree


class Restored(_Restored):
    """A training run as a checkpoint holds it: a tuple of step, parameters and state.

    **Attributes:**

    - `step`: the number of updates completed.
    - `params`, `state`: as they were saved, whole or in pieces as `restore` was asked.
    - `extra`: a mapping with the values that `save` was given as `extra`.
    - `recipe_changes`: how the recipe of `Checkpoints` differs from the saved one, one
        text per field.
    - `report`: with `match="by path"`, which leaves were restored and which were not.

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
    """What was read of a checkpoint: some trees, and perhaps `extra`."""

    step: int
    trees: list[Any]
    extra: Mapping[str, Any]
    changes: list[str]
    report: MatchReport | None
