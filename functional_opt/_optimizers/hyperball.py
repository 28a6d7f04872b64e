from dataclasses import KW_ONLY
from typing import Any, ClassVar, final

import jax
import optax
from jaxtyping import PyTree

from .._base import AbstractOptimizer, all_in
from .._composition.assignments import assigned, is_assigned
from .._composition.decay import change_steps, OwnDecay, with_decay
from .._extra_args import check_inside
from .._fields import part, setting
from .._transformations.hyperball import keep_norm
from .._types import LearningRate, typed
from .._where import Selection, Where


@final
class Hyperball(AbstractOptimizer):
    """[Hyperball](https://arxiv.org/abs/2606.16899) (Wen et al. 2026).

    Steps that keep the norm of each parameter: AdamH, MuonH and their like. With the
    step $u$ of the optimizer inside, which is of any size, and the learning rate
    $\\gamma$, a parameter $p$ moves to $q = p - \\gamma |p| u / |u|$ and from there to
    $|p|\\,q / |q|$. The norm is Frobenius's. As in the code of
    [Marin](https://github.com/marin-community/marin), it is that of the parameter
    before the step rather than that of the first one, which differs by rounding only;
    and for parameters of rank 3 or more there is one for each index of the first axis,
    as for stacks of layers. If $u$ is perpendicular to $p$, a small $\\gamma$ is the
    angle in radians between $p$ and the result. Norms are kept, so these parameters
    have no weight decay. As $\\gamma$, Marin suggests the square root of the learning
    rate times the weight decay of the optimizer without this wrapper.

    The parameters that `where` does not select are updated by the optimizer inside,
    with its weight decay. A parameter that is 0 remains 0: leave it out. Wrappers that
    change steps, such as [`Cautious`][], act inside this one, in either order; averages
    of parameters, such as [`ScheduleFree`][], and `clip_update` are refused, since they
    would change the norm. The state has a count, if the learning rate is a schedule.

    ```python
    >>> import functional_opt as fo
    >>> import jax.numpy as jnp
    >>> transformation = fo.Hyperball(fo.Adam()).build(0.1)
    >>> params = jnp.array([[3.0, 0.0], [0.0, 4.0]])
    >>> updates, _ = transformation.update(params, transformation.init(params), params)
    >>> round(float(jnp.linalg.norm(params + updates)), 5)
    5.0

    ```

    **Arguments:**

    - `optimizer`: the optimizer, such as [`Adam`][], [`Muon`][] or [`NorMuon`][].
    - `where`: the parameters whose norm is kept; if omitted, those of rank 2 or more.
    """

    DETERMINES: ClassVar[str | None] = "the norms of parameters"

    UNDOES: ClassVar[str | None] = None

    optimizer: AbstractOptimizer = part()
    _: KW_ONLY
    where: Selection = setting(default=Where(min_ndim=2))

    def _check(self) -> None:
        check_inside(all_in(self.optimizer), "Hyperball")

    @typed
    def build(self, schedule: LearningRate) -> optax.GradientTransformationExtraArgs:
        moved = change_steps(
            self.optimizer,
            lambda x: OnBall(optimizer=x, where=self.where),
            self._attach,
            lambda x: x.UNDOES is not None,
        )
        return moved.build(schedule)

    def _attach(
        self, optimizer: AbstractOptimizer, decay: OwnDecay
    ) -> AbstractOptimizer:
        def mask(params: PyTree) -> PyTree:
            own: Any = True if decay.mask is None else decay.mask
            own = own(params) if callable(own) else own
            return jax.tree.map(
                lambda decays, kept: jax.tree.map(lambda x: decays and not x, kept),
                *(own, self.where(params)),
            )

        return with_decay(optimizer, decay._replace(mask=mask))


@final
class OnBall(AbstractOptimizer):
    """One optimizer whose steps keep norms: see [`Hyperball`][].

    **Arguments:**

    - `optimizer`, `where`: as in [`Hyperball`][].
    """

    UNDOES: ClassVar[str | None] = None

    _: KW_ONLY
    optimizer: AbstractOptimizer = part()
    where: Selection = setting()

    @typed
    def build(self, schedule: LearningRate) -> optax.GradientTransformationExtraArgs:
        kept = optax.masked(keep_norm(schedule), self.where)
        return optax.chain(self.optimizer.build(schedule), kept)


@assigned.register
def _(optimizer: Hyperball, params: PyTree) -> PyTree:
    def on_ball(found: Any, is_kept: bool) -> Any:
        if not is_kept or found.schedule_scale == 0:
            return found
        name = f"Hyperball({found.optimizer})"
        return found._replace(optimizer=name, weight_decay=0.0)

    found = assigned(optimizer.optimizer, params)
    return jax.tree.map(on_ball, found, optimizer.where(params), is_leaf=is_assigned)
