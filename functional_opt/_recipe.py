from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY
from typing import Any, final

import jax.numpy as jnp
import optax
from jax import Device
from jax.sharding import Mesh
from jaxtyping import PyTree

from ._base import AbstractOptimizer, AbstractSchedule
from ._composition.assignments import assigned, table
from ._composition.decay import decayed
from ._composition.frozen import without_frozen
from ._composition.held import all_in
from ._composition.state_dtype import with_state_dtype
from ._config import AbstractConfig
from ._durations import known_steps, resolved, unresolved
from ._fields import as_dtype, number, part, setting
from ._metrics import Metrics, metrics_of
from ._optimizers import ScheduleFree
from ._previews import check_fits
from ._stages.local import stage_local, StageLocal
from ._stages.partition import only_params, StagePartition
from ._transformations.averaging import averaged_params, params_ema
from ._transformations.clipping import clip_by_global_norm
from ._transformations.dtypes import same_dtypes
from ._transformations.gradients import none_as_zero, real_only
from ._transformations.tracking import track
from ._types import (
    DecayRate,
    FloatDtype,
    NonNegative,
    Positive,
    PositiveCount,
    Scalar,
    typed,
)
from ._where import Selection


@final
class Recipe(AbstractConfig):
    """The usual chain around one optimizer: clip, step, decay, average, accumulate.

    ```python
    >>> import functional_opt as fo
    >>> recipe = fo.Recipe(
    ...     optimizer=fo.AdamW(b2=0.95),
    ...     schedule=fo.Cosine(
    ...         peak_value=3e-4,
    ...         warmup_steps=fo.Fraction(0.01),
    ...         decay_steps=fo.Fraction(1.0),
    ...     ),
    ...     clip_norm=1.0,
    ...     weight_decay=0.1,
    ...     decay_where=fo.Where(min_ndim=2),
    ...     accumulate=4,
    ...     skip_nonfinite=True,
    ...     ema_decay=0.999,
    ... )
    >>> transformation = recipe.build(total_steps=10_000)

    ```

    **Arguments:**

    - `optimizer`: what makes a step of a gradient; `Groups` for several.
    - `schedule`: its learning rate, as a function of the updates completed or a number.
    - `clip_norm`: the norm that the gradient, all parameters together, is scaled down
        to where it is larger; greater than 0. None clips nothing.
    - `weight_decay`: the decoupled weight decay, in place of the optimizer's own; per
        unit of learning rate, at least 0. None leaves the optimizer as it is.
    - `decay_where`: which parameters decay. None leaves this to the optimizer's mask,
        or else decays all.
    - `accumulate`: how many gradients are averaged into one update, in float32 whatever
        the parameters are; at least 1. In between, the updates are 0.
    - `skip_nonfinite`: whether a gradient in which anything, anywhere in the model, is
        not finite changes nothing: no state, no count, no parameter. It is counted.
    - `ema_decay`: how much of the moving average of the parameters stays at each
        update, in [0, 1). None keeps no average.
    - `state_dtype`: the dtype that the optimizer keeps its moments in, by its own
        fields such as `mu_dtype` where it has them. Parameters of a narrower dtype are
        updated in this one. None leaves the optimizer as it is.
    - `track_norm`: whether to keep the norm of the gradient for `metrics`, where
        nothing is clipped. It costs a reduction, and stages a round of exchange; the
        clip's own norm costs nothing and is always kept.
    """

    _: KW_ONLY
    optimizer: AbstractOptimizer = part()
    schedule: AbstractSchedule | Scalar = part()
    clip_norm: Positive | None = number(default=None)
    weight_decay: NonNegative | None = number(default=None)
    decay_where: Selection | None = setting(default=None)
    accumulate: PositiveCount = setting(default=1)
    skip_nonfinite: bool = setting(default=False)
    ema_decay: DecayRate | None = number(default=None)
    state_dtype: FloatDtype | None = setting(default=None, converter=as_dtype)
    track_norm: bool = setting(default=False)

    def _check(self) -> None:
        if self.decay_where is not None and self.weight_decay is None:
            raise ValueError(
                f"`Recipe.decay_where` needs `Recipe.weight_decay`, got "
                f"{self.decay_where} and None. Say how much is to decay there; the "
                "optimizer's own weight decay goes by the optimizer's own mask."
            )
        averages = any(isinstance(x, ScheduleFree) for x in all_in(self.optimizer))
        if self.ema_decay is not None and averages:
            raise ValueError(
                f"`Recipe.ema_decay` = {self.ema_decay} and `ScheduleFree` both "
                "average the parameters. Leave one out."
            )

    @typed
    def resolve(self, total_steps: PositiveCount) -> "Recipe":
        """The same recipe with every length in updates, in a run of so many.

        **Arguments:**

        - `total_steps`: how many updates the run makes, at least 1. With `accumulate`
            it takes as many times more gradients.

        **Raises:** `ValueError` naming the phases if they take longer than the run.
        """
        recipe = resolved(self, total_steps)
        if isinstance(recipe.schedule, AbstractSchedule):
            check_fits(recipe.schedule, total_steps)
        return recipe

    @typed
    def build(
        self, total_steps: PositiveCount | None = None
    ) -> optax.GradientTransformationExtraArgs:
        """The Optax transformation.

        In the order of Optax's chains: the clip, the optimizer with its decay, the
        average of the new parameters; `optax.MultiSteps` around these, and around it
        `optax.apply_if_finite`. Frozen parameters are left out of all of it.

        **Arguments:**

        - `total_steps`: as in `resolve`; needed where a length is a `Fraction`.

        **Raises:** `ValueError` naming the field whose length is not known, or the
        phases that take longer than the run.
        """
        if total_steps is not None:
            return self.resolve(total_steps).build()
        for config, name in unresolved(self):
            known_steps(config, name)
        transformation = self._accumulated(self._chain())
        if self.state_dtype is not None:
            transformation = real_only(transformation, "`Recipe.state_dtype`")
        if self.skip_nonfinite:
            never = jnp.iinfo(jnp.int32).max
            transformation = optax.apply_if_finite(transformation, never)
        trained = without_frozen(self.optimizer, transformation)
        return self._checked(none_as_zero(trained))

    @typed
    def build_mpmd(
        self,
        params: PyTree,
        partition: StagePartition,
        *,
        total_steps: PositiveCount | None = None,
        meshes: Sequence[Mesh | Device] | None = None,
        donate: bool = False,
        grads: PyTree | None = None,
        extra_args: Mapping[str, Any] | None = None,
        state_stage_of: Callable[[tuple[Any, ...], Any], Any] | None = None,
    ) -> StageLocal:
        """`build(total_steps)`, split into one program per stage. See `stage_local`.

        The `build_mpmd` of the optimizer itself is not called.

        **Arguments:**

        - `total_steps`: as in `build`.
        - `params`, `partition`, `meshes`, `donate`, `grads`, `extra_args`,
            `state_stage_of`: as in `stage_local`. Gradients in another dtype than the
            parameters, such as float32 gradients of bfloat16 parameters, require
            `grads`.
        """
        return stage_local(
            self.build(total_steps),
            params,
            partition,
            meshes=meshes,
            donate=donate,
            grads=grads,
            extra_args=extra_args,
            state_stage_of=state_stage_of,
        )

    def metrics(self, state: PyTree) -> Metrics:
        """What the state knows of its run, without a computation or a transfer.

        **Arguments:**

        - `state`: a state of what `build` made; or of what `build_mpmd` made, merged or
            the piece of any stage: these are equal on all of them.
        """
        return metrics_of(state)

    def eval_params(self, state: PyTree, params: PyTree) -> PyTree:
        """The parameters to evaluate with: averaged, by `ema_decay` or `ScheduleFree`.

        Without either, the parameters themselves. Dtypes stay.

        **Arguments:**

        - `state`, `params`: as an update left them, whole or the pieces of one stage.
        """
        return averaged_params(state, params)

    def explain(self, params: PyTree) -> str:
        """A table of what each parameter gets: optimizer, scale of schedule, decay.

        **Arguments:**

        - `params`: the parameters, or their shapes.
        """
        params = only_params(params)
        self._check_where(params)
        return table(params, assigned(self._decayed_optimizer(), params))

    def _chain(self) -> optax.GradientTransformationExtraArgs:
        optimizer = self._decayed_optimizer()
        if self.state_dtype is not None:
            optimizer = with_state_dtype(optimizer, jnp.dtype(self.state_dtype))
        links: list[Any] = [optimizer.build(self.schedule)]
        if self.clip_norm is not None or self.track_norm:
            links.insert(0, clip_by_global_norm(self.clip_norm))
        if self.ema_decay is not None:
            links.append(params_ema(self.ema_decay))
        return same_dtypes(optax.chain(*links, track(self.schedule)))

    def _decayed_optimizer(self) -> AbstractOptimizer:
        if self.weight_decay is None:
            return self.optimizer
        return decayed(self.optimizer, self.weight_decay, self.decay_where)

    def _accumulated(
        self, transformation: optax.GradientTransformationExtraArgs
    ) -> optax.GradientTransformationExtraArgs:
        if self.accumulate == 1:
            return transformation
        steps = optax.MultiSteps(transformation, self.accumulate)
        # Its update takes extra arguments, which its type does not show. It adds up
        # gradients in float32, without their imaginary parts.
        accumulated = optax.GradientTransformationExtraArgs(
            *steps.gradient_transformation()
        )
        return real_only(accumulated, "`Recipe.accumulate`")

    def _checked(
        self, transformation: optax.GradientTransformationExtraArgs
    ) -> optax.GradientTransformationExtraArgs:
        """Checks the rule of the decay on the whole tree, before groups see a part."""

        def init(params: PyTree) -> PyTree:
            self._check_where(params)
            return transformation.init(params)

        return optax.GradientTransformationExtraArgs(init, transformation.update)

    def _check_where(self, params: PyTree) -> None:
        if self.decay_where is not None:
            self.decay_where(params)
