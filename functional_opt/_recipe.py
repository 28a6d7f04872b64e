from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY
from typing import Any, final

import jax.numpy as jnp
import optax
from jax import Device
from jax.sharding import Mesh
from jaxtyping import PyTree

from ._base import AbstractOptimizer, AbstractSchedule, all_in, WeightDecay
from ._chain import averaging_gradients, checking_params, linked, skipping_nonfinite
from ._clips import Clip, clipped
from ._composition.assignments import assigned, table
from ._composition.clipped import UpdateClipped
from ._composition.decay import decayed
from ._composition.frozen import without_frozen
from ._composition.rates import schedules_in
from ._composition.state_dtype import with_state_dtype
from ._config import AbstractConfig
from ._durations import known_steps, resolved, unresolved
from ._extra_args import check_inside, check_staged, explain_extra_args
from ._fields import as_dtype, number, part, setting
from ._metrics import Metrics, metrics_of
from ._optimizers.schedule_free import AVERAGING
from ._previews import check_fits
from ._schedules.constant import as_schedule
from ._spikes import SkipSpikes
from ._stages.hyperparameters import Hyperparameters
from ._stages.options import Donate, MeshAxes, StageOptions, TiedGrads
from ._stages.partition import only_params, StagePartition
from ._stages.splitting import split
from ._stages.steps import StageLocal
from ._transformations.averaging import averaged_params
from ._transformations.gradients import none_as_zero, real_only
from ._types import (
    DecayRate,
    FloatDtype,
    Positive,
    PositiveCount,
    Scalar,
    Schedule,
    typed,
)
from ._undone import check_clip_update
from ._where import Selection


