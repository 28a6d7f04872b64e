"""AdamMini: Adam with one second moment per block."""

from typing import Any

import functional_opt as fo
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from deep_models import deep, mixed, on_stages
from recipe_runs import PARAMS, run, SCHEDULE


STACKS = fo.Blocks(fo.Where(min_ndim=3), axes=(0, 2), count=2)
RULES = (STACKS, fo.Blocks(fo.Where(min_ndim=2)), fo.Blocks(fo.Where("layer 0[16]")))


def test_with_a_block_per_entry_it_is_adamw():
    every = tuple(
        fo.Blocks(fo.Where(min_ndim=ndim), axes=(*range(ndim),))
        for ndim in sorted({jnp.ndim(x) for x in jax.tree.leaves(PARAMS)} - {0})[::-1]
    )
    ours = run(fo.AdamMini(blocks=every, weight_decay=0.1).build(SCHEDULE))
    theirs = run(optax.adamw(SCHEDULE, weight_decay=0.1))
    fo.testing.assert_equal(ours.params, theirs.params, grade="close")


@pytest.mark.parametrize(
    "blocks, shape, within",
    [
        ((), (6, 4), (0, 1)),
        ((fo.Blocks(fo.Where()),), (6, 4), (1,)),
        ((fo.Blocks(fo.Where(), axes=(-1,)),), (6, 4), (0,)),
        ((fo.Blocks(fo.Where(), count=3),), (3, 2, 4), (1, 2)),
        ((fo.Blocks(fo.Where(), axes=(0, 1), count=2),), (6, 2, 2), (2,)),
    ],
)
def test_against_numpy(blocks, shape, within):
    param = np.linspace(-1.0, 2.0, 24).reshape(6, 4)
    optimizer = fo.AdamMini(b1=0.8, b2=0.9, eps=1e-3, blocks=blocks)
    with jax.enable_x64(True):
        transformation = optimizer.build(0.1)
        state: Any = transformation.init(jnp.asarray(param))
        mu, nu = np.zeros((6, 4)), np.zeros(())
        update = jax.jit(transformation.update)
        for count in range(1, 5):
            grad = np.sin((count + 1) * param)
            found, state = update(jnp.asarray(grad), state, jnp.asarray(param))
            mu = 0.8 * mu + 0.2 * grad
            mean = np.mean(grad.reshape(shape) ** 2, axis=within, keepdims=True)
            nu = 0.9 * nu + 0.1 * mean
            scale = np.sqrt(nu / (1 - 0.9**count)) + 1e-3
            step = (mu / (1 - 0.8**count)).reshape(shape) / scale
            np.testing.assert_allclose(found, -0.1 * step.reshape(6, 4), rtol=1e-12)
        assert state[0].nu.shape == nu.shape  # a number per block


def test_stages_of_a_deep_model_are_the_whole():
    params = mixed(deep())
    recipe = fo.Recipe(
        optimizer=fo.AdamMini(blocks=RULES),
        schedule=0.1,
        weight_decay=0.1,
        decay_where=fo.Where(min_ndim=2),
    )
    staged = fo.testing.assert_stage_local_equal(
        recipe.build(), params, on_stages(params), steps=3, grade="exact"
    )
    assert staged.rounds == 0


def test_moments_are_one_per_block_in_float32():
    states: Any = fo.AdamMini(blocks=RULES).build(0.1).init(deep(7, "bfloat16"))
    state = states[0]
    sizes = {name: nu.size for name, nu in state.nu.items()}
    # A matrix of 6 rows, a bias, a matrix of 4 rows, a scalar, 2 layers of 2 heads.
    assert [*sizes.values()] == [6, 4, 4, 1, 4, 6, 4]
    assert {x.dtype for x in state.nu.values()} == {jnp.dtype("float32")}
    assert {x.dtype for x in state.mu.values()} == {jnp.dtype("bfloat16")}


@pytest.mark.parametrize(
    "blocks, message",
    [
        (fo.Blocks(fo.Where("up"), count=5), r"`Blocks.count` = 5 must divide axis 0 "),
        (fo.Blocks(fo.Where("up"), axes=(2,)), r"different axes .*`\['up'\]`.*\(2,\)"),
        (fo.Blocks(fo.Where("up"), axes=(0, -2)), r"`Blocks.axes` must be different"),
        (fo.Blocks(fo.Where("down")), r"down"),
    ],
)
def test_blocks_that_do_not_fit(blocks, message):
    transformation = fo.AdamMini(blocks=(blocks,)).build(0.1)
    with pytest.raises(ValueError, match=message):
        transformation.init({"up": jnp.ones((6, 4))})


def test_blocks_have_axes():
    with pytest.raises(ValueError, match=r"`Blocks.axes` must have at least one axis"):
        fo.Blocks(fo.Where(), axes=())
