"""Adam with a second, slower momentum."""

from dataclasses import KW_ONLY
from typing import final

import optax

from .._base import AbstractOptimizer, AbstractSchedule, WeightDecay
from .._fields import as_dtype, number, part, setting
from .._transformations.gradients import real_if, real_only
from .._types import DecayRate, FloatDtype, LearningRate, NonNegative, typed
from .._where import Mask
from .factories import built


@final
class AdEMAMix(AbstractOptimizer):
    """[AdEMAMix](https://arxiv.org/abs/2409.03137) (Pagliardini et al. 2024).

    `optax.contrib.ademamix`: AdamW with a second moving average $m_2$ of the gradient,
    which is slow and not corrected for its start at 0: a step is the learning rate
    times $(m_1 + \\alpha m_2) / (\\sqrt{v + \\bar\\epsilon} + \\epsilon) + \\lambda
    \\theta$ (algorithm 1). The authors let $\\alpha$ and $\\beta_3$ grow to their final
    values during the run.

    ```python
    >>> import functional_opt as fo
    >>> import jax.numpy as jnp
    >>> growing = fo.Linear(init_value=0.0, end_value=5.0, transition_steps=10_000)
    >>> transformation = fo.AdEMAMix(alpha=growing).build(0.1)
    >>> params = jnp.array([1.0, -3.0])
    >>> updates, _ = transformation.update(params, transformation.init(params), params)
    >>> [round(float(x), 3) for x in updates]
    [-0.1, 0.1]

    ```

    **Arguments:**

    - `b1`: exponential decay rate of the fast average $m_1$, in [0, 1).
    - `b2`: exponential decay rate of the second moment $v$, in [0, 1).
    - `b3`: $\\beta_3$, exponential decay rate of the slow average $m_2$: a number in
        [0, 1), or a schedule.
    - `alpha`: $\\alpha$, the weight of $m_2$: a number of at least 0, or a schedule.
    - `eps`: added to the square root, in units of the gradient; at least 0.
    - `eps_root`: $\\bar\\epsilon$, in units of the squared gradient; at least 0.
    - `mu_dtype`: dtype of the moments; if omitted, that of the parameters.
    - `weight_decay`: decoupled weight decay per unit of learning rate, a number or a
        schedule; at least 0.
    - `mask`: mask function from the parameters to a tree of bools, true for those that
        decay, such as a [`Where`][]. If omitted, all decay.
    """

    _: KW_ONLY
    b1: DecayRate = number(default=0.9)
    b2: DecayRate = number(default=0.999)
    b3: AbstractSchedule | DecayRate = part(default=0.9999)
    alpha: AbstractSchedule | NonNegative = part(default=5.0)
    eps: NonNegative = number(default=1e-8)
    eps_root: NonNegative = number(default=0.0)
    mu_dtype: FloatDtype | None = setting(default=None, convert=as_dtype)
    weight_decay: WeightDecay = part(default=0.0)
    mask: Mask | None = setting(default=None)

    @typed
    def build(self, schedule: LearningRate) -> optax.GradientTransformationExtraArgs:
        ademamix = built(optax.contrib.ademamix, self, schedule)
        return real_if(self.mu_dtype is not None, ademamix, "`AdEMAMix.mu_dtype`")


@final
class SimplifiedAdEMAMix(AbstractOptimizer):
    """[Simplified AdEMAMix](https://arxiv.org/abs/2502.02431) (Morwani et al. 2025).

    `optax.contrib.simplified_ademamix`: with the sum $m \\leftarrow \\beta_1 m + g$ and
    $v$ the moving average of the gradient's square, corrected for its start at 0, a
    step is the learning rate times $(m + \\alpha g) / (\\sqrt{v + \\bar\\epsilon} +
    \\epsilon)$.

    ```python
    >>> import functional_opt as fo
    >>> import jax.numpy as jnp
    >>> transformation = fo.SimplifiedAdEMAMix(alpha=1.0).build(0.1)
    >>> params = jnp.array([1.0, -3.0])
    >>> updates, _ = transformation.update(params, transformation.init(params), params)
    >>> [round(float(x), 3) for x in updates]
    [-0.2, 0.2]

    ```

    **Arguments:**

    - `b1`: decay rate of the sum $m$, in [0, 1).
    - `b2`: exponential decay rate of the second moment $v$, in [0, 1).
    - `alpha`: $\\alpha$, the weight of the newest gradient: a number of at least 0, or
        a schedule. The larger the batch, the smaller it should be.
    - `eps`: $\\epsilon$, in units of the gradient; at least 0.
    - `eps_root`: $\\bar\\epsilon$, in units of the squared gradient; at least 0.
    - `weight_decay`: decoupled weight decay per unit of learning rate, a number or a
        schedule; at least 0.
    - `mask`: mask function from the parameters to a tree of bools, true for those that
        decay, such as a [`Where`][]. If omitted, all decay.
    """

    _: KW_ONLY
    b1: DecayRate = number(default=0.99)
    b2: DecayRate = number(default=0.95)
    alpha: AbstractSchedule | NonNegative = part(default=0.0)
    eps: NonNegative = number(default=1e-8)
    eps_root: NonNegative = number(default=0.0)
    weight_decay: WeightDecay = part(default=0.0)
    mask: Mask | None = setting(default=None)

    @typed
    def build(self, schedule: LearningRate) -> optax.GradientTransformationExtraArgs:
        ademamix = built(optax.contrib.simplified_ademamix, self, schedule)
        return real_only(ademamix, "`SimplifiedAdEMAMix`")
