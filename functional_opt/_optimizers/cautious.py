"""Steps and weight decays that apply only where signs agree."""

from dataclasses import KW_ONLY
from typing import Annotated, ClassVar, final

import optax
from annotated_types import Interval

from .._base import AbstractOptimizer, all_in
from .._composition.decay import change_steps, own_decay, OwnDecay, with_decay
from .._extra_args import check_inside
from .._fields import number, part
from .._transformations.cautious import mask_by_sign
from .._transformations.gradients import real_only
from .._types import LearningRate, Scalar, typed


Fraction = Annotated[Scalar, Interval(gt=0, le=1)]


@final
class Cautious(AbstractOptimizer):
    """[Cautious optimizers](https://arxiv.org/abs/2411.16085) (Liang et al. 2024).

    Entries of a step $u$ that do not descend along the gradient $g$ are 0, and the
    others are larger: $u \\circ m / \\bar{m}$ with $m = 1$ where $u g < 0$ and 0
    elsewhere (algorithms 1 and 2). The mean $\\bar{m}$ is that of each parameter by
    itself, and at least `min_fraction`, as in the authors' code.

    It applies to the step of each optimizer inside, such as the parts of [`Muon`][] or
    the optimizers of [`Groups`][], without its decoupled weight decay, which is added
    unchanged. Where a weight decay depends on the step, as in [`Prodigy`][], it is a
    part of the step. It has no state.

    ```python
    >>> import functional_opt as fo
    >>> import jax.numpy as jnp
    >>> transformation = fo.Cautious(fo.SGD(momentum=0.5)).build(1.0)
    >>> params = jnp.zeros(2)
    >>> state = transformation.init(params)
    >>> _, state = transformation.update(jnp.array([1.0, -4.0]), state, params)
    >>> updates, _ = transformation.update(jnp.array([1.0, 1.0]), state, params)
    >>> updates.tolist()
    [-3.0, 0.0]

    ```

    **Arguments:**

    - `optimizer`: the optimizer.
    - `min_fraction`: the smallest fraction of entries that the rest is divided by, in
        (0, 1].
    """

    UNDOES: ClassVar[str | None] = None

    optimizer: AbstractOptimizer = part()
    _: KW_ONLY
    min_fraction: Fraction = number(default=1e-3)

    def _check(self) -> None:
        check_inside(all_in(self.optimizer), "Cautious")

    @typed
    def build(self, schedule: LearningRate) -> optax.GradientTransformationExtraArgs:
        masked = change_steps(
            self.optimizer,
            lambda x: Masked(optimizer=x, min_fraction=self.min_fraction),
        )
        return masked.build(schedule)


@final
class Masked(AbstractOptimizer):
    """One optimizer whose step is masked: see [`Cautious`][].

    **Arguments:**

    - `optimizer`, `min_fraction`: as in [`Cautious`][].
    """

    UNDOES: ClassVar[str | None] = None

    _: KW_ONLY
    optimizer: AbstractOptimizer = part()
    min_fraction: Fraction = number()

    @typed
    def build(self, schedule: LearningRate) -> optax.GradientTransformationExtraArgs:
        masked = mask_by_sign(self.optimizer.build(schedule), self.min_fraction)
        return real_only(masked, "`Cautious`")


@final
class CautiousDecay(AbstractOptimizer):
    """[Cautious weight decay](https://arxiv.org/abs/2510.12402) (Chen et al. 2025).

    An entry decays only where its step, without the decay, brings it closer to 0 or is
    0: with the update $u$ that is subtracted, where $u x \\ge 0$ (algorithm 1). It
    applies to the decoupled weight decays of all optimizers inside, and to
    `Recipe.weight_decay` and `Group.weight_decay`. A weight decay that is a part of the
    step, as in [`Prodigy`][] or [`Lamb`][], is refused by `build`. It has no state.

    ```python
    >>> import functional_opt as fo
    >>> import jax.numpy as jnp
    >>> optimizer = fo.CautiousDecay(fo.AdamW(weight_decay=0.5))
    >>> transformation = optimizer.build(1.0)
    >>> params = jnp.array([8.0, 8.0])
    >>> grads = jnp.array([1.0, -1.0])
    >>> updates, _ = transformation.update(grads, transformation.init(params), params)
    >>> updates.round(3).tolist()
    [-5.0, 1.0]

    ```

    **Arguments:**

    - `optimizer`: the optimizer.
    """

    UNDOES: ClassVar[str | None] = None

    optimizer: AbstractOptimizer = part()

    @typed
    def build(self, schedule: LearningRate) -> optax.GradientTransformationExtraArgs:
        def attach(optimizer: AbstractOptimizer, decay: OwnDecay) -> AbstractOptimizer:
            return with_decay(optimizer, decay._replace(cautious=True))

        cautious = change_steps(self.optimizer, _without_other_decay, attach)
        return real_only(cautious.build(schedule), "`CautiousDecay`")


def _without_other_decay(optimizer: AbstractOptimizer) -> AbstractOptimizer:
    decay = own_decay(optimizer).weight_decay
    if isinstance(decay, float) and decay == 0:
        return optimizer
    raise ValueError(
        f"`CautiousDecay` cannot change the weight decay {decay} of "
        f"`{type(optimizer).__name__}`, which is a part of its step. Set it to 0."
    )
