"""Types that are shared by annotations."""

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


def check_transformation(name: str, value: object) -> None:
    if not isinstance(value, optax.GradientTransformation):
        raise TypeError(
            f"`{name}` must be an `optax.GradientTransformation`, got a "
            f"{type(value).__name__}: {value!r}. Build an optimizer of this library "
            "with `optimizer.build(schedule)`, and `optax.MultiSteps` with "
            "`.gradient_transformation()`."
        )


Scalar = float | Float[Array, ""]
Scalars = float | Float[Array, "..."]
# Equal to `optax.Schedule`, but mypy treats all types of Optax as `Any`.
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
# Without 64-bit numbers, keys of JAX take no more than this of a seed.
Seed = Annotated[int, Interval(ge=0, lt=2**32)]

if TYPE_CHECKING:
    # The argument may be any `DTypeLike`; the field is an `np.dtype`.
    FloatDtype = jax.typing.DTypeLike
    Transformation = optax.GradientTransformation
else:
    FloatDtype = Annotated[np.dtype, Predicate(floating)]
    # `check_transformation` has a better error.
    Transformation = Annotated[Any, Named("GradientTransformation", "")]
