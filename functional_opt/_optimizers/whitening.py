"""Steps along a momentum that is made white."""

from dataclasses import KW_ONLY
from typing import Annotated, final, Literal

import optax
from annotated_types import Interval

from .._base import AbstractOptimizer, WeightDecay
from .._fields import as_dtype, as_number, number, part, setting
from .._transformations import geometry
from .._transformations.geometry import AbstractGeometry
from .._transformations.gradients import filled_only, inexact_only, real_only
from .._transformations.whitening import scale_by_whitening
from .._types import (
    Count,
    DecayRate,
    FloatDtype,
    LearningRate,
    NonNegative,
    Positive,
    Seed,
    typed,
)
from .._where import Mask
from .decay import descend


LearningRateStyle = Literal["adam"]
Skewness = Annotated[float, Interval(gt=0)]


@final
class Quad(AbstractOptimizer):
    """PSGD QUAD ([Li 2024](https://arxiv.org/abs/2402.11858), section IV).

    The moving average of the gradient, times $Q^T Q$. $Q$ is a Kronecker product of
    symmetric matrices, one for each axis of a parameter that is seen as a matrix. Each
    update, with $h$ the preconditioned average, $\\mu$ the step size and $c$ the number
    of entries for each row, the left factor moves by $P = Q - \\mu (h h^T - c I) Q$ and
    $P - \\mu P (h h^T - c I)$, made symmetric; the right one by $h^T h$. A step of a
    parameter with a root mean square above 1.05 is scaled down to it. What the paper
    leaves open is as in [quad_torch](https://github.com/evanatyourservice/quad_torch).

    ```python
    >>> import functional_opt as fo
    >>> import jax, jax.numpy as jnp
    >>> transformation = fo.Quad(max_size_dense=4).build(1e-3)
    >>> state = transformation.init({"w": jnp.ones((4, 5)), "b": jnp.ones(4)})
    >>> jax.tree.map(jnp.shape, state[0][0].factors)
    {'b': ((4,),), 'w': ((4, 4), (5,))}

    ```

    **Arguments:**

    - `lr_style`: "adam" scales updates by 0.2, for learning rates of the size that Adam
        uses. If None, updates have a root mean square of about 1.
    - `momentum`: exponential decay rate of the first moment, in [0, 1). Its initial
        value is the first gradient.
    - `weight_decay`: decoupled weight decay per unit of learning rate, a number or a
        schedule; at least 0.
    - `mask`: mask function from the parameters to a tree of bools, true for those that
        decay, such as a [`Where`][]. If omitted, all decay.
    - `max_size_dense`: the largest axis with a dense factor; at least 0. Larger axes
        have a diagonal factor, as do all parameters of rank 0 and 1.
    - `max_skew_dense`: the largest ratio of an axis to the other for which its factor
        is dense; greater than 0. If None, there is no limit.
    - `preconditioner_lr`: initial relative step size of the factors; greater than 0. It
        decays with the square root of $1 + t / 10000$, down to 0.3.
    - `preconditioner_init_scale`: initial scale of each factor; greater than 0. If
        omitted, it is chosen such that the first update has a root mean square of about
        1.
    - `noise_scale`: scale of the noise that is added to the gradient when the factors
        are fitted, in units of the gradient; at least 0.
    - `dtype`: dtype of the state and of the arithmetic on it; if omitted, that of the
        parameters.
    - `seed`: seed of the noise, in [0, $2^{32}$).
    """

    _: KW_ONLY
    lr_style: LearningRateStyle | None = setting(default="adam")
    momentum: DecayRate = number(default=0.95)
    weight_decay: WeightDecay = part(default=0.1)
    mask: Mask | None = setting(default=None)
    max_size_dense: Count = setting(default=8192)
    max_skew_dense: Skewness | None = setting(default=1.0, convert=as_number)
    preconditioner_lr: Positive = number(default=0.7)
    preconditioner_init_scale: Positive | None = number(default=None)
    noise_scale: NonNegative = number(default=1e-9)
    dtype: FloatDtype | None = setting(default=None, convert=as_dtype)
    seed: Seed = setting(default=0)

    @typed
    def build(self, schedule: LearningRate) -> optax.GradientTransformationExtraArgs:
        return _descend_white(self, geometry.Quad(), schedule)


@final
class Skew(AbstractOptimizer):
    """PSGD PRO ([Li 2024](https://arxiv.org/abs/2402.11858), section IV).

    As [`Quad`][], but that $Q$ moves by $Q^{1/2} \\mathcal{E} Q^{3/2}$: the left factor
    by $Q - \\mu (h h^T - c I) Q$, then by a rotation along its skew-symmetric part that
    makes it more symmetric, a step of an orthogonal Procrustes problem. This is the
    default of its author's [psgd_torch](https://github.com/lixilinx/psgd_torch).

    ```python
    >>> import functional_opt as fo
    >>> transformation = fo.Skew(preconditioner_lr=0.5).build(1e-3)

    ```

    **Arguments:**

    - `lr_style`, `momentum`, `weight_decay`, `mask`, `max_size_dense`,
        `max_skew_dense`, `preconditioner_lr`, `preconditioner_init_scale`,
        `noise_scale`, `dtype`: as in [`Quad`][].
    - `seed`: seed of the noise, and of the vectors that estimate spectral norms, in
        [0, $2^{32}$).
    """

    _: KW_ONLY
    lr_style: LearningRateStyle | None = setting(default="adam")
    momentum: DecayRate = number(default=0.95)
    weight_decay: WeightDecay = part(default=0.1)
    mask: Mask | None = setting(default=None)
    max_size_dense: Count = setting(default=8192)
    max_skew_dense: Skewness | None = setting(default=1.0, convert=as_number)
    preconditioner_lr: Positive = number(default=0.7)
    preconditioner_init_scale: Positive | None = number(default=None)
    noise_scale: NonNegative = number(default=1e-9)
    dtype: FloatDtype | None = setting(default=None, convert=as_dtype)
    seed: Seed = setting(default=0)

    @typed
    def build(self, schedule: LearningRate) -> optax.GradientTransformationExtraArgs:
        return _descend_white(self, geometry.Skew(), schedule)


def _descend_white(
    optimizer: Quad | Skew, geometry: AbstractGeometry, schedule: LearningRate
) -> optax.GradientTransformationExtraArgs:
    scaled = scale_by_whitening(
        geometry,
        momentum=optimizer.momentum,
        max_size_dense=optimizer.max_size_dense,
        max_skew_dense=optimizer.max_skew_dense,
        preconditioner_lr=optimizer.preconditioner_lr,
        preconditioner_init_scale=optimizer.preconditioner_init_scale,
        noise_scale=optimizer.noise_scale,
        dtype=optimizer.dtype,
        seed=optimizer.seed,
    )
    length = 0.2 if optimizer.lr_style == "adam" else 1.0
    clipped = optax.chain(scaled, optax.clip_by_block_rms(1.05), optax.scale(length))
    name = f"`{type(optimizer).__name__}`"
    checked = filled_only(inexact_only(real_only(clipped, name), name), name)
    return descend(checked, schedule, optimizer.weight_decay, optimizer.mask)
