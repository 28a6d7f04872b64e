"""The types that annotations share, and the check that public functions carry."""

from typing import Annotated, TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
import optax
from annotated_types import Interval, Predicate
from beartype import beartype
from jaxtyping import Array, Float, jaxtyped


def floating(dtype: np.dtype) -> bool:
    return jnp.issubdtype(dtype, jnp.floating)


typed = jaxtyped(typechecker=beartype)

Scalar = float | Float[Array, ""]
Scalars = float | Float[Array, "..."]
LearningRate = optax.Schedule | Scalar | int
DecayRate = Annotated[Scalar, Interval(ge=0, lt=1)]
NonNegative = Annotated[Scalar, Interval(ge=0)]
Positive = Annotated[Scalar, Interval(gt=0)]
Count = Annotated[int, Interval(ge=0)]
PositiveCount = Annotated[int, Interval(ge=1)]

if TYPE_CHECKING:  # What is given and what is kept are not the same.
    FloatDtype = jax.typing.DTypeLike
else:
    FloatDtype = Annotated[np.dtype, Predicate(floating)]
