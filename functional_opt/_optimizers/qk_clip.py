from collections.abc import Mapping
from dataclasses import KW_ONLY
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, final

import jax
import optax
from annotated_types import Interval
from jaxtyping import PyTree

from .._base import AbstractOptimizer, all_in
from .._composition.frozen import without_frozen
from .._composition.state_dtype import inside_rounding
from .._extra_args import check_inside, ExtraArg
from .._fields import number, part, setting
from .._paths import path_text
from .._transformations.qk_clip import clip_qk
from .._types import LearningRate, Positive, Scalar, typed
from .._where import Selection


Share = Annotated[Scalar, Interval(ge=0, le=1)]


@final
class QKClip(AbstractOptimizer):
    """QK-clip, as in MuonClip ([Kimi K2 2025](https://arxiv.org/abs/2507.20534)).

    After the step of the optimizer inside, with its weight decay, the query and key
    weights of each head are multiplied by $\\gamma^\\alpha$ and
    $\\gamma^{1 - \\alpha}$, where $\\gamma = \\min(1, \\tau / S)$, $\\tau$ is the
    threshold and $S$ the largest logit of the head in the forward pass of this step
    (section 2.1, algorithm 1).
    MuonClip is `QKClip` around [`Muon`][] with `consistent_rms` = 0.2.

    $S$ is the extra argument `max_logits` of `update` and `step`: a tree like the
    parameters, with an array at each query and key weight and None elsewhere, or one
    array for all of these weights. An array is a scalar for all heads together, or has
    one entry per head, or has the shape (layers, heads) for a stack of layers. With
    `Recipe.accumulate`, only the logits of the last gradient of an update count. Where
    several queries share a key, the entry of the key is their largest. An entry that is
    not finite scales nothing: `Recipe.skip_nonfinite` is about gradients alone. It
    keeps no state. Stages send nothing if each of them is given all logits, or if the
    logits of each weight are [`OnStage`][] on the stage of that weight; otherwise they
    send only logits.

    Frozen parameters are not scaled. What rounds updates, such as [`KahanSummation`][],
    does so after the scaling, in either order of the wrappers. Around [`Hyperball`][],
    a weight that is scaled down keeps its new norm from then on.

    In latent attention, the query's rotary part is scaled by $\\gamma$ itself: put one
    `QKClip` with $\\alpha = 1$ around another.

    ```python
    >>> import functional_opt as fo
    >>> import jax.numpy as jnp
    >>> optimizer = fo.QKClip(
    ...     fo.SGD(), query=fo.Where("query"), key=fo.Where("key"), threshold=100.0
    ... )
    >>> transformation = optimizer.build(1.0)
    >>> params = {"query": jnp.ones((1, 4)), "key": jnp.ones((1, 4))}
    >>> zeros = {name: 0 * leaf for name, leaf in params.items()}
    >>> logits = jnp.array([50.0, 400.0])  # of two heads
    >>> updates, _ = transformation.update(
    ...     zeros,
    ...     transformation.init(params),
    ...     params,
    ...     max_logits={"query": logits, "key": logits},
    ... )
    >>> (params["query"] + updates["query"]).tolist()
    [[1.0, 1.0, 0.5, 0.5]]

    ```

    **Arguments:**

    - `optimizer`: the optimizer.
    - `query`: the query weights.
    - `key`: the key weights.
    - `threshold`: $\\tau$, the largest logit that is not scaled down; greater than 0.
    - `alpha`: $\\alpha$, the share of the queries in the scaling, in [0, 1].
    - `heads_axis`: the axis of these weights on which the heads follow each other, each
        with the same number of entries.
    """

    EXTRA_ARGS: ClassVar[Mapping[str, ExtraArg]] = MappingProxyType(
        {"max_logits": ExtraArg("the largest attention logits of each head, by weight")}
    )

    DETERMINES: ClassVar[str | None] = "the scale of query and key weights"

    UNDOES: ClassVar[str | None] = None

    optimizer: AbstractOptimizer = part()
    _: KW_ONLY
    query: Selection = setting()
    key: Selection = setting()
    threshold: Positive = number(default=100.0)
    alpha: Share = number(default=0.5)
    heads_axis: int = setting(default=-1)

    def _check(self) -> None:
        check_inside(all_in(self.optimizer), "QKClip")

    @typed
    def build(self, schedule: LearningRate) -> optax.GradientTransformationExtraArgs:
        scaled = inside_rounding(self.optimizer, self._around).build(schedule)
        trained = without_frozen(self.optimizer, scaled)

        def init(params: PyTree) -> PyTree:
            # Each raises an error if it selects nothing.
            masks = self.query(params), self.key(params)
            jax.tree_util.tree_map_with_path(_check_one_role, *masks)
            return trained.init(params)

        return optax.GradientTransformationExtraArgs(init, trained.update)

    def _around(self, optimizer: AbstractOptimizer) -> AbstractOptimizer:
        return OnHeads(
            optimizer=optimizer,
            query=self.query,
            key=self.key,
            threshold=self.threshold,
            alpha=self.alpha,
            heads_axis=self.heads_axis,
        )


@final
class OnHeads(AbstractOptimizer):
    """One optimizer whose query and key weights are clipped: see [`QKClip`][].

    **Arguments:**

    - `optimizer`, `query`, `key`, `threshold`, `alpha`, `heads_axis`: as in `QKClip`.
    """

    UNDOES: ClassVar[str | None] = None

    _: KW_ONLY
    optimizer: AbstractOptimizer = part()
    query: Selection = setting()
    key: Selection = setting()
    threshold: Positive = number()
    alpha: Share = number()
    heads_axis: int = setting()

    @typed
    def build(self, schedule: LearningRate) -> optax.GradientTransformationExtraArgs:
        inner = self.optimizer.build(schedule)
        return clip_qk(inner, self._exponent, self.threshold, self.heads_axis)

    def _exponent(self, path: str, leaf: Any) -> Scalar | None:
        if self.query.finds(path, leaf):
            return self.alpha
        return 1 - self.alpha if self.key.finds(path, leaf) else None


def _check_one_role(path: Any, is_query: bool, is_key: bool) -> None:
    if is_query and is_key:
        raise ValueError(
            f"`QKClip.query` and `QKClip.key` both select `{path_text(path)}`, but "
            "queries and keys are scaled by different factors. Change one of them so "
            "that it leaves out this parameter."
        )
