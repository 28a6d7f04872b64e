"""Skipping of gradient spikes."""

from collections.abc import Mapping
from dataclasses import KW_ONLY
from types import MappingProxyType
from typing import Annotated, ClassVar, final, Literal

import optax
from annotated_types import Interval

from ._config import AbstractConfig
from ._extra_args import ExtraArg
from ._fields import number, setting
from ._transformations.spikes import skip_spikes
from ._types import Positive


@final
class SkipSpikes(AbstractConfig):
    """Skips a gradient when its norm or the loss rises far above the last ones.

    The gradient is skipped if the norm or the loss exceeds the mean of the last
    `window` observations by more than `sigma` of their standard deviations, as in
    OLMo-core's `SkipStepOptimizer` ([OLMo 2
    2025](https://arxiv.org/abs/2501.00656), section 3.2) and Levanter's
    `SkipStepConfig`. Where these differ: nothing is skipped before max(2, `window` //
    2) observations are known (Levanter), the deviation is that of a sample, with the
    number of observations less one (OLMo-core), and it is at least $10^{-6}$ times the
    larger of 1 and the mean. As in both, skipped observations remain part of the
    window, so that a lasting change is accepted in the end. Unlike in both,
    observations that are not finite do not.

    ```python
    >>> import functional_opt as fo
    >>> import jax.numpy as jnp
    >>> recipe = fo.Recipe(
    ...     optimizer=fo.SGD(),
    ...     schedule=0.1,
    ...     skip_spikes=fo.SkipSpikes(window=4, sigma=6.0, of="loss"),
    ... )
    >>> transformation = recipe.build()
    >>> params = jnp.ones(2)
    >>> state = transformation.init(params)
    >>> for loss in (2.0, 2.1, 1.9, 9.0, 2.0):
    ...     updates, state = transformation.update(params, state, params, value=loss)
    >>> int(recipe.metrics(state).spikes_skipped)
    1

    ```

    **Arguments:**

    - `window`: the number of observations in the mean and the deviation; at least 2.
    - `sigma`: the largest rise above the mean, in standard deviations; greater than 0.
    - `of`: what is observed: the global "norm" of the gradient, in float32 or wider;
        the "loss", which is the extra argument `value` of `update`, as in
        `optax.contrib.reduce_on_plateau`; or "either", which skips if one of them rises
        too far.
    """

    EXTRA_ARGS: ClassVar[Mapping[str, ExtraArg]] = MappingProxyType(
        {"value": ExtraArg("the loss", when=lambda skip: skip.of != "norm")}
    )
    REFUSED_BY: ClassVar[Mapping[str, str]] = MappingProxyType({})

    _: KW_ONLY
    window: Annotated[int, Interval(ge=2)] = setting(default=128)
    sigma: Positive = number(default=6.0)
    of: Literal["norm", "loss", "either"] = setting(default="norm")

    def around(
        self, inner: optax.GradientTransformation
    ) -> optax.GradientTransformationExtraArgs:
        """The transformation with these gradients skipped."""
        measures = ("norm", "loss") if self.of == "either" else (self.of,)
        return skip_spikes(inner, self.window, self.sigma, measures)
