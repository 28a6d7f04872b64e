"""Gradient descent with differential privacy."""

from collections.abc import Mapping
from dataclasses import KW_ONLY
from types import MappingProxyType
from typing import ClassVar, final

import optax

from .._base import AbstractOptimizer
from .._fields import number, setting
from .._transformations.gradients import real_only
from .._types import DecayRate, LearningRate, NonNegative, Positive, Seed, typed


PER_EXAMPLE = (
    "it takes a gradient of each example, which have other shapes than the parameters. "
    "Use `DPSGD.build`, or `DPSGD.build_mpmd` with `grads`."
)


@final
class DPSGD(AbstractOptimizer):
    """[Differentially private SGD](https://arxiv.org/abs/1607.00133) (Abadi et al.
    2016).

    `optax.contrib.dpsgd`: the mean of the gradients of the examples of a batch, each
    scaled down to a norm of at most $C$, plus normal noise of standard deviation
    $\\sigma C$ over the size of the batch (algorithm 1). Each gradient that it is given
    has a first axis for the examples, so that it works alone, and in no `Recipe`.

    ```python
    >>> import functional_opt as fo
    >>> import jax.numpy as jnp
    >>> optimizer = fo.DPSGD(l2_norm_clip=1.0, noise_multiplier=0.0, seed=0)
    >>> transformation = optimizer.build(0.1)
    >>> params = jnp.array([1.0, -1.0])
    >>> grads = jnp.array([[3.0, -4.0], [0.6, 1.0]])
    >>> updates, _ = transformation.update(grads, transformation.init(params), params)
    >>> [round(float(x), 3) for x in updates]
    [-0.056, -0.003]

    ```

    **Arguments:**

    - `l2_norm_clip`: $C$, in units of the gradient; greater than 0.
    - `noise_multiplier`: $\\sigma$, at least 0.
    - `seed`: seed of the noise, in [0, $2^{32}$).
    - `momentum`: decay rate of the momentum, in [0, 1). If None, there is no momentum.
    - `nesterov`: whether to use Nesterov momentum. It has no effect without `momentum`.
    """

    REFUSED_BY: ClassVar[Mapping[str, str]] = MappingProxyType(
        dict.fromkeys(("Recipe", "Groups", "Cautious"), PER_EXAMPLE)
    )

    _: KW_ONLY
    l2_norm_clip: Positive = number()
    noise_multiplier: NonNegative = number()
    seed: Seed = setting()
    momentum: DecayRate | None = number(default=None)
    nesterov: bool = setting(default=False)

    @typed
    def build(self, schedule: LearningRate) -> optax.GradientTransformationExtraArgs:
        # `optax.contrib.dpsgd` warns of its own use of a seed.
        private = optax.contrib.differentially_private_aggregate(
            self.l2_norm_clip, self.noise_multiplier, key=self.seed
        )
        links = [private, optax.scale_by_learning_rate(schedule)]
        if self.momentum is not None:
            links.insert(1, optax.trace(self.momentum, self.nesterov))
        return real_only(optax.chain(*links), "`DPSGD`")
