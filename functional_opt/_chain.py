"""What a recipe puts before, after and around its optimizer."""

from collections.abc import Callable

import jax.numpy as jnp
import optax
from jaxtyping import PyTree

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
    track_norm: bool,
    ema_decay: Scalar | None,
) -> optax.GradientTransformationExtraArgs:
    """The clip or the record of the norm, the optimizer, the average, the records."""
    links: list[optax.GradientTransformation] = [optimizer]
    if clip_norm is not None or track_norm:
        links.insert(0, clip_by_global_norm(clip_norm))
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
