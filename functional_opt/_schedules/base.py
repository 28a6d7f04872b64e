import abc

import jax
import jax.numpy as jnp
import optax

from .._base import AbstractSchedule
from .._types import Scalars, typed


class AbstractOptaxSchedule(AbstractSchedule):
    """A schedule that is built by a function of Optax."""

    @abc.abstractmethod
    def build(self) -> optax.Schedule:
        """The schedule of Optax for these fields, for single counts at least."""

    @typed
    def __call__(self, count: jax.typing.ArrayLike) -> Scalars:
        value = self.build()(count)
        # A constant stays a Python float, as in Optax: it takes the dtype of the array
        # that it multiplies, while an array would be rounded to float32 first.
        if jnp.shape(value) == jnp.shape(count):
            return value  # pyright: ignore[reportReturnType]
        return jnp.broadcast_to(value, jnp.shape(count))
