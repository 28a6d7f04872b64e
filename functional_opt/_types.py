"""The types that annotations share."""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
import optax
from annotated_types import Interval, Predicate
from jaxtyping import Array, Float

from ._annotations import Named
from ._calls import typed as typed


def floating(dtype: np.dtype) -> bool:
    return jnp.issubdtype(dtype, jnp.floating)


Scalar = float | Float[Array, ""]
Scalars = float | Float[Array, "..."]
# What `optax.Schedule` is; to mypy, whatever comes from Optax is `Any`.
Schedule = Annotated[
    Callable[[jax.typing.ArrayLike], jax.typing.ArrayLike],
    Named("Schedule", "a function of the update count"),
]
LearningRate = Schedule | Scalar
Counts = Annotated[
    Sequence[int] | jax.typing.ArrayLike,
    Named("ArrayLike", "an int or an array of ints"),
]
DecayRate = Annotated[Scalar, Interval(ge=0, lt=1)]
NonNegative = Annotated[Scalar, Interval(ge=0)]
Positive = Annotated[Scalar, Interval(gt=0)]
Count = Annotated[int, Interval(ge=0)]
PositiveCount = Annotated[int, Interval(ge=1)]

if TYPE_CHECKING:
    # What is given and what is kept are not the same.
    FloatDtype = jax.typing.DTypeLike
    Transformation = optax.GradientTransformation
else:
    FloatDtype = Annotated[np.dtype, Predicate(floating)]
    # Whatever has `init` and `update` will do: `stage_local` looks at it itself.
    Transformation = Annotated[Any, Named("GradientTransformation", "")]
