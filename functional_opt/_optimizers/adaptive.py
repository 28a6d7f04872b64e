"""Steps in units of the gradient's own root mean square."""

from dataclasses import KW_ONLY
from typing import final

import optax

from .._base import AbstractOptimizer, WeightDecay
from .._composition.decay import decayed
from .._fields import as_dtype, number, part, setting
from .._transformations.gradients import real_if
from .._types import DecayRate, FloatDtype, LearningRate, NonNegative, typed
from .._where import Mask
from .decay import decayed_as


@final
class Adam(AbstractOptimizer):
    """[Adam](https://arxiv.org/abs/1412.6980) (Kingma and Ba 2015): `optax.adam`.

    With $m$ and $v$ the moving averages of the gradient and of its square, corrected
    for their start at 0, a step is the learning rate times
    $m / (\\sqrt{v + \\bar\\epsilon} + \\epsilon)$: algorithm 1, with
    $\\bar\\epsilon$ = `eps_root` in addition to $\\epsilon$.

    ```python
    >>> import functional_opt as fo
    >>> import jax.numpy as jnp
    >>> transformation = fo.Adam(b2=0.99).build(0.5)
    >>> params = jnp.array([1.0, -1.0])
    >>> updates, _ = transformation.update(params, transformation.init(params))
    >>> [round(float(x), 3) for x in updates]
    [-0.5, 0.5]

    ```

    **Arguments:**

    - `b1`: exponential decay rate of the first moment $m$, in [0, 1).
    - `b2`: exponential decay rate of the second moment $v$, in [0, 1).
    - `eps`: added to the square root, in units of the gradient; at least 0.
    - `eps_root`: added under the square root, in units of the squared gradient; at
        least 0. It must be positive to differentiate through the update.
    - `mu_dtype`: dtype of the first moment $m$; if omitted, that of the parameters.
    - `nesterov`: whether to use Nesterov momentum, as
        [NAdam](https://openreview.net/forum?id=OM0jvwB8jIp57ZJjtNEZ) does.
    """

    _: KW_ONLY
    b1: DecayRate = number(default=0.9)
    b2: DecayRate = number(default=0.999)
    eps: NonNegative = number(default=1e-8)
    eps_root: NonNegative = number(default=0.0)
    mu_dtype: FloatDtype | None = setting(default=None, convert=as_dtype)
    nesterov: bool = setting(default=False)

    @typed
    def build(self, schedule: LearningRate) -> optax.GradientTransformationExtraArgs:
        adam = optax.adam(
            schedule,
            b1=self.b1,
            b2=self.b2,
            eps=self.eps,
            eps_root=self.eps_root,
            mu_dtype=self.mu_dtype,
            nesterov=self.nesterov,
        )
        has_dtype = self.mu_dtype is not None
        return real_if(has_dtype, adam, "`Adam.mu_dtype`")


@final
class AdamW(AbstractOptimizer):
    """[AdamW](https://arxiv.org/abs/1711.05101) (Loshchilov and Hutter 2019).

    `optax.adamw`: Adam with decoupled weight decay: each update also subtracts the
    learning rate times `weight_decay` times the parameter (algorithm 2).

    ```python
    >>> import functional_opt as fo
    >>> schedule = fo.Cosine(peak_value=3e-4, warmup_steps=500, decay_steps=10_000)
    >>> transformation = fo.AdamW(b2=0.95, weight_decay=0.1).build(schedule)

    ```

    **Arguments:**

    - `b1`, `b2`, `eps`, `eps_root`, `mu_dtype`, `nesterov`: as in [`Adam`][].
    - `weight_decay`: decoupled weight decay per unit of learning rate, a number or a
        schedule; at least 0.
    - `mask`: mask function from the parameters to a tree of bools, true for those that
        decay, such as a [`Where`][]. If omitted, all decay.
    """

    _: KW_ONLY
    b1: DecayRate = number(default=0.9)
    b2: DecayRate = number(default=0.999)
    eps: NonNegative = number(default=1e-8)
    eps_root: NonNegative = number(default=0.0)
    mu_dtype: FloatDtype | None = setting(default=None, convert=as_dtype)
    weight_decay: WeightDecay = part(default=1e-4)
    mask: Mask | None = setting(default=None)
    nesterov: bool = setting(default=False)

    @typed
    def build(self, schedule: LearningRate) -> optax.GradientTransformationExtraArgs:
        adamw = optax.adamw(
            schedule,
            b1=self.b1,
            b2=self.b2,
            eps=self.eps,
            eps_root=self.eps_root,
            mu_dtype=self.mu_dtype,
            weight_decay=self.weight_decay,
            mask=self.mask,
            nesterov=self.nesterov,
        )
        has_dtype = self.mu_dtype is not None
        return real_if(has_dtype, adamw, "`AdamW.mu_dtype`")


decayed.register(Adam, decayed_as(AdamW))


@final
class RMSProp(AbstractOptimizer):
    """RMSProp ([Hinton 2012](https://www.cs.toronto.edu/~tijmen/csc321/slides/lecture_slides_lec6.pdf),
    slide 29): `optax.rmsprop`.

    With $v$ the moving average of the gradient's square, a step is the learning rate
    times $g / \\sqrt{v + \\epsilon}$. With `centered`, $v$ is the variance: equations
    38 to 41 of [Graves 2014](https://arxiv.org/abs/1308.0850).

    ```python
    >>> import functional_opt as fo
    >>> import jax.numpy as jnp
    >>> transformation = fo.RMSProp(decay=0.75).build(0.1)
    >>> params = jnp.array([1.0, -1.0])
    >>> updates, _ = transformation.update(params, transformation.init(params))
    >>> [round(float(x), 3) for x in updates]
    [-0.2, 0.2]

    ```

    **Arguments:**

    - `decay`: exponential decay rate of the second moment $v$, in [0, 1).
    - `eps`: $\\epsilon$, in units of the squared gradient, or of the gradient if
        `eps_in_sqrt` is false; at least 0.
    - `initial_scale`: initial value of $v$, in units of the squared gradient; at least
        0.
    - `eps_in_sqrt`: whether `eps` is added under the square root, rather than to it as
        in PyTorch.
    - `centered`: whether to subtract the square of the mean gradient from $v$.
    - `momentum`: decay rate of the momentum of the updates, in [0, 1). If None, there
        is no momentum.
    - `nesterov`: whether to use Nesterov momentum. It has no effect without `momentum`.
    - `bias_correction`: whether $v$ is corrected for its initial value.
    """

    _: KW_ONLY
    decay: DecayRate = number(default=0.9)
    eps: NonNegative = number(default=1e-8)
    initial_scale: NonNegative = number(default=0.0)
    eps_in_sqrt: bool = setting(default=True)
    centered: bool = setting(default=False)
    momentum: DecayRate | None = number(default=None)
    nesterov: bool = setting(default=False)
    bias_correction: bool = setting(default=False)

    @typed
    def build(self, schedule: LearningRate) -> optax.GradientTransformationExtraArgs:
        return optax.rmsprop(
            schedule,
            decay=self.decay,
            eps=self.eps,
            initial_scale=self.initial_scale,
            eps_in_sqrt=self.eps_in_sqrt,
            centered=self.centered,
            momentum=self.momentum,
            nesterov=self.nesterov,
            bias_correction=self.bias_correction,
        )
