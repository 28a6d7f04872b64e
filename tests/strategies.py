"""Hypothesis strategies for trees, stages, numbers and Optax transformations."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import functional_opt as fo
import jax
import jax.numpy as jnp
import numpy as np
import optax
from hypothesis import strategies as st
from optax import contrib


class Pair(eqx.Module):
    first: Any
    second: Any
    nothing: None = None
    name: str = eqx.field(default="pair", static=True)


SHAPES = [(), (1,), (3,), (2, 3), (5, 1), (2, 1, 4)]


@st.composite
def leaves(draw, dtypes=("float32", "float32", "bfloat16")):
    dtype = draw(st.sampled_from(dtypes))
    return jax.ShapeDtypeStruct(draw(st.sampled_from(SHAPES)), dtype)


def trees(leaf=None):
    """Nested dicts, tuples and modules, with None and empty containers among them."""
    return st.recursive(
        (leaves() if leaf is None else leaf) | st.none(),
        lambda inner: (
            st.dictionaries(st.sampled_from("abc"), inner, max_size=3)
            | st.tuples(inner, inner)
            | st.builds(Pair, inner, inner)
        ),
        max_leaves=5,
    )


@st.composite
def staged_trees(draw, leaf=None, tied=False):
    """A tree of shapes, the stage of each leaf, and how many stages there are.

    Or the stages: of tied trees, a leaf may have up to three owners. One tree in eight
    is a bare array.
    """
    is_bare = draw(st.integers(0, 7)) == 7
    bare = leaves() if leaf is None else leaf
    # To Optax, parameters that are None are missing.
    tree = draw(bare) if is_bare else (draw(trees(leaf)),)
    num_stages = draw(st.integers(1, 5))
    num_leaves = len(jax.tree.leaves(tree))
    stage = st.integers(0, num_stages - 1)
    owners = st.frozensets(stage, min_size=1, max_size=3) if tied else stage
    return tree, draw(st.tuples(*[owners] * num_leaves)), num_stages


# Not within the strategy: the type checker samples long tuples at random, and
# Hypothesis wants to draw all randomness itself.
def partition_of(tree, stages, num_stages):
    stage = iter(stages)
    return fo.partition(tree, lambda *_: next(stage), num_stages=num_stages)


def values(draw, tree):
    """A tree of small numbers, with zeros, negative zeros and large ones among them."""
    seed = draw(st.integers(0, 2**16))
    generator = np.random.default_rng(seed)

    def value(shape):
        normal = generator.normal(size=shape.shape) * 10.0 ** generator.integers(-3, 2)
        zeros = generator.choice(
            [1.0, 0.0, -0.0], size=shape.shape, p=[0.9, 0.05, 0.05]
        )
        return jnp.asarray(normal * zeros, shape.dtype)

    return jax.tree.map(value, tree)


def gradients(draw, tree, steps=3):
    """A tree of numbers for each step; now and then a leaf has a NaN or an infinity."""
    trees = [values(draw, tree) for _ in range(steps)]
    if not jax.tree.leaves(tree) or draw(st.booleans()):
        return trees
    step = draw(st.integers(0, steps - 1))
    leaves, structure = jax.tree.flatten(trees[step])
    bad = draw(st.integers(0, len(leaves) - 1))
    leaves[bad] = (
        leaves[bad]
        .ravel()
        .at[0]
        .set(draw(st.sampled_from([jnp.nan, jnp.inf, -jnp.inf])))
    ).reshape(leaves[bad].shape)
    trees[step] = jax.tree.unflatten(structure, leaves)
    return trees


def rates():
    return st.floats(1e-4, 0.5)


def decays():
    return st.floats(0.0, 0.99)


def limits():
    return st.floats(0.01, 10.0)


@dataclass(frozen=True)
class Named:
    """A transformation that prints as the call which made it."""

    text: str
    tx: Any

    def __repr__(self) -> str:
        return self.text


def made(function: Callable[..., Any], **arguments: Any) -> st.SearchStrategy[Named]:
    """Calls a function of Optax with drawn arguments."""

    def make(drawn: dict[str, Any]) -> Named:
        given = ", ".join(f"{key}={value!r}" for key, value in drawn.items())
        return Named(f"{function.__name__}({given})", function(**drawn))

    return st.fixed_dictionaries(arguments).map(make)


def has_rows(params):
    return jax.tree.map(lambda x: x.ndim > 0, params)


def labels(params):
    return jax.tree.map(lambda x: "rows" if x.ndim > 0 else "scalars", params)


def _elementary() -> list[st.SearchStrategy[Named]]:
    """Public transformations of Optax that wrap no other."""
    betas = {"b1": decays(), "b2": decays(), "eps": st.floats(1e-6, 1e-2)}
    rms = {"decay": decays(), "eps": st.floats(1e-6, 1e-2)}
    return [
        made(optax.clip, max_delta=limits()),
        made(optax.clip_by_global_norm, max_norm=limits()),
        made(optax.clip_by_block_rms, threshold=limits()),
        made(optax.adaptive_grad_clip, clipping=st.floats(0.01, 1.0)),
        made(optax.normalize_by_update_norm),
        made(contrib.normalize),
        made(optax.centralize),
        made(optax.zero_nans),
        made(optax.keep_params_nonnegative),
        made(optax.scale, step_size=st.floats(-2.0, 2.0)),
        made(optax.scale_by_learning_rate, learning_rate=rates()),
        made(
            optax.scale_by_schedule,
            step_size_fn=st.just(optax.linear_schedule(1.0, 0.1, 3)),
        ),
        made(optax.trace, decay=decays(), nesterov=st.booleans()),
        made(optax.ema, decay=decays(), debias=st.booleans()),
        made(optax.add_decayed_weights, weight_decay=decays()),
        made(optax.add_decayed_weights, weight_decay=decays(), mask=st.just(has_rows)),
        made(
            optax.add_noise,
            eta=st.floats(0.0, 0.1),
            gamma=decays(),
            key=st.integers(0, 99),
        ),
        made(optax.scale_by_adam, **betas, nesterov=st.booleans()),
        made(optax.scale_by_amsgrad, **betas),
        made(optax.scale_by_adamax, **betas),
        made(optax.scale_by_belief, **betas),
        made(optax.scale_by_yogi, **betas),
        made(optax.scale_by_radam, **betas),
        made(optax.scale_by_novograd, **betas),
        made(optax.scale_by_adan, b1=decays(), b2=decays(), b3=decays()),
        made(optax.scale_by_adadelta, rho=decays(), eps=st.floats(1e-6, 1e-2)),
        made(optax.scale_by_lion, b1=decays(), b2=decays()),
        made(optax.scale_by_rms, **rms),
        made(optax.scale_by_stddev, **rms),
        made(optax.scale_by_rss),
        made(optax.scale_by_sign),
        made(optax.scale_by_sm3),
        made(optax.scale_by_rprop, learning_rate=rates()),
        made(optax.scale_by_trust_ratio),
        made(optax.scale_by_param_block_norm),
        made(optax.scale_by_param_block_rms),
        made(optax.scale_by_factored_rms, min_dim_size_to_factor=st.integers(1, 3)),
        made(optax.scale_by_optimistic_gradient),
        made(optax.scale_by_distance_over_gradients),
        made(contrib.scale_by_ademamix),
        made(contrib.scale_by_simplified_ademamix),
        made(contrib.scale_by_acprop),
        made(contrib.scale_by_adopt),
        made(contrib.scale_by_madgrad, learning_rate=rates()),
        made(contrib.scale_by_cocob),
    ]


# Composite strategies, as the texts of nested ones are too long for Hypothesis.
@st.composite
def elementary(draw) -> Named:
    return draw(draw(st.sampled_from(_elementary())))


@st.composite
def wrapped(draw, inner: st.SearchStrategy[Named]) -> Named:
    """A public wrapper of Optax around another transformation."""
    name = draw(st.sampled_from(sorted(WRAPPERS)))
    named = draw(inner)
    return Named(f"{name}({named})", WRAPPERS[name](named.tx))


WRAPPERS: dict[str, Callable[[Any], Any]] = {
    "masked": lambda tx: optax.masked(tx, has_rows),
    "partition": lambda tx: optax.partition(
        {"rows": tx, "scalars": optax.scale(0.5)}, labels
    ),
    "MultiSteps": lambda tx: optax.MultiSteps(tx, 2).gradient_transformation(),
    "MultiSteps skipping": lambda tx: optax.MultiSteps(
        tx, 2, should_skip_update_fn=optax.skip_not_finite
    ).gradient_transformation(),
    "apply_if_finite": lambda tx: optax.apply_if_finite(tx, 2),
    "conditionally_transform": lambda tx: optax.conditionally_transform(
        tx, lambda step, **_: jnp.asarray(step) % 2 == 0
    ),
}


@st.composite
def chains(draw) -> Named:
    """A chain of up to three of Optax's transformations, some of them wrapped."""
    link = elementary() | elementary() | wrapped(elementary())
    parts = draw(st.lists(link, min_size=1, max_size=3))
    text = ", ".join(map(repr, parts))
    chained = Named(f"chain({text})", optax.chain(*(x.tx for x in parts)))
    return draw(st.just(chained) | st.just(chained) | wrapped(st.just(chained)))
