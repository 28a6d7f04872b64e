"""Updates and weight decays that apply only where signs agree."""

from typing import Any

import jax
import jax.numpy as jnp
import optax


def mask_by_sign(
    inner: optax.GradientTransformation, min_fraction: Any
) -> optax.GradientTransformationExtraArgs:
    """Keeps the entries of an update that descend along the gradient.

    What is left of each parameter's update is divided by the fraction of its entries
    that are kept, which counts as at least `min_fraction`.
    """
    inner = optax.with_extra_args_support(inner)

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> Any:
        grads = updates
        updates, state = inner.update(updates, state, params, **extra_args)
        return jax.tree.map(keep, updates, grads), state

    def keep(step: jax.Array, grad: jax.Array) -> jax.Array:
        # Signs, since products of small numbers vanish.
        # A step that is not a number is kept, to be seen.
        agreement = jnp.sign(step) * jnp.sign(grad).astype(step.dtype)
        descends = ~(agreement >= 0)
        wide = jnp.promote_types(step.dtype, jnp.float32)
        fraction = jnp.maximum(jnp.mean(descends, dtype=wide), min_fraction)
        kept = jnp.where(descends, step.astype(wide) / fraction, 0.0)
        return kept.astype(step.dtype)

    return optax.GradientTransformationExtraArgs(inner.init, update)


def where_closer_to_zero(
    decay: optax.GradientTransformation,
) -> optax.GradientTransformation:
    """Adds a weight decay to entries whose update brings them closer to 0, or is 0.

    **Arguments:**

    - `decay`: adds the whole weight decay to the updates.
    """

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        pulls, state = decay.update(optax.tree.zeros_like(updates), state, params)
        return jax.tree.map(add, updates, pulls), state

    def add(step: jax.Array, pull: jax.Array) -> jax.Array:
        # A decay has the sign that is closer to 0.
        agrees = jnp.sign(step) * jnp.sign(pull).astype(step.dtype) >= 0
        return step + jnp.where(agrees, pull, jnp.zeros_like(pull))

    return optax.GradientTransformation(decay.init, update)
