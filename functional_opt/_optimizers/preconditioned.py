"""Steps in units of the gradient's own covariance."""

import math
from dataclasses import KW_ONLY
from typing import Annotated, final

import jax.numpy as jnp
import optax
from annotated_types import Interval

from .._base import AbstractOptimizer, AbstractSchedule, WeightDecay
from .._fields import as_dtype, number, part, setting
from .._transformations.gradients import filled_only, real_only
from .._transformations.kron import MemorySaveMode, scale_by_kron
from .._transformations.soap import scale_by_soap
from .._types import (
    Count,
    DecayRate,
    FloatDtype,
    LearningRate,
    NonNegative,
    Positive,
    PositiveCount,
    Scalar,
    Seed,
    typed,
)
from .._where import Mask
from .decay import descend


Probability = Annotated[Scalar, Interval(gt=0, le=1)]


@final
class SOAP(AbstractOptimizer):
    """[SOAP](https://arxiv.org/abs/2409.11321) (Vyas et al. 2024).

    Adam on the gradient in the eigenbases of Shampoo's preconditioner: along each axis
    of a parameter, those of the moving average of $G G^T$ (algorithm 3). Every
    `precondition_frequency` updates, an iteration of the power method turns them
    (algorithm 4). The first update only starts them: it is the decay alone.

    ```python
    >>> import functional_opt as fo
    >>> import jax, jax.numpy as jnp
    >>> transformation = fo.SOAP(precondition_frequency=5).build(3e-3)
    >>> state = transformation.init({"weight": jnp.ones((4, 3)), "bias": jnp.ones(4)})
    >>> jax.tree.map(jnp.shape, state[0].bases)
    {'bias': (None,), 'weight': ((4, 4), (3, 3))}

    ```

    **Arguments:**

    - `b1`: exponential decay rate of the first moment, in [0, 1).
    - `b2`: exponential decay rate of the second moment, in [0, 1).
    - `shampoo_beta`: exponential decay rate of the moving averages of $G G^T$, in [0,
        1); if omitted, `b2`.
    - `eps`: added to the square root, in units of the gradient; at least 0.
    - `weight_decay`: decoupled weight decay per unit of learning rate, a number or a
        schedule; at least 0.
    - `mask`: mask function from the parameters to a tree of bools, true for those that
        decay, such as a [`Where`][]. If omitted, all decay.
    - `precondition_frequency`: the number of updates between two iterations of the
        power method; at least 1.
    - `max_precond_dim`: the largest axis with an eigenbasis; at least 0. Along larger
        axes, the gradient is not transformed.
    - `merge_dims`: whether neighbouring axes are merged, up to a size of
        `max_precond_dim`.
    - `precondition_1d`: whether parameters of rank 1 have eigenbases.
    - `normalize_grads`: whether the update of each parameter is scaled to a root mean
        square of 1.
    - `correct_bias`: whether the moments are corrected for their initial value.
    - `mu_dtype`: dtype of the first moment; if omitted, that of the parameters.
        Eigenbases are stored in float32 or wider.
    """

    _: KW_ONLY
    b1: DecayRate = number(default=0.95)
    b2: DecayRate = number(default=0.95)
    shampoo_beta: DecayRate | None = number(default=None)
    eps: NonNegative = number(default=1e-8)
    weight_decay: WeightDecay = part(default=0.01)
    mask: Mask | None = setting(default=None)
    precondition_frequency: PositiveCount = setting(default=10)
    max_precond_dim: Count = setting(default=10_000)
    merge_dims: bool = setting(default=False)
    precondition_1d: bool = setting(default=False)
    normalize_grads: bool = setting(default=False)
    correct_bias: bool = setting(default=True)
    mu_dtype: FloatDtype | None = setting(default=None, convert=as_dtype)

    @typed
    def build(self, schedule: LearningRate) -> optax.GradientTransformationExtraArgs:
        scaled = scale_by_soap(
            b1=self.b1,
            b2=self.b2,
            shampoo_beta=self.b2 if self.shampoo_beta is None else self.shampoo_beta,
            eps=self.eps,
            precondition_frequency=self.precondition_frequency,
            max_precond_dim=self.max_precond_dim,
            merge_dims=self.merge_dims,
            precondition_1d=self.precondition_1d,
            normalize_grads=self.normalize_grads,
            correct_bias=self.correct_bias,
            mu_dtype=self.mu_dtype,
        )
        real = real_only(scaled, "`SOAP`")
        return descend(real, schedule, self.weight_decay, self.mask)


