"""What the state of a recipe's transformation holds about its run."""

from typing import Any, NamedTuple

import jax
import optax
from jaxtyping import PyTree

from ._transformations.clipping import NormState
from ._transformations.finding import find_all
from ._transformations.spikes import SkipSpikesState
from ._transformations.tracking import TrackState


class Metrics(NamedTuple):
    """Scalars about a run, read from the optimizer state.

    **Attributes:**

    - `updates_completed`: the number of updates completed; int32.
    - `learning_rate`: the learning rate of the last update, or of the first one if none
        is completed yet; float32.
    - `gradient_norm`: the norm of the last update's gradient, over all parameters that
        are not frozen, before the clip; float32. None if no clip of the recipe computes
        it, and `Recipe.track_norm` is false.
    - `steps_skipped`: the number of gradients skipped because they were not finite;
        int32. None if the recipe skips none.
    - `spikes_skipped`: the number of gradients skipped by `Recipe.skip_spikes`; int32.
        None without it.

    !!! Example

        >>> import functional_opt as fo, jax.numpy as jnp
        >>> recipe = fo.Recipe(optimizer=fo.AdamW(), schedule=fo.Constant(0.1))
        >>> state = recipe.build().init(jnp.ones(3))
        >>> int(recipe.metrics(state).updates_completed)
        0
    """

    updates_completed: jax.Array
    learning_rate: jax.Array
    gradient_norm: jax.Array | None
    steps_skipped: jax.Array | None
    spikes_skipped: jax.Array | None


def metrics_of(state: PyTree) -> Metrics:
    tracked = find_all(state, TrackState)
    if not tracked:
        raise ValueError(
            "`state` is not the state of a recipe's transformation: it has no "
            f"`{TrackState.__name__}`. Pass what `init` or the last update returned."
        )
    norms: list[Any] = find_all(state, NormState)
    skips: list[Any] = find_all(state, optax.ApplyIfFiniteState)
    spikes = find_all(state, SkipSpikesState)
    return Metrics(
        tracked[0].updates_completed,
        tracked[0].learning_rate,
        norms[0].norm if norms else None,
        skips[0].total_notfinite if skips else None,
        spikes[0].total_spikes if spikes else None,
    )
