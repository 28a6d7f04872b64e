"""Adam with one second moment per block of entries."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from .._types import FloatDtype, Scalar
from .leafwise import leafwise


class Division(NamedTuple):
    """How a parameter is divided into blocks.

    **Arguments:**

    - `shape`: the shape in which the entries of a block differ along whole axes only.
    - `within`: the axes of `shape` inside a block; there is a block per index along the
        others.
    """

    shape: tuple[int, ...]
    within: tuple[int, ...]

    def of_blocks(self) -> tuple[int, ...]:
        """The shape of one number per block, which broadcasts to `shape`."""
        return tuple(1 if i in self.within else n for i, n in enumerate(self.shape))


class BlockState(NamedTuple):
    """The state of Adam, whose second moment has one number per block."""

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    mu: PyTree
    nu: PyTree


class Moved(NamedTuple):
    """An update and the new moments of a parameter."""

    update: jax.Array
    mu: jax.Array
    nu: jax.Array


def scale_by_blocks(
    b1: Scalar,
    b2: Scalar,
    eps: Scalar,
    mu_dtype: FloatDtype | None,
    divisions: Callable[[PyTree], PyTree],
) -> optax.GradientTransformation:
    """Divides the momentum by the root mean square of each block's gradients.

    **Arguments:**

    - `b1`, `b2`, `eps`, `mu_dtype`: as in `optax.scale_by_adam`.
    - `divisions`: a function from the parameters to the `Division` of each.
    """

    def init(params: Any) -> BlockState:
        def zeros(leaf: Any, division: Division) -> jax.Array:
            real = jnp.finfo(leaf.dtype).dtype
            return jnp.zeros(division.of_blocks(), jnp.promote_types(real, jnp.float32))

        return BlockState(
            count=jnp.zeros([], jnp.int32),
            mu=optax.tree.zeros_like(params, dtype=mu_dtype),
            nu=jax.tree.map(zeros, params, divisions(params)),
        )

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        del params
        count: Any = optax.safe_increment(state.count)

        def move(grad: Any, mu: Any, nu: Any, division: Division) -> Moved:
            new = (1 - b1) * grad + b1 * mu
            wide = grad.astype(jnp.promote_types(grad.dtype, nu.dtype))
            squares = jnp.square(jnp.abs(wide)).reshape(division.shape)
            mean = jnp.mean(squares, division.within, keepdims=True)
            nu = (b2 * nu + (1 - b2) * mean).astype(nu.dtype)
            scale = jnp.sqrt(nu / (1 - b2**count)) + eps
            step = (new / (1 - b1**count)).reshape(division.shape) / scale
            step = step.reshape(grad.shape).astype(grad.dtype)
            return Moved(step, new.astype(mu.dtype), nu)

        moved = leafwise(Moved, move, updates, state.mu, state.nu, divisions(updates))
        return moved.update, BlockState(count, moved.mu, moved.nu)

    return optax.GradientTransformation(init, update)
