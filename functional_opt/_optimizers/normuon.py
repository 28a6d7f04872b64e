import math
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY
from typing import final

import optax
from jaxtyping import PyTree
from optax.contrib import MuonDimensionNumbers

from .._base import AbstractOptimizer, AbstractSchedule, WeightDecay
from .._composition.held import AbstractPartitionedOptimizer
from .._composition.rates import WithRate
from .._fields import as_dtype, number, part, setting
from .._transformations.gradients import filled_only, inexact_only, real_if
from .._transformations.neurons import scale_by_neurons, scale_by_shape
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
from .dimension_numbers import labels_of, of_each


@final
class NorMuon(AbstractPartitionedOptimizer):
    """[NorMuon](https://arxiv.org/abs/2510.05491) (Li et al. 2025).

    The orthogonal update $O$ of [`Muon`][], of `optax.contrib.scale_by_muon`, divided
    by $\\sqrt{v} + \\epsilon$, where $v$ is the moving average of the mean square of
    each neuron's row of $O$, and scaled back to the norm of $O$ (algorithm 1). A neuron
    is an output: a column of a matrix of shape (inputs, outputs), as in Flax. There
    is one $v$ per neuron. AdamW updates the parameters that are not matrices, without
    Nesterov momentum.

    As in the authors' code, $v$ starts at 0 without a correction, which the scaling
    back makes unnecessary, and the update is multiplied by $\\sqrt{\\max(1,
    \\mathrm{outputs} / \\mathrm{inputs})}$. `consistent_rms` = 0.2 is the scale of the
    paper. Unlike there, the momentum is corrected for its start, as in Optax; its size
    has no effect.

    ```python
    >>> import functional_opt as fo
    >>> import jax.numpy as jnp
    >>> transformation = fo.NorMuon().build(0.1)
    >>> params = jnp.array([[3.0, 0.0], [0.0, 1.0]])
    >>> updates, _ = transformation.update(params, transformation.init(params), params)
    >>> [round(float(x), 2) for x in jnp.diag(updates)]
    [-0.1, -0.1]

    ```

    **Arguments:**

    - `ns_coeffs`, `ns_steps`, `beta`, `weight_decay`, `weight_decay_mask`, `mu_dtype`,
        `nesterov`, `muon_weight_dimension_numbers`, `consistent_rms`: as in [`Muon`][].
    - `beta2`: exponential decay rate of $v$, in [0, 1).
    - `eps`: $\\epsilon$, added to denominators; greater than 0.
    - `adam_b1`, `adam_b2`, `adam_eps`, `adam_weight_decay`: AdamW's, as `b1`, `b2`,
        `eps` and `weight_decay` in [`AdamW`][].
    - `adam_learning_rate`: learning rate of AdamW: a number of at least 0, or a
        schedule. If omitted, AdamW uses the learning rate of the matrices.
    """

    _: KW_ONLY
    ns_coeffs: Coefficients | tuple[Coefficients, ...] = setting(
        default=(3.4445, -4.7750, 2.0315), convert=as_coefficients
    )
    ns_steps: PositiveCount = setting(default=5)
    beta: DecayRate = number(default=0.95)
    beta2: DecayRate = number(default=0.95)
    eps: Positive = number(default=1e-8)
    weight_decay: WeightDecay = part(default=0.0)
    weight_decay_mask: Mask | None = setting(default=None)
    mu_dtype: FloatDtype | None = setting(default=None, convert=as_dtype)
    nesterov: bool = setting(default=True)
    adam_b1: DecayRate = number(default=0.9)
    adam_b2: DecayRate = number(default=0.999)
    adam_eps: NonNegative = number(default=1e-8)
    adam_weight_decay: WeightDecay = part(default=0.0)
    adam_learning_rate: AbstractSchedule | NonNegative | None = part(default=None)
    muon_weight_dimension_numbers: (
        MuonDimensionNumbers | Callable[[PyTree], PyTree] | None
    ) = setting(default=None)
    consistent_rms: Positive | None = number(default=None)

    def _check(self) -> None:
        check_coefficients("NorMuon", self.ns_coeffs, self.ns_steps)

    @typed
    def build(self, schedule: LearningRate) -> optax.GradientTransformationExtraArgs:
        return self.build_parts(schedule)

    def parts(self) -> Mapping[str, AbstractOptimizer]:
        matrices = NorMuonMatrices(
            ns_coeffs=self.ns_coeffs,
            ns_steps=self.ns_steps,
            beta=self.beta,
            beta2=self.beta2,
            eps=self.eps,
            weight_decay=self.weight_decay,
            weight_decay_mask=self.weight_decay_mask,
            mu_dtype=self.mu_dtype,
            nesterov=self.nesterov,
            muon_weight_dimension_numbers=self.muon_weight_dimension_numbers,
            consistent_rms=self.consistent_rms,
        )
        adam = AdamW(
            b1=self.adam_b1,
            b2=self.adam_b2,
            eps=self.adam_eps,
            weight_decay=self.adam_weight_decay,
            mu_dtype=self.mu_dtype,
        )
        return {
            "muon": matrices,
            "adam": WithRate(optimizer=adam, schedule=self.adam_learning_rate),
        }

    def labels(self, params: PyTree) -> PyTree[str]:
        return labels_of(self.muon_weight_dimension_numbers, params)


@final
class NorMuonMatrices(AbstractOptimizer):
    """The part of [`NorMuon`][] for matrices alone, with fields of the same meaning."""

    _: KW_ONLY
    ns_coeffs: Coefficients | tuple[Coefficients, ...] = setting(
        convert=as_coefficients
    )
    ns_steps: PositiveCount = setting()
    beta: DecayRate = number()
    beta2: DecayRate = number()
    eps: Positive = number()
    weight_decay: WeightDecay = part()
    weight_decay_mask: Mask | None = setting()
    mu_dtype: FloatDtype | None = setting(convert=as_dtype)
    nesterov: bool = setting()
    muon_weight_dimension_numbers: (
        MuonDimensionNumbers | Callable[[PyTree], PyTree] | None
    ) = setting()
    consistent_rms: Positive | None = number()

    @typed
    def build(self, schedule: LearningRate) -> optax.GradientTransformationExtraArgs:
        numbers = of_each(self.muon_weight_dimension_numbers)
        muon = optax.contrib.scale_by_muon(
            ns_coeffs=self.ns_coeffs,
            ns_steps=self.ns_steps,
            beta=self.beta,
            eps=self.eps,
            mu_dtype=self.mu_dtype,
            nesterov=self.nesterov,
            weight_dimension_numbers=numbers,
        )
        scaled = optax.chain(
            muon,
            scale_by_neurons(self.beta2, self.eps, numbers),
            scale_by_shape(self._factor, numbers),
        )
        stepped = descend(scaled, schedule, self.weight_decay, self.weight_decay_mask)
        real = real_if(self.mu_dtype is not None, stepped, "`NorMuon.mu_dtype`")
        return filled_only(inexact_only(real, "`NorMuon`"), "`NorMuon`")

    def _factor(self, inputs: int, outputs: int) -> Scalar:
        if self.consistent_rms is None:
            return math.sqrt(max(1, outputs / inputs))
        return math.sqrt(max(inputs, outputs)) * self.consistent_rms
