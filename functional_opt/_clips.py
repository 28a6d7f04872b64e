"""How gradients and updates are clipped, besides by the norm of the whole model."""

import functools
from dataclasses import KW_ONLY
from typing import Annotated, Any, final

import jax.numpy as jnp
import optax
from annotated_types import Interval

from ._config import AbstractConfig
from ._fields import number, setting
from ._transformations.clipping import (
    clip_by_global_norm,
    in_float32,
    limit_norm,
    limit_norm_by_history,
)
from ._transformations.gradients import checking_each
from ._types import NonNegative, Positive, typed


@final
class ClipByNorm(AbstractConfig):
    """Scales down to a global norm: `optax.clip_by_global_norm`.

    As `Recipe.clip_norm`, which is the norm of the whole model: it is computed in
    float32 or wider. In a group it is that of the group's parameters alone.

    ```python
    >>> import functional_opt as fo
    >>> group = fo.Group(fo.Where("embed"), fo.Adam(), clip=fo.ClipByNorm(1.0))

    ```

    **Arguments:**

    - `max_norm`: the largest norm; greater than 0.
    """

    max_norm: Positive = number()

    @typed
    def build(self) -> optax.GradientTransformation:
        return limit_norm(self.max_norm)


@final
class ClipByBlockRMS(AbstractConfig):
    """Scales each parameter's down to a root mean square: `optax.clip_by_block_rms`.

    Computed in float32 or wider. As the update clip of Adafactor, section 6 of
    [Shazeer and Stern 2018](https://arxiv.org/abs/1804.04235). Nothing is exchanged
    between stages.

    ```python
    >>> import functional_opt as fo
    >>> recipe = fo.Recipe(
    ...     optimizer=fo.Adam(), schedule=0.1, clip_update=fo.ClipByBlockRMS(1.0)
    ... )

    ```

    **Arguments:**

    - `threshold`: the largest root mean square; greater than 0.
    """

    threshold: Positive = number()

    @typed
    def build(self) -> optax.GradientTransformation:
        return in_float32(optax.clip_by_block_rms(self.threshold))


@final
class AdaptiveClip(AbstractConfig):
    """Limits norms relative to those of the parameters: `optax.adaptive_grad_clip`.

    The norm of each unit's gradient is at most `clipping` times that of its weights,
    which counts as at least `eps`: equation 3 of [Brock et al.
    2021](https://arxiv.org/abs/2102.06171). Computed in float32 or wider. Nothing is
    exchanged between stages.

    ```python
    >>> import functional_opt as fo
    >>> recipe = fo.Recipe(
    ...     optimizer=fo.SGD(), schedule=0.1, clip=fo.AdaptiveClip(0.01)
    ... )

    ```

    **Arguments:**

    - `clipping`: the largest ratio of both norms; greater than 0.
    - `eps`: the smallest norm of the weights of a unit; at least 0.
    - `axis`: the axes that the norms of a unit extend over. If None, it depends on the
        rank, as in Optax: all of a vector, and all but the last axis of a matrix or of
        the kernel of a convolution.
    """

    clipping: Positive = number()
    _: KW_ONLY
    eps: NonNegative = number(default=1e-3)
    axis: int | tuple[int, ...] | None = setting(default=None)

    @typed
    def build(self) -> optax.GradientTransformation:
        clip = optax.adaptive_grad_clip(self.clipping, self.eps, self.axis)
        return checking_each(in_float32(clip), self._check_axes)

    def _check_axes(self, path: str, leaf: Any) -> None:
        axes = (self.axis,) if isinstance(self.axis, int) else self.axis or ()
        ndim = jnp.ndim(leaf)
        if not all(-ndim <= axis < ndim for axis in axes):
            raise ValueError(
                f"`AdaptiveClip.axis` = {self.axis} has an axis that the parameter "
                f"`{path}` of shape {jnp.shape(leaf)} does not have. Omit `axis`, or "
                "clip with it in a `Group` of parameters that have these axes."
            )
        if len({axis % ndim for axis in axes}) < len(axes):
            raise ValueError(
                f"`AdaptiveClip.axis` = {self.axis} names an axis of the parameter "
                f"`{path}` of shape {jnp.shape(leaf)} twice. Name it once."
            )


@final
class ClipByRecentNorms(AbstractConfig):
    """Scales down to what the global norm has been, as Levanter's `ClipUpdateNorm`.

    The largest norm is the mean of the last `window` norms, before their clip, plus
    `sigma` of their standard deviations. The mean and the deviation are those of
    [`SkipSpikes`][]: nothing is clipped before max(2, `window` // 2) norms are known,
    the deviation is that of a sample, and norms that are not finite are left out.
    Levanter clips the updates of the optimizer in this way, before the learning rate;
    `Recipe.clip_update` is applied after it.

    ```python
    >>> import functional_opt as fo
    >>> recipe = fo.Recipe(
    ...     optimizer=fo.AdamW(),
    ...     schedule=0.1,
    ...     clip_update=fo.ClipByRecentNorms(window=128, sigma=3.0),
    ... )

    ```

    **Arguments:**

    - `window`: the number of norms in the mean and the deviation; at least 2.
    - `sigma`: the largest distance above the mean, in standard deviations; greater
        than 0.
    """

    _: KW_ONLY
    window: Annotated[int, Interval(ge=2)] = setting(default=128)
    sigma: Positive = number(default=3.0)

    @typed
    def build(self) -> optax.GradientTransformation:
        return limit_norm_by_history(self.window, self.sigma)


Clip = ClipByNorm | ClipByBlockRMS | AdaptiveClip | ClipByRecentNorms


@functools.singledispatch
def recording_norm(clip: Clip) -> optax.GradientTransformation | None:
    """The same clip with a record of the norm, if it computes that of all gradients."""
    del clip
    return None


@recording_norm.register
def _(clip: ClipByNorm) -> optax.GradientTransformation:
    return clip_by_global_norm(clip.max_norm)


@recording_norm.register
def _(clip: ClipByRecentNorms) -> optax.GradientTransformation:
    return limit_norm_by_history(clip.window, clip.sigma, records_norm=True)


def clipped(
    inner: optax.GradientTransformation, clip: Clip | None, clip_update: Clip | None
) -> optax.GradientTransformationExtraArgs:
    """Clips the gradients before a transformation, and its updates after it."""
    before = [] if clip is None else [clip.build()]
    after = [] if clip_update is None else [clip_update.build()]
    if not before and not after:
        return optax.with_extra_args_support(inner)
    return optax.chain(*before, inner, *after)
