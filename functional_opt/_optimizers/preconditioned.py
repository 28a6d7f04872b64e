"""Steps in units of the gradient's own covariance."""

from typing import final

import optax

from .._base import AbstractDecayedOptimizer
from .._config import as_dtype, number, setting
from .._transformations.soap import scale_by_soap
from .._types import (
    DecayRate,
    FloatDtype,
    LearningRate,
    Mask,
    NonNegative,
    PositiveSteps,
    Steps,
    typed,
)
from .decay import descend


@final
class SOAP(AbstractDecayedOptimizer):
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

    - `b1`: how much of the moving average of the gradient stays at each update, in
        [0, 1).
    - `b2`: how much of that of its square stays, in [0, 1).
    - `shampoo_beta`: how much of that of $G G^T$ stays, in [0, 1); as much as `b2`, if
        left out.
    - `eps`: added to the root, in units of the gradient; at least 0.
    - `weight_decay`: per unit of learning rate; at least 0.
    - `mask`: from the parameters to a tree of bools: which of them decay, such as a
        [`Where`][]. All, if left out.
    - `precondition_frequency`: how many updates from one iteration to the next; at
        least 1.
    - `max_precond_dim`: the longest axis that has an eigenbasis; at least 0. Along
        longer ones the gradient stays as it is.
    - `merge_dims`: whether neighbouring axes are taken for one, up to a length of
        `max_precond_dim`.
    - `precondition_1d`: whether parameters of rank 1 have eigenbases, too.
    - `normalize_grads`: whether a step of a parameter has a root mean square of 1.
    - `correct_bias`: whether the moving averages are corrected for their start.
    - `mu_dtype`: the dtype that the moving average of the gradient is kept in; that of
        the parameters, if left out. Eigenbases are kept in at least float32.
    """

    b1: DecayRate = number(0.95)
    b2: DecayRate = number(0.95)
    shampoo_beta: DecayRate | None = number(None)
    eps: NonNegative = number(1e-8)
    weight_decay: NonNegative = number(0.01)
    mask: Mask | None = setting(None)
    precondition_frequency: PositiveSteps = setting(10)
    max_precond_dim: Steps = setting(10_000)
    merge_dims: bool = setting(False)
    precondition_1d: bool = setting(False)
    normalize_grads: bool = setting(False)
    correct_bias: bool = setting(True)
    mu_dtype: FloatDtype | None = setting(None, converter=as_dtype)

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
        return descend(scaled, schedule, self.weight_decay, self.mask)
