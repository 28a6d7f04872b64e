"""The parameters, their stages and their update."""

import math
from typing import Any

import functional_opt as fo
import jax
import jax.numpy as jnp
import numpy as np
import optax


CLIP_NORM = 1.0
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 1e-4


def transformation() -> optax.GradientTransformationExtraArgs:
    return optax.chain(
        optax.clip_by_global_norm(CLIP_NORM),
        optax.adamw(LEARNING_RATE, weight_decay=WEIGHT_DECAY),
    )


def shapes(num_leaves: int, num_stages: int, width: int) -> Any:
    """Matrices of two shapes, spread evenly over the stages."""
    kinds = [(width, width), (width, 2 * width)]
    counts = [
        num_leaves // num_stages + (stage < num_leaves % num_stages)
        for stage in range(num_stages)
    ]
    return {
        f"stage{stage:02}": [
            jax.ShapeDtypeStruct(kinds[i % len(kinds)], jnp.float32)
            for i in range(count)
        ]
        for stage, count in enumerate(counts)
    }


def size(tree: Any) -> int:
    """The number of parameters."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def partition(params: Any) -> fo.StagePartition:
    return fo.partition(params, {name: stage for stage, name in enumerate(params)})


def normal_like(tree: Any, seed: int) -> Any:
    """Random values on the host: a few, repeated, since drawing many is slow."""
    pool = np.random.default_rng(seed).standard_normal(65_521, np.float32)
    leaves, structure = jax.tree.flatten(tree)
    values = [np.resize(np.roll(pool, i), x.shape) for i, x in enumerate(leaves)]
    return jax.tree.unflatten(structure, values)


def put(tree: Any, device: Any) -> Any:
    """Values on a device, in buffers that can be donated."""
    return jax.device_put(tree, device, may_alias=False)
