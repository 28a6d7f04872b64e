"""Steps that are matrices of singular values near 1, or of another unit norm."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY
from typing import Annotated, Any, final, Literal

import optax
from annotated_types import Interval
from jaxtyping import PyTree
from optax.contrib import MuonDimensionNumbers

from .._base import AbstractOptimizer, AbstractSchedule, WeightDecay
from .._composition.decay import (
    Decayed,
    decayed,
    own_decay,
    OwnDecay,
    without_decay,
)
from .._composition.held import AbstractPartitionedOptimizer, with_fields
from .._composition.rates import WithRate
from .._fields import as_dtype, number, part, setting
from .._transformations.gradients import filled_only, real_if, real_only
from .._transformations.norm_ball import minimize_over_ball, Norm
from .._types import (
    DecayRate,
    FloatDtype,
    LearningRate,
    NonNegative,
    Positive,
    PositiveCount,
    Scalar,
    typed,
)
from .._where import Mask
from .adaptive import AdamW
from .coefficients import as_coefficients, check_coefficients, Coefficients
from .decay import descend
from .dimension_numbers import labels_of


@final
class Muon(AbstractPartitionedOptimizer):
    """[Muon](https://kellerjordan.github.io/posts/muon/) (Jordan et al. 2024).

    `optax.contrib.muon`: momentum, made orthogonal by `ns_steps` iterations of
    $X \\leftarrow a X + b X X^T X + c (X X^T)^2 X$, for matrices. AdamW, for the
    rest.

    ```python
    >>> import functional_opt as fo
    >>> import jax.numpy as jnp
    >>> transformation = fo.Muon().build(0.1)
    >>> params = jnp.array([[3.0, 0.0], [0.0, 1.0]])
    >>> updates, _ = transformation.update(params, transformation.init(params), params)
    >>> [round(float(x), 2) for x in jnp.diag(updates)]
    [-0.08, -0.11]

    ```

    **Arguments:**

    - `ns_coeffs`: coefficients $(a, b, c)$ of the iteration; one such triple per
        iteration; or the name of a preset of Optax, "standard" or "dion".
    - `ns_steps`: the number of iterations; at least 1. If there is one triple per
        iteration, it must be at least the number of triples, which is then the number
        of iterations.
    - `beta`: exponential decay rate of the momentum, in [0, 1).
    - `eps`: added to denominators, in units of the gradient; at least 0.
    - `weight_decay`: decoupled weight decay of the matrices, per unit of learning rate;
        at least 0.
    - `weight_decay_mask`: mask function from the parameters to a tree of bools, true
        for the matrices that decay, such as a [`Where`][]. If omitted, all decay.
    - `mu_dtype`: dtype of the momentum; if omitted, that of the parameters.
    - `nesterov`: whether to use Nesterov momentum.
    - `adaptive`: whether the update is scaled by the dual norm of the momentum
        ([Bernstein and Newhouse 2024](https://arxiv.org/abs/2409.20325)).
    - `preconditioning`: how a matrix is scaled before the iterations: by "frobenius",
        "spectral", "aol" or "schatten".
    - `adam_b1`, `adam_b2`, `adam_eps_root`, `adam_weight_decay`: AdamW's, as `b1`,
        `b2`, `eps_root` and `weight_decay` in [`AdamW`][].
    - `adam_learning_rate`: learning rate of AdamW: a number of at least 0, or a
        schedule. If omitted, AdamW uses the learning rate of the matrices.
    - `muon_weight_dimension_numbers`: which axes of a parameter are rows and columns:
        an `optax.contrib.MuonDimensionNumbers` for all parameters, or a function from
        the parameters to a tree of these, with None for the parameters that AdamW
        updates. If omitted, Muon updates the parameters of rank 2.
    - `consistent_rms`: the root mean square of the update of a matrix of any shape, in
        units of the learning rate; greater than 0. If omitted, the update of a matrix
        of more columns than rows is $\\sqrt{\\mathrm{columns} / \\mathrm{rows}}$ times
        larger.
    """

    _: KW_ONLY
    ns_coeffs: Coefficients | tuple[Coefficients, ...] | Literal["standard", "dion"] = (
        setting(default=(3.4445, -4.7750, 2.0315), convert=as_coefficients)
    )
    ns_steps: PositiveCount = setting(default=5)
    beta: DecayRate = number(default=0.95)
    eps: NonNegative = number(default=1e-8)
    weight_decay: WeightDecay = part(default=0.0)
    weight_decay_mask: Mask | None = setting(default=None)
    mu_dtype: FloatDtype | None = setting(default=None, convert=as_dtype)
    nesterov: bool = setting(default=True)
    adaptive: bool = setting(default=False)
    preconditioning: Literal["frobenius", "spectral", "aol", "schatten"] = setting(
        default="frobenius"
    )
    adam_b1: DecayRate = number(default=0.9)
    adam_b2: DecayRate = number(default=0.999)
    adam_eps_root: NonNegative = number(default=0.0)
    adam_weight_decay: WeightDecay = part(default=0.0)
    adam_learning_rate: AbstractSchedule | NonNegative | None = part(default=None)
    muon_weight_dimension_numbers: (
        MuonDimensionNumbers | Callable[[PyTree], PyTree] | None
    ) = setting(default=None)
    consistent_rms: Positive | None = number(default=None)

    def _check(self) -> None:
        check_coefficients("Muon", self.ns_coeffs, self.ns_steps)

    @typed
    def build(self, schedule: LearningRate) -> optax.GradientTransformationExtraArgs:
        # Its type does not show that a weight decay may be a schedule.
        decay: Any = self.adam_weight_decay
        muon = optax.contrib.muon(
            schedule,
            **_matrix_options(self),
            adam_b1=self.adam_b1,
            adam_b2=self.adam_b2,
            adam_eps_root=self.adam_eps_root,
            adam_weight_decay=decay,
            adam_learning_rate=self.adam_learning_rate,
        )
        real = real_if(self.mu_dtype is not None, muon, "`Muon.mu_dtype`")
        return filled_only(real, "`Muon`")

    def parts(self) -> Mapping[str, AbstractOptimizer]:
        adam = AdamW(
            b1=self.adam_b1,
            b2=self.adam_b2,
            eps=self.eps,
            eps_root=self.adam_eps_root,
            weight_decay=self.adam_weight_decay,
            mu_dtype=self.mu_dtype,
            nesterov=self.nesterov,
        )
        return {
            "muon": MuonMatrices(**_matrix_options(self)),
            "adam": WithRate(optimizer=adam, schedule=self.adam_learning_rate),
        }

    def labels(self, params: PyTree) -> PyTree[str]:
        return labels_of(self.muon_weight_dimension_numbers, params)


@final
class MuonMatrices(AbstractOptimizer):
    """The part of [`Muon`][] for matrices alone, with fields of the same meaning."""

    _: KW_ONLY
    ns_coeffs: Any = setting()
    ns_steps: int = setting()
    beta: DecayRate = number()
    eps: NonNegative = number()
    weight_decay: WeightDecay = part()
    weight_decay_mask: Mask | None = setting()
    mu_dtype: FloatDtype | None = setting(convert=as_dtype)
    nesterov: bool = setting()
    adaptive: bool = setting()
    preconditioning: str = setting()
    muon_weight_dimension_numbers: Any = setting()
    consistent_rms: Positive | None = number()

    @typed
    def build(self, schedule: LearningRate) -> optax.GradientTransformationExtraArgs:
        muon = optax.contrib.muon(schedule, **_matrix_options(self))
        real = real_if(self.mu_dtype is not None, muon, "`Muon.mu_dtype`")
        return filled_only(real, "`Muon`")


def _matrix_options(optimizer: Muon | MuonMatrices) -> dict[str, Any]:
    names = [field.name for field in dataclasses.fields(MuonMatrices)]
    return {name: getattr(optimizer, name) for name in names}


@final
class Scion(AbstractOptimizer):
    """[Scion](https://arxiv.org/abs/2502.07529) (Pethick et al. 2025).

    With $d$ the moving average of the gradient and $\\gamma$ the learning rate, a
    parameter becomes $(1 - \\gamma) \\theta + \\gamma\\,\\mathrm{lmo}(d)$, where lmo is
    the point of a ball that $d$ descends to most: update (SCG) of section 3. A
    parameter never leaves the ball it starts in. If `unconstrained`, it becomes
    $\\theta + \\gamma\\,\\mathrm{lmo}(d)$, update (uSCG).

    ```python
    >>> import functional_opt as fo
    >>> import jax.numpy as jnp
    >>> transformation = fo.Scion(norm="Sign", scale=3000.0).build(2**-12)
    >>> params = jnp.zeros((2, 3))
    >>> state = transformation.init(params)
    >>> updates, _ = transformation.update(params + 1, state, params)
    >>> float(updates[0, 0]) == -3000 / 3 * 2**-12
    True

    ```

    **Arguments:**

    - `momentum`: weight of the new gradient in the moving average $d$, in (0, 1]: one
        minus a decay rate. The authors use 0.1.
    - `norm`: the norm of the ball, of matrices in the last two axes.
        - "Spectral": singular values near $\\sqrt{\\mathrm{out} / \\mathrm{in}}$. For
            layers.
        - "SpectralConv": the same for kernels of convolutions, out by in by window.
        - "Sign": entries of $\\pm 1 / \\mathrm{in}$. For the output.
        - "ColNorm": columns of a root mean square of 1. For the input.
        - "RowNorm": rows of a root mean square of $1 / \\mathrm{in}$.
        - "BiasRMS": a root mean square of 1 along the last axis.
        - "Auto": "BiasRMS" for rank 0 and 1, "Spectral" for 2, "SpectralConv" for 3 or
            more.
    - `normalized`: whether the radius of the ball shrinks with the number of inputs, as
        above. If omitted, it does, except for "ColNorm".
    - `transpose`: whether parameters have the shape (inputs, outputs), and kernels
        (window, inputs, outputs).
    - `max`: whether the singular values of "Spectral" are at least 1.
    - `steps`: the number of iterations that make the singular values equal; at least 1.
    - `scale`: the radius of the ball; greater than 0.
    - `unconstrained`: see above. `Recipe.weight_decay` sets it to true, since the
        attraction to 0 is a weight decay of 1 per unit of learning rate.
    - `mu_dtype`: dtype of $d$; if omitted, that of the parameters.
    """

    _: KW_ONLY
    momentum: Annotated[Scalar, Interval(gt=0, le=1)] = number(default=1.0)
    norm: Norm = setting(default="Auto")
    normalized: bool | None = setting(default=None)
    transpose: bool = setting(default=False)
    max: bool = setting(default=False)
    steps: PositiveCount = setting(default=5)
    scale: Positive = number(default=1.0)
    unconstrained: bool = setting(default=False)
    mu_dtype: FloatDtype | None = setting(default=None, convert=as_dtype)

    @typed
    def build(self, schedule: LearningRate) -> optax.GradientTransformationExtraArgs:
        lmo = minimize_over_ball(
            norm=self.norm,
            normalized=self.normalized,
            transpose=self.transpose,
            max=self.max,
            steps=self.steps,
            scale=self.scale,
        )
        average = optax.ema(1 - self.momentum, False, accumulator_dtype=self.mu_dtype)
        scaled = real_only(optax.chain(average, lmo), "`Scion`")
        scaled = filled_only(scaled, "`Scion`")
        return descend(scaled, schedule, self._pull(), mask=None)

    def _pull(self) -> float:
        """The decay towards 0 that keeps parameters in the ball."""
        return 0.0 if self.unconstrained else 1.0


@own_decay.register
def _(optimizer: Scion) -> OwnDecay:
    return OwnDecay(optimizer._pull(), None)


@without_decay.register
def _(optimizer: Scion) -> tuple[AbstractOptimizer, OwnDecay]:
    return with_fields(optimizer, unconstrained=True), own_decay(optimizer)


@decayed.register
def _(
    optimizer: Scion, weight_decay: WeightDecay, mask: Mask | None = None
) -> AbstractOptimizer:
    free = with_fields(optimizer, unconstrained=True)
    return Decayed(optimizer=free, weight_decay=weight_decay, mask=mask)
