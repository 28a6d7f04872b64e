"""The parameters that are updated, and the stages that own them."""

from typing import Any

import functional_opt as fo
import jax
import jax.numpy as jnp
import optax


LEAVES_A_STAGE = 40


def transformation() -> optax.GradientTransformationExtraArgs:
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))


def shapes(num_leaves: int, num_stages: int, width: int) -> Any:
    """Layers of two vectors and two matrices, spread over stages of equal structure."""
    counts = [num_leaves // num_stages] * num_stages
    for stage in range(num_leaves % num_stages):
        counts[stage] += 1
    kinds = [(width, width), (width,), (width, 2 * width), (2 * width,)]
    return {
        f"stage{stage:02}": [
            jax.ShapeDtypeStruct(kinds[i % len(kinds)], jnp.float32)
            for i in range(count)
        ]
        for stage, count in enumerate(counts)
    }


def partition(params: Any) -> fo.StagePartition:
    return fo.partition(params, {name: s for s, name in enumerate(params)})


def random_like(tree: Any, seed: int, scale: float = 1.0) -> Any:
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    normal = jax.jit(jax.random.normal, static_argnums=(1, 2))
    return jax.tree.unflatten(
        structure,
        [
            scale * normal(key, leaf.shape, leaf.dtype)
            for key, leaf in zip(keys, leaves, strict=True)
        ],
    )
