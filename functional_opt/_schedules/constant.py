from typing import final

import jax
import jax.numpy as jnp

from .._base import AbstractSchedule
from .._config import number
from .._types import Scalar, Scalars, typed


@final
class Constant(AbstractSchedule):
    """The same value at every update: `optax.constant_schedule`.

    ```python
    >>> import functional_opt as fo
    >>> fo.Constant(3e-4)(1_000)
    0.0003

    ```

    **Arguments:**

    - `value`: any finite number, in the unit of the hyperparameter.
    """

    value: Scalar = number(kw_only=False)

    @typed
    def __call__(self, count: jax.typing.ArrayLike) -> Scalars:
        # For one count the value stays itself, as in Optax: a float takes the dtype of
        # what it multiplies, an array of it would be rounded before.
        if jnp.ndim(count) == 0:
            return self.value
        return jnp.broadcast_to(self.value, jnp.shape(count))
