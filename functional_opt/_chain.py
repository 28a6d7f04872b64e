"""What a recipe puts before, after and around its optimizer."""

from collections.abc import Callable

import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from ._clips import Clip, recording_norm
from ._transformations.accumulation import accumulated
from ._transformations.averaging import params_ema
from ._transformations.clipping import clip_by_global_norm
from ._transformations.dtypes import same_dtypes
from ._transformations.gradients import real_only
from ._transformations.tracking import track
from ._types import LearningRate, Scalar


def linked(
    optimizer: optax.GradientTransformationExtraArgs,
    schedule: LearningRate,
    *,
    clip_norm: Scalar | None,
    clip: Clip | None,
    track_norm: bool,
    ema_decay: Scalar | None,
) -> optax.GradientTransformationExtraArgs:
    """The clips or the record of the norm, the optimizer, the average, the records."""
    recording = recording_norm(clip) if clip is not None else None
    links: list[optax.GradientTransformation] = []
    if clip_norm is not None or (track_norm and recording is None):
        links.append(clip_by_global_norm(clip_norm))
    if clip is not None:
        # The norm before the first clip is the one that counts.
        links.append(clip.build() if links or recording is None else recording)
    links.append(optimizer)
    if ema_decay is not None:
        links.append(params_ema(ema_decay))
    return same_dtypes(optax.chain(*links, track(schedule)))


def averaging_gradients(
    transformation: optax.GradientTransformationExtraArgs, count: int
) -> optax.GradientTransformationExtraArgs:
    """Averages this many gradients into each update."""
    if count == 1:
        return transformation
    # Gradients are added up in float32, without their imaginary parts.
    return real_only(accumulated(transformation, count), "`Recipe.accumulate`")


def skipping_nonfinite(
    transformation: optax.GradientTransformationExtraArgs,
) -> optax.GradientTransformationExtraArgs:
    """Skips every gradient with a value that is not finite."""
    never = jnp.iinfo(jnp.int32).max
    skipping = optax.apply_if_finite(transformation, never)
    return optax.with_extra_args_support(skipping)


def checking_params(
    transformation: optax.GradientTransformationExtraArgs,
    check: Callable[[PyTree], None],
) -> optax.GradientTransformationExtraArgs:
    """Checks the parameters before the state is made."""

    def init(params: PyTree) -> PyTree:
        check(params)
        return transformation.init(params)

    return optax.GradientTransformationExtraArgs(init, transformation.update)
