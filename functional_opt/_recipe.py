from collections.abc import Mapping, Sequence
from typing import Any, final

import optax
from jax import Device
from jax.sharding import Mesh
from jaxtyping import PyTree

from ._base import AbstractOptimizer, AbstractSchedule
from ._config import AbstractConfig, check_fields, number, part, setting
from ._stages.local import stage_local, StageLocal
from ._stages.partition import StagePartition
from ._types import NonNegative, Positive, PositiveCount, Scalar, typed
from ._where import Where


@final
class Recipe(AbstractConfig):
    """The usual chain around one optimizer: clip, step, decay, accumulate.

    ```python
    >>> import functional_opt as fo
    >>> recipe = fo.Recipe(
    ...     optimizer=fo.AdamW(b2=0.95),
    ...     schedule=fo.Cosine(peak_value=3e-4, warmup_steps=500, decay_steps=10_000),
    ...     clip_norm=1.0,
    ...     weight_decay=0.1,
    ...     decay_where=fo.Where(min_ndim=2),
    ...     accumulate=4,
    ... )
    >>> transformation = recipe.build()

    ```

    **Arguments:**

    - `optimizer`: what makes a step of a gradient.
    - `schedule`: its learning rate, as a function of the updates completed or a number.
    - `clip_norm`: the norm that the gradient, all parameters together, is scaled down
        to where it is larger; greater than 0. None clips nothing.
    - `weight_decay`: the decoupled weight decay, in place of the optimizer's own; per
        unit of learning rate, at least 0. None leaves the optimizer as it is.
    - `decay_where`: which parameters decay. None leaves this to the optimizer's mask,
        or else decays all.
    - `accumulate`: how many gradients are averaged into one update, in float32 whatever
        the parameters are; at least 1. In between, the updates are 0.
    """

    optimizer: AbstractOptimizer = part()
    schedule: AbstractSchedule | Scalar = part()
    clip_norm: Positive | None = number(None)
    weight_decay: NonNegative | None = number(None)
    decay_where: Where | None = setting(None)
    accumulate: PositiveCount = setting(1)

    def __check_init__(self) -> None:
        check_fields(self)  # Equinox checks the base class later than this one.
        if self.decay_where is not None and self.weight_decay is None:
            raise ValueError(
                f"`Recipe.decay_where` needs `Recipe.weight_decay`, got "
                f"{self.decay_where} and None. Say how much is to decay there; the "
                "optimizer's own weight decay goes by the optimizer's own mask."
            )

    @typed
    def build(self) -> optax.GradientTransformationExtraArgs:
        """The Optax transformation: clip, optimizer and decay, then accumulation."""
        transformation = self._build_optimizer()
        if self.clip_norm is not None:
            clip = optax.clip_by_global_norm(self.clip_norm)
            transformation = optax.chain(clip, transformation)
        if self.accumulate > 1:
            steps = optax.MultiSteps(transformation, self.accumulate)
            # Its update takes extra arguments, but `MultiSteps` does not say so.
            transformation = optax.GradientTransformationExtraArgs(
                *steps.gradient_transformation()
            )
        return transformation

    @typed
    def build_mpmd(
        self,
        params: PyTree,
        partition: StagePartition,
        *,
        meshes: Sequence[Mesh | Device] | None = None,
        donate: bool = False,
        extra_args: Mapping[str, Any] | None = None,
    ) -> StageLocal:
        """`build()`, cut into one program a stage. See `stage_local`."""
        return stage_local(
            self.build(),
            params,
            partition,
            meshes=meshes,
            donate=donate,
            extra_args=extra_args,
        )

    def _build_optimizer(self) -> optax.GradientTransformationExtraArgs:
        if self.weight_decay is None:
            return self.optimizer.build(self.schedule)
        return self.optimizer.build_decayed(
            self.schedule, self.weight_decay, self.decay_where
        )
