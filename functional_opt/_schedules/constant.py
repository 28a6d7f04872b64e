from typing import final

import jax
import jax.numpy as jnp
import optax

from .._base import AbstractSchedule
from .._config import number
from .._types import Scalar, typed


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
    def __call__(self, count: jax.typing.ArrayLike) -> jax.typing.ArrayLike:
        value = optax.constant_schedule(self.value)(count)
        # Optax's value for one count stays as it is: as a float it takes the dtype of
        # what it multiplies, an array of it would round it first.
        return jnp.broadcast_to(value, jnp.shape(count)) if jnp.ndim(count) else value
