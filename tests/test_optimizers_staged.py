"""Every optimizer in stages, with nothing written for it."""

import functional_opt as fo
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import quick_compiler
from optimizer_cases import CASES
from rooms import balance, precondition


PARAMS = {
    "embed": {"weight": (5, 4)},
    "layers": {"weight": (2, 4, 4)},
    "head": {"scale": (4,), "temperature": ()},
}
STAGES = {"embed": 0, "layers": 1, "head": {"scale": 1, "temperature": 0}}
MATRICES = fo.Where(min_ndim=2)


def shapes(dtype):
    return jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, dtype),
        PARAMS,
        is_leaf=lambda node: isinstance(node, tuple),
    )


def decayed(optimizer, weight_decay):
    return fo.Recipe(
        optimizer=optimizer,
        schedule=0.1,
        weight_decay=weight_decay,
        decay_where=MATRICES,
    ).build()


@pytest.mark.parametrize("name", CASES)
def test_stages_are_the_whole(name):
    case = CASES[name]
    params = shapes("float32")
    staged = fo.testing.assert_stage_local_equal(
        decayed(case.optimizer, 0.5),
        params,
        fo.partition(params, STAGES),
        steps=3,
        grade="bounded" if case.close else "exact",
    )
    assert staged.rounds == 0


@pytest.mark.parametrize("name", CASES)
def test_decay_is_decoupled(name):
    optimizer = CASES[name].optimizer
    params = {"weight": jnp.ones((4, 4)), "bias": jnp.full(4, 2.0)}
    gradients = jax.tree.map(jnp.cos, params)

    def updates(weight_decay):
        transformation = decayed(optimizer, weight_decay)
        state = transformation.init(params)
        return quick_compiler.jit(transformation.update)(gradients, state, params)[0]

    plain, shrunk = updates(0.0), updates(0.5)
    fo.testing.assert_equal(shrunk["bias"], plain["bias"])
    # What two updates have in common cancels.
    taken_off = plain["weight"] - shrunk["weight"]
    fo.testing.assert_equal(taken_off, 0.1 * 0.5 * params["weight"], grade="bounded")


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("name", CASES)
def test_state_keeps_its_types(name, dtype):
    """Or else the second step would compile anew."""
    params = shapes(dtype)
    transformation = CASES[name].optimizer.build(0.1)
    state = jax.eval_shape(transformation.init, params)
    _, after = jax.eval_shape(transformation.update, params, state, params)
    assert jax.tree.map(str, after) == jax.tree.map(str, state)


@pytest.mark.parametrize("name", CASES)
def test_gradients_of_zero(name):
    params = {"weight": jnp.ones((4, 3)), "bias": jnp.ones(4), "scale": jnp.ones(())}
    transformation = CASES[name].optimizer.build(0.1)
    update = quick_compiler.jit(transformation.update)
    state = transformation.init(params)
    gradients = jax.tree.map(jnp.zeros_like, params)
    for _ in range(3):
        updates, state = update(gradients, state, params)
        assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(updates))


def test_balancing_changes_no_product():
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(0), 4)
        factors = (
            jax.random.normal(keys[0], (3, 3)) * 1e-3,
            jax.random.normal(keys[1], (4,)),
            jax.random.normal(keys[2], (5, 5)) * 1e4,
        )
        balanced = balance(factors)
        largest = [float(jnp.max(jnp.abs(factor))) for factor in balanced]
        np.testing.assert_allclose(largest, largest[0], rtol=1e-12)
        x = jax.random.normal(keys[3], (3, 4, 5))
        before, after = precondition(factors, x), precondition(balanced, x)
        # Products of matrices cancel, and factors differ by a last bit.
        fo.testing.assert_equal(after, before, grade="bounded")
