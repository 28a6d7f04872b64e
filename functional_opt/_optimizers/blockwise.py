"""Adam with one second moment per block of parameters."""

from dataclasses import KW_ONLY
from typing import Any, final

import jax
import optax
from jaxtyping import PyTree

from .._base import AbstractOptimizer, WeightDecay
from .._config import AbstractConfig
from .._fields import as_dtype, number, part, setting
from .._paths import path_text
from .._transformations.blocks import Division, scale_by_blocks
from .._transformations.gradients import inexact_only, real_if
from .._types import (
    DecayRate,
    FloatDtype,
    LearningRate,
    NonNegative,
    PositiveCount,
    typed,
)
from .._where import check_finds, is_whole, Mask, Selection
from .decay import descend


@final
class Blocks(AbstractConfig):
    """How [`AdamMini`][] divides parameters into blocks.

    ```python
    >>> import functional_opt as fo
    >>> heads = fo.Blocks(fo.Where("query|key"), axes=(1,), count=12)
    >>> heads.axes, heads.count
    ((1,), 12)

    ```

    **Arguments:**

    - `where`: the parameters, among those that no rule before this one selects.
    - `axes`: the axes along which every index is a block of its own: the axis of the
        outputs of a matrix, which is 0 in Equinox and 1 in Flax, or of the tokens of an
        embedding. Leaves of stacked layers need the axis of the layers as well.
    - `count`: number of blocks of equal size, of adjacent indices, into which the last
        of `axes` is divided, such as the number of attention heads. If None, every
        index is a block.
    """

    where: Selection = setting()
    _: KW_ONLY
    axes: tuple[int, ...] = setting(default=(0,))
    count: PositiveCount | None = setting(default=None)

    def _check(self) -> None:
        if not self.axes:
            raise ValueError(
                "`Blocks.axes` must have at least one axis, got (). A parameter that "
                "no rule selects is one block."
            )

    def division(self, path: str, shape: tuple[int, ...]) -> Division:
        """The blocks of a parameter at this path."""
        ndim = len(shape)
        axes = [axis + ndim if axis < 0 else axis for axis in self.axes]
        if len({*axes} & {*range(ndim)}) < len(axes):
            raise ValueError(
                f"`Blocks.axes` must be different axes of the parameter `{path}` of "
                f"shape {shape}, got {self.axes}. Select other parameters with "
                "`Blocks.where`."
            )
        last, count = axes[-1], self.count
        if count is None:
            return Division(shape, tuple(i for i in range(ndim) if i not in axes))
        if shape[last] % count:
            raise ValueError(
                f"`Blocks.count` = {count} must divide axis {last} of the parameter "
                f"`{path}` of shape {shape}."
            )
        split = (*shape[:last], count, shape[last] // count, *shape[last + 1 :])
        between = {axis + (axis > last) for axis in axes}
        return Division(split, tuple(i for i in range(ndim + 1) if i not in between))


@final
class AdamMini(AbstractOptimizer):
    """[Adam-mini](https://arxiv.org/abs/2406.16793) (Zhang et al. 2024).

    AdamW with one second moment per block of entries: the moving average of the mean
    square of the block's gradients (algorithm 1). This saves nearly half of the state
    of AdamW.

    The authors' code finds the blocks by the names of PyTorch modules; here, `blocks`
    declares them, and nothing is inferred from names. The authors choose (algorithm 3)
    a block per attention head for queries and keys, per output for other matrices, per
    token for embeddings and output layers, and one block for every other parameter. To
    leave biases to plain AdamW, as their code does, select them with axis 0. Without
    `blocks`, every parameter is one block, which the paper finds unstable for large
    transformers.

    ```python
    >>> import functional_opt as fo
    >>> import jax.numpy as jnp
    >>> params = {
    ...     "query": jnp.ones((6, 2)), "up": jnp.ones((5, 6)), "norm": jnp.ones(6)
    ... }
    >>> optimizer = fo.AdamMini(
    ...     blocks=(
    ...         fo.Blocks(fo.Where("query"), count=3),
    ...         fo.Blocks(fo.Where(min_ndim=2)),
    ...     )
    ... )
    >>> state = optimizer.build(0.1).init(params)
    >>> {name: moments.size for name, moments in state[0].nu.items()}
    {'norm': 1, 'query': 3, 'up': 5}

    ```

    **Arguments:**

    - `b1`: exponential decay rate of the first moment, in [0, 1).
    - `b2`: exponential decay rate of the second moment, in [0, 1).
    - `eps`: added to the square root, in units of the gradient; at least 0.
    - `blocks`: a tuple of [`Blocks`][], of which the first that selects a parameter
        divides it. A parameter that none selects is one block.
    - `mu_dtype`: dtype of the first moment; if omitted, that of the parameters. The
        second moment is in float32 at least.
    - `weight_decay`: decoupled weight decay per unit of learning rate, a number or a
        schedule; at least 0.
    - `mask`: mask function from the parameters to a tree of bools, true for those that
        decay, such as a [`Where`][]. If omitted, all decay.
    """

    _: KW_ONLY
    b1: DecayRate = number(default=0.9)
    b2: DecayRate = number(default=0.999)
    eps: NonNegative = number(default=1e-8)
    blocks: tuple[Blocks, ...] = part(default=())
    mu_dtype: FloatDtype | None = setting(default=None, convert=as_dtype)
    weight_decay: WeightDecay = part(default=0.0)
    mask: Mask | None = setting(default=None)

    @typed
    def build(self, schedule: LearningRate) -> optax.GradientTransformationExtraArgs:
        scaled = scale_by_blocks(
            self.b1, self.b2, self.eps, self.mu_dtype, self._divisions
        )
        stepped = descend(scaled, schedule, self.weight_decay, self.mask)
        real = real_if(self.mu_dtype is not None, stepped, "`AdamMini.mu_dtype`")
        return inexact_only(real, "`AdamMini`")

    def _divisions(self, params: PyTree) -> PyTree:
        if is_whole(params):
            for blocks in self.blocks:
                check_finds(blocks.where, params)
        return jax.tree_util.tree_map_with_path(self._division, params)

    def _division(self, path: Any, leaf: Any) -> Division:
        name = path_text(path)
        for blocks in self.blocks:
            if blocks.where.finds(name, leaf):
                return blocks.division(name, leaf.shape)
        return Division(leaf.shape, tuple(range(leaf.ndim)))