@final
class Kron(AbstractOptimizer):
    """PSGD Kron ([Li 2015](https://arxiv.org/abs/1512.04202); Walters 2024).

    The moving average of the gradient, times $Q^T Q$. $Q$ is a Kronecker product of
    triangular matrices, one for each axis of a parameter, which are fitted to make the
    preconditioned gradient white: section V of
    [Li 2024](https://arxiv.org/abs/2402.11858), $Q$ moving by $\\mathcal{E} Q$. A step
    of a parameter with a root mean square above 1.1 is scaled down to it. What the
    paper leaves open is as in
    [kron_torch](https://github.com/evanatyourservice/kron_torch).

    ```python
    >>> import functional_opt as fo
    >>> import jax, jax.numpy as jnp
    >>> optimizer = fo.Kron(weight_decay=0.1, mask=fo.Where(min_ndim=2))
    >>> state = optimizer.build(3e-4).init({"w": jnp.ones((4, 3)), "b": jnp.ones(4)})
    >>> jax.tree.map(jnp.shape, state[0][0].factors)
    {'b': ((4,),), 'w': ((4, 4), (3, 3))}

    ```

    **Arguments:**

    - `b1`: exponential decay rate of the first moment, in [0, 1).
    - `weight_decay`: decoupled weight decay per unit of learning rate, a number or a
        schedule; at least 0.
    - `mask`: mask function from the parameters to a tree of bools, true for those that
        decay, such as a [`Where`][]. If omitted, all decay. The authors decay those of
        rank 2 or more.
    - `preconditioner_update_probability`: the inverse of the number of updates between
        two fits of the factors: a number in (0, 1], or a schedule. If omitted, it is 1
        for 500 updates, then decays by a factor of $e$ per 1000 updates, down to 0.03.
    - `max_size_triangular`: the largest axis with a triangular factor; at least 0. The
        factors of larger axes are diagonal.
    - `min_ndim_triangular`: the smallest rank of a parameter with triangular factors;
        at least 0.
    - `memory_save_mode`: "one_diag" makes the factor of the largest axis diagonal,
        "smart_one_diag" does so if no other axis is as large, and "all_diag" makes all
        factors diagonal.
    - `momentum_into_precond_update`: whether the factors are fitted to the first moment
        rather than to the gradient.
    - `precond_lr`: relative step size of the factors, in (0, 1].
    - `precond_init_scale`: initial scale of $Q$; greater than 0.
    - `merge_dims`: whether the axes of parameters of rank 3 or more are merged into a
        matrix.
    - `mu_dtype`: dtype of the first moment; if omitted, that of the parameters.
    - `precond_dtype`: dtype of the factors; if omitted, float32.
    - `seed`: seed of the random numbers that the factors are fitted with, in
        [0, $2^{32}$).
    """

    _: KW_ONLY
    b1: DecayRate = number(default=0.9)
    weight_decay: WeightDecay = part(default=0.0)
    mask: Mask | None = setting(default=None)
    preconditioner_update_probability: AbstractSchedule | Probability | None = part(
        default=None
    )
    max_size_triangular: Count = setting(default=8192)
    min_ndim_triangular: Count = setting(default=2)
    memory_save_mode: MemorySaveMode | None = setting(default=None)
    momentum_into_precond_update: bool = setting(default=True)
    precond_lr: Probability = number(default=0.1)
    precond_init_scale: Positive = number(default=1.0)
    merge_dims: bool = setting(default=True)
    mu_dtype: FloatDtype | None = setting(default=None, convert=as_dtype)
    precond_dtype: FloatDtype | None = setting(default=None, convert=as_dtype)
    seed: Seed = setting(default=0)

    @typed
    def build(self, schedule: LearningRate) -> optax.GradientTransformationExtraArgs:
        scaled = scale_by_kron(
            b1=self.b1,
            update_probability=self._update_probability(),
            max_size_triangular=self.max_size_triangular,
            min_ndim_triangular=self.min_ndim_triangular,
            memory_save_mode=self.memory_save_mode,
            momentum_into_precond_update=self.momentum_into_precond_update,
            precond_lr=self.precond_lr,
            precond_init_scale=self.precond_init_scale,
            merge_dims=self.merge_dims,
            mu_dtype=self.mu_dtype,
            precond_dtype=self.precond_dtype or jnp.float32,
            seed=self.seed,
        )
        clipped = optax.chain(scaled, optax.clip_by_block_rms(1.1))
        real = filled_only(real_only(clipped, "`Kron`"), "`Kron`")
        return descend(real, schedule, self.weight_decay, self.mask)

    def _update_probability(self) -> optax.Schedule:
        given = self.preconditioner_update_probability
        if given is None:
            return optax.exponential_decay(
                1.0, 1000, math.exp(-1), transition_begin=500, end_value=0.03
            )
        return given if callable(given) else optax.constant_schedule(given)
