"""Every optimizer on 40 leaves in 8 stages, as on the whole tree."""

from typing import Any

import functional_opt as fo
import jax
import jax.numpy as jnp
import optax
import pytest
from catalogue import EXAMPLES, extra_args, KINDS
from optimizers_table import (
    exchange,
    exchange_on_page,
    grades,
    ORDER,
    PARAMS,
    PARTITION,
    STAGED,
    staged,
)


# Those that are compared elsewhere, and where.
ELSEWHERE = {
    "DPSGD": "test_catalogue, as its gradients have another axis",
    **dict.fromkeys(
        ("Kron", "Quad", "Skew"), "test_optimizers_staged, on fewer leaves"
    ),
    "LBFGS": "test_bfloat16",
}


@pytest.mark.parametrize("name", sorted(STAGED - ELSEWHERE.keys()))
def test_the_same_as_on_the_whole_tree(name):
    """Step by step from the state of the whole tree."""
    given, split = extra_args(name), PARTITION.split
    tx = optax.with_extra_args_support(EXAMPLES[name].build(0.1))

    @jax.jit
    def step(grads: Any, state: Any, params: Any) -> Any:
        updates, state = tx.update(grads, state, params, **given)
        return optax.apply_updates(params, updates), state

    ours = staged(name)
    params = jax.tree.map(waves, PARAMS)
    state = jax.jit(tx.init)(params)
    for number in range(2):
        grads = jax.tree.map(lambda x, k=number + 2: jnp.cos(k * x), params)
        pieces, states = split(params), ours.split_state(state)
        found = ours.step(split(grads), states, pieces, **given)
        params, state = step(grads, state, params)
        expected = split(params), ours.split_state(state)
        fo.testing.assert_equal(found, expected, grade_of(name))
    assert exchange(ours) == exchange_on_page()[name], (
        "write the page by `nox -s table`"
    )


def waves(leaf: jax.ShapeDtypeStruct) -> jax.Array:
    return jnp.sin(jnp.arange(leaf.size, dtype=leaf.dtype)).reshape(leaf.shape)


def grade_of(name: str) -> Any:
    """The worst grade of the page."""
    possible = [grade for grade, _ in grades(KINDS[name]) if grade != "impossible"]
    return max(possible, key=ORDER.index, default="exact")
