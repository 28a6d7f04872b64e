"""Runs of recipes, and what one writes by hand with Optax in their place."""

from typing import Any, NamedTuple

import functional_opt as fo
import jax
import jax.numpy as jnp
import optax


PARAMS = {
    "embed": jnp.array([[1.0, -2.0], [3.0, 0.5]]),
    "body": jnp.array([[0.3, 1.0, -0.7]]),
    "norm": jnp.array([1.0, 1.5]),
}
STAGES = {"embed": {0, 2}, "body": 1, "norm": 2}
SCHEDULE = fo.Cosine(peak_value=0.1, warmup_steps=2, decay_steps=6)
THEIR_SCHEDULE = optax.warmup_cosine_decay_schedule(0.0, 0.1, 2, 6)


def is_matrix(params):
    return jax.tree.map(lambda x: x.ndim >= 2, params)


def moments(state):
    """What an optimizer keeps of each parameter, in order."""
    return [leaf for leaf in jax.tree.leaves(state) if jnp.ndim(leaf) > 0]


def grads_of(params, bad=False):
    grads = jax.tree.map(lambda x: jnp.sin(3 * x), params)
    return grads | {"norm": jnp.where(bad, jnp.nan, grads["norm"])}


class Run(NamedTuple):
    params: Any
    state: Any
    updates: list[Any]
    history: list[Any]


def run(
    transformation,
    steps=6,
    bad=(),
    params: Any = PARAMS,
    grads_of=grads_of,
    extra_args: Any = None,
    jit: Any = jax.jit,
):
    """A few compiled steps; the gradients of the `bad` ones are not finite."""

    @jit
    def step(params, state, bad):
        grads = grads_of(params, bad)
        updates, state = transformation.update(grads, state, params, **extra_args or {})
        return optax.apply_updates(params, updates), state, updates

    state, updates, history = transformation.init(params), [], []
    for count in range(steps):
        params, state, update = step(params, state, count in bad)
        updates.append(update)
        history.append(params)
    return Run(params, state, updates, history)


def recipe(**fields: Any) -> fo.Recipe:
    defaults: dict[str, Any] = dict(optimizer=fo.AdamW(b2=0.95), schedule=SCHEDULE)
    return fo.Recipe(**defaults | fields)


def everything(**fields: Any) -> fo.Recipe:
    return recipe(
        **dict(
            clip_norm=0.5,
            weight_decay=0.1,
            decay_where=fo.Where(min_ndim=2),
            accumulate=2,
            skip_nonfinite=True,
            ema_decay=0.75,
            state_dtype="bfloat16",
        )
        | fields
    )


def by_hand(
    clip_norm=None,
    weight_decay=1e-4,
    accumulate=1,
    skip_nonfinite=False,
    state_dtype=None,
    track_norm=False,
):
    chain = optax.adamw(
        THEIR_SCHEDULE, b2=0.95, weight_decay=weight_decay, mu_dtype=state_dtype
    )
    if clip_norm is not None:
        chain = optax.chain(optax.clip_by_global_norm(clip_norm), chain)
    if accumulate > 1:
        chain = optax.MultiSteps(chain, accumulate).gradient_transformation()
    return optax.apply_if_finite(chain, 1_000) if skip_nonfinite else chain


def frozen_groups():
    return fo.Groups(
        (fo.Group(fo.Where("norm"), optimizer=fo.Frozen()),), rest=fo.AdamW(b2=0.95)
    )
