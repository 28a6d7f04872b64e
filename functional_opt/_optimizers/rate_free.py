"""Adam with an estimated learning rate; the given learning rate is a factor on it."""

from dataclasses import KW_ONLY
from typing import Any, final

import optax

from .._base import AbstractOptimizer
from .._composition.decay import keep_decay, without_decay
from .._fields import as_number, number, part, setting
from .._transformations.gradients import real_only
from .._types import DecayRate, LearningRate, NonNegative, Positive, typed
from .factories import built, check_starts


def _as_pair(value: Any) -> Any:
    return tuple(map(as_number, value)) if isinstance(value, list | tuple) else value


@final
class Prodigy(AbstractOptimizer):
    """[Prodigy](https://arxiv.org/abs/2306.06101) (Mishchenko and Defazio 2024).

    `optax.contrib.prodigy`: Adam with the learning rate $\\eta d$. The given $\\eta$ is
    1 or a schedule up to 1; $d$ estimates the distance from the first parameters
    $\\theta_0$ to the solution. $d$ is the largest value so far of $c r / \\|s\\|_1$,
    with $r$ and $s$ moving sums of $d^2 \\langle g, \\theta_0 - \\theta \\rangle / d_0$
    and $d^2 g / d_0$ (algorithm 4). The sums are over the whole model.

    ```python
    >>> import functional_opt as fo
    >>> import jax.numpy as jnp
    >>> transformation = fo.Prodigy(estim_lr0=0.01).build(1.0)
    >>> params = jnp.array([1.0, -3.0])
    >>> updates, _ = transformation.update(params, transformation.init(params), params)
    >>> [round(float(x), 3) for x in updates]
    [-0.01, 0.01]

    ```

    **Arguments:**

    - `betas`: exponential decay rates of the first and the second moment, in [0, 1).
    - `beta3`: decay rate of the sums $r$ and $s$, in [0, 1); if omitted, the square
        root of that of the second moment.
    - `eps`: added to the square root, in units of $d$ times the gradient; at least 0.
    - `estim_lr0`: $d_0$, the first estimate; greater than 0.
    - `estim_lr_coef`: $c$; greater than 0.
    - `weight_decay`: decoupled weight decay per unit of the whole learning rate, the
        estimate included; at least 0.
    - `safeguard_warmup`: whether $s$ leaves out the given learning rate. A warmup from
        0 requires it.
    """

    _: KW_ONLY
    betas: tuple[DecayRate, DecayRate] = part(default=(0.9, 0.999), convert=_as_pair)
    beta3: DecayRate | None = number(default=None)
    eps: NonNegative = number(default=1e-8)
    estim_lr0: Positive = number(default=1e-6)
    estim_lr_coef: Positive = number(default=1.0)
    weight_decay: NonNegative = number(default=0.0)
    safeguard_warmup: bool = setting(default=False)

    @typed
    def build(self, schedule: LearningRate) -> optax.GradientTransformationExtraArgs:
        if not self.safeguard_warmup:
            instead = "Set `Prodigy.safeguard_warmup`, or begin above 0."
            check_starts(schedule, "Prodigy", instead)
        return real_only(built(optax.contrib.prodigy, self, schedule), "`Prodigy`")


@final
class DAdaptAdamW(AbstractOptimizer):
    """[D-Adaptation](https://arxiv.org/abs/2301.07733) of AdamW (Defazio and Mishchenko
    2023): `optax.contrib.dadapt_adamw`.

    The learning rate is the given one times an estimate of the distance from the first
    parameters to the solution. The given one is 1 or a schedule up to 1 that does not
    begin at 0. The estimate only grows, and depends on sums over the whole model.

    ```python
    >>> import functional_opt as fo
    >>> import jax.numpy as jnp
    >>> transformation = fo.DAdaptAdamW(estim_lr0=0.01).build(1.0)
    >>> params = jnp.array([1.0, -3.0])
    >>> updates, _ = transformation.update(params, transformation.init(params), params)
    >>> [round(float(x), 4) for x in updates]
    [-0.01, 0.01]

    ```

    **Arguments:**

    - `betas`: exponential decay rates of the first and the second moment, in [0, 1).
    - `eps`: added to the square root, in units of the gradient; at least 0.
    - `estim_lr0`: the first estimate; greater than 0.
    - `weight_decay`: decoupled weight decay per unit of the whole learning rate, the
        estimate included; at least 0.
    """

    _: KW_ONLY
    betas: tuple[DecayRate, DecayRate] = part(default=(0.9, 0.999), convert=_as_pair)
    eps: NonNegative = number(default=1e-8)
    estim_lr0: Positive = number(default=1e-6)
    weight_decay: NonNegative = number(default=0.0)

    @typed
    def build(self, schedule: LearningRate) -> optax.GradientTransformationExtraArgs:
        check_starts(schedule, "DAdaptAdamW", "Begin above 0.")
        adamw = built(optax.contrib.dadapt_adamw, self, schedule)
        return real_only(adamw, "`DAdaptAdamW`")


without_decay.register(DAdaptAdamW, keep_decay)
without_decay.register(Prodigy, keep_decay)
