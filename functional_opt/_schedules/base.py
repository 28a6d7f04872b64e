import abc

import jax
import jax.numpy as jnp
import optax

from .._base import AbstractSchedule
from .._types import Scalars, typed


class AbstractOptaxSchedule(AbstractSchedule):
    """A schedule that a function of Optax makes of its fields."""

    @abc.abstractmethod
    def build(self) -> optax.Schedule:
        """What Optax makes of the fields: a function of a single count at least."""

    @typed
    def __call__(self, count: jax.typing.ArrayLike) -> Scalars:
        value = self.build()(count)
        # For one count a constant stays itself, as in Optax: a float takes the dtype
        # of what it multiplies, an array of it would be rounded before.
        if jnp.shape(value) == jnp.shape(count):
            return value  # pyright: ignore[reportReturnType]
        return jnp.broadcast_to(value, jnp.shape(count))
