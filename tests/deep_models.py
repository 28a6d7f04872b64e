"""A deep model with parameters of every kind, and its stages."""

from typing import Any

import functional_opt as fo
import jax
import jax.numpy as jnp


SHAPES = ((6, 4), (4,), (4, 4), (), (2, 3, 4))


def deep(leaves: int = 42, dtype: Any = "float32") -> dict[str, jax.Array]:
    """Matrices, biases, scalars and stacks; named `layer 00` and so on."""
    return {
        f"layer {i:02d}": jax.random.normal(
            jax.random.key(i), SHAPES[i % len(SHAPES)]
        ).astype(dtype)
        for i in range(leaves)
    }


def mixed(params: Any) -> Any:
    """The same parameters, every third of them in bfloat16."""
    names = list(params)[::3]
    return params | {name: params[name].astype("bfloat16") for name in names}


def on_stages(
    params: Any, stages: int = 8, tied: tuple[str, ...] = ()
) -> fo.StagePartition:
    """Consecutive layers together; the tied ones on the first stage and the last."""
    count = len(params)

    def stage_of(path: Any, leaf: Any) -> int | set[int]:
        del leaf
        if path[0].key in tied:
            return {0, stages - 1}
        return int(path[0].key.removeprefix("layer ")) * stages // count

    return fo.partition(params, stage_of, num_stages=stages)


def gradients(
    params: Any, steps: int = 3, bad: tuple[int, ...] = (), scale: float = 1.0
) -> list[Any]:
    """Gradients of each step; in the `bad` ones, one value is not finite."""
    found = [
        jax.tree.map(lambda x, i=i: scale * jnp.sin((i + 1) * x + 0.1), params)
        for i in range(steps)
    ]
    for step in bad:
        found[step]["layer 01"] *= jnp.nan
    return found