@final
class Recipe(AbstractConfig):
    """An optimizer with its learning rate, clipping, weight decay and accumulation.

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

    - `optimizer`: the optimizer; `Groups` for several.
    - `schedule`: the learning rate: a schedule, any other function of the number of
        completed updates, or a number, which is the same as `Constant`.
    - `clip_norm`: the largest global norm of the gradient; larger gradients are scaled
        down to it; greater than 0. None does not clip. The norm is computed in float32
        or wider: for narrower gradients it differs from `optax.global_norm`, which
        loses small terms.
    - `clip`: how gradients are clipped after `clip_norm`, if at all.
    - `clip_update`: how updates, with their weight decay, are clipped, if at all.
    - `weight_decay`: decoupled weight decay per unit of learning rate, at least 0, in
        place of the optimizer's own: a number, or a schedule of the number of completed
        updates. If None, the optimizer is not changed.
    - `decay_where`: the parameters that decay. If None, the optimizer's own mask
        decides, or else all decay.
    - `accumulate`: the number of gradients that are averaged into one update, in
        float32 for parameters of any dtype; at least 1. The updates in between are 0.
    - `skip_nonfinite`: whether a gradient with any value that is not finite, anywhere
        in the model, is skipped: parameters, state and counters do not change, except
        for the number of skipped gradients.
    - `skip_spikes`: which gradients are skipped because the loss or their norm rises
        far above the last ones. Every gradient is observed by itself, also where
        several are accumulated. If None, none is skipped.
    - `ema_decay`: decay rate of the moving average of the parameters, in [0, 1). If
        None, there is no average.
    - `state_dtype`: dtype of the optimizer's moments. It sets the fields of the
        optimizer for it, such as `mu_dtype`, if there are any. Parameters of a narrower
        dtype are updated in this one. If None, the optimizer is not changed.
    - `track_norm`: whether `metrics` reports the norm of the gradient although no clip
        of the recipe computes it. This costs a reduction and, on stages, a round of
        exchange. The norm that `clip_norm` computes, or else a `clip` which is
        [`ClipByNorm`][] or [`ClipByRecentNorms`][], is always reported, at no cost.
    """

    _: KW_ONLY
    optimizer: AbstractOptimizer = part()
    schedule: AbstractSchedule | Schedule | Scalar = part(convert=as_schedule)
    clip_norm: Positive | None = number(default=None)
    clip: Clip | None = part(default=None)
    clip_update: Clip | None = part(default=None)
    weight_decay: WeightDecay | None = part(default=None)
    decay_where: Selection | None = setting(default=None)
    accumulate: PositiveCount = setting(default=1)
    skip_nonfinite: bool = setting(default=False)
    skip_spikes: SkipSpikes | None = part(default=None)
    ema_decay: DecayRate | None = number(default=None)
    state_dtype: FloatDtype | None = setting(default=None, convert=as_dtype)
    track_norm: bool = setting(default=False)

    def _check(self) -> None:
        if self.decay_where is not None and self.weight_decay is None:
            raise ValueError(
                f"`Recipe.decay_where` requires `Recipe.weight_decay`, got "
                f"{self.decay_where} and None. Set it; the optimizer's own weight "
                "decay uses the optimizer's own mask."
            )
        check_inside(all_in(self.optimizer), "Recipe")
        held = all_in(self.optimizer)
        check_clip_update("Recipe", self.clip_update, UpdateClipped, held)
        averages = [x for x in all_in(self.optimizer) if isinstance(x, AVERAGING)]
        if self.ema_decay is not None and averages:
            raise ValueError(
                f"`Recipe.ema_decay` = {self.ema_decay} and "
                f"`{type(averages[0]).__name__}` both average the parameters. Omit one."
            )

    @typed
    def resolve(self, total_steps: PositiveCount) -> "Recipe":
        """The same recipe with every duration in updates.

        **Arguments:**

        - `total_steps`: the number of updates of the run, at least 1. It requires
            `accumulate` times as many gradients.

        **Raises:** `ValueError` naming the phases if they take longer than the run.
        """
        recipe = resolved(self, total_steps)
        for schedule in schedules_in(recipe):
            check_fits(schedule, total_steps)
        return recipe

    @typed
    def build(
        self, total_steps: PositiveCount | None = None
    ) -> optax.GradientTransformationExtraArgs:
        """The Optax transformation.

        It chains the clips, the optimizer with its decay and the average of the new
        parameters. An accumulation with the state of `optax.MultiSteps` wraps this
        chain, the skipping of spikes wraps that, and `optax.apply_if_finite` wraps all
        of it. Frozen parameters take part in none of these. Updates have the dtypes of
        the gradients, the state keeps its dtypes, and a gradient of None is zeros.

        **Arguments:**

        - `total_steps`: as in `resolve`; required if a duration is a `Fraction`.

        **Raises:** `ValueError` for an unknown duration, or phases longer than the run.
        """
        if total_steps is not None:
            return self.resolve(total_steps).build()
        for config, name in unresolved(self):
            known_steps(config, name)
        transformation = averaging_gradients(self._chain(), self.accumulate)
        if self.state_dtype is not None:
            transformation = real_only(transformation, "`Recipe.state_dtype`")
        if self.skip_spikes is not None:
            transformation = self.skip_spikes.around(transformation)
        if self.skip_nonfinite:
            transformation = skipping_nonfinite(transformation)
        trained = without_frozen(self.optimizer, transformation)
        # On the whole tree, before groups see a part of it.
        return checking_params(none_as_zero(trained), self._check_where)

    @typed
    def build_mpmd(
        self,
        params: PyTree,
        partition: StagePartition,
        *,
        total_steps: PositiveCount | None = None,
        meshes: Sequence[Mesh | Device] | None = None,
        donate: Donate = False,
        tied_grads: TiedGrads = "partial",
        shard_state: MeshAxes | None = None,
        grads: PyTree | None = None,
        extra_args: Mapping[str, Any] | None = None,
        state_stage_of: Callable[[tuple[Any, ...], Any], Any] | None = None,
        travel_limit: int = 0,
        process_timeout: float | int = 300,
    ) -> StageLocal:
        """`build(total_steps)`, split into one program per stage. See `stage_local`.

        The `build_mpmd` of the optimizer itself is not called. Arrays in the recipe,
        such as `b2=jnp.array(0.95)`, are inputs of the programs: see
        `StageLocal.with_hyperparameters`.

        **Arguments:**

        - `total_steps`: as in `build`.
        - `params`, `partition`, `meshes`, `donate`, `tied_grads`, `shard_state`,
            `grads`, `extra_args`, `state_stage_of`, `travel_limit`, `process_timeout`:
            as in `stage_local`. Gradients in another dtype than the parameters require
            `grads`, such as float32 gradients of bfloat16 parameters.
        """
        check_staged(self._requiring(), extra_args)
        options = StageOptions(
            meshes=meshes,
            donate=donate,
            tied_grads=tied_grads,
            shard_state=shard_state,
            grads=grads,
            extra_args=extra_args,
            state_stage_of=state_stage_of,
            travel_limit=travel_limit,
            process_timeout=process_timeout,
        )
        hyperparameters = Hyperparameters(
            lambda recipe: recipe.build(total_steps), (self,)
        )
        return split(hyperparameters, params, partition, options)

    @typed
    def metrics(self, state: PyTree) -> Metrics:
        """Reads scalars about the run from the state, without any computation.

        **Arguments:**

        - `state`: the state of the transformation that `build` returned. With
            `build_mpmd`, the merged state or that of any stage: the scalars are equal
            on all of them.
        """
        return metrics_of(state)

    @typed
    def eval_params(self, state: PyTree, params: PyTree) -> PyTree:
        """The parameters for evaluation: averages of `ema_decay` or `ScheduleFree`.

        Without either, the parameters themselves. Dtypes do not change.

        **Arguments:**

        - `state`, `params`: as returned by an update, of the whole tree or one stage.
        """
        return averaged_params(state, params)

    @typed
    def explain(self, params: PyTree) -> str:
        """A table of the optimizer, learning rate and weight decay of each parameter.

        The column "schedule" shows the factor on the recipe's learning rate, or the
        learning rate itself where an optimizer sets its own. Below it are the extra
        arguments that each update requires, such as the loss, if any.

        **Arguments:**

        - `params`: the parameters, or their shapes.
        """
        params = only_params(params)
        self._check_where(params)
        assignments = table(params, assigned(self._decayed_optimizer(), params))
        return assignments + explain_extra_args(self._requiring())

    def _requiring(self) -> list[AbstractOptimizer | SkipSpikes]:
        """All that may require extra arguments."""
        return [*all_in(self.optimizer), *filter(None, [self.skip_spikes])]

    def _chain(self) -> optax.GradientTransformationExtraArgs:
        optimizer = self._decayed_optimizer()
        if self.state_dtype is not None:
            optimizer = with_state_dtype(optimizer, jnp.dtype(self.state_dtype))
        built = optimizer.build(self.schedule)
        return linked(
            clipped(built, None, self.clip_update),
            self.schedule,
            clip_norm=self.clip_norm,
            clip=self.clip,
            track_norm=self.track_norm,
            ema_decay=self.ema_decay,
        )

    def _decayed_optimizer(self) -> AbstractOptimizer:
        if self.weight_decay is None:
            return self.optimizer
        return decayed(self.optimizer, self.weight_decay, self.decay_where)

    def _check_where(self, params: PyTree) -> None:
        if self.decay_where is not None:
            self.decay_where(params)
