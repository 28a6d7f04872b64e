"""The dtype that an optimizer keeps its moments in."""

import functools

import equinox as eqx
import functional_opt as fo
import jax
import jax.numpy as jnp
import optax
import pytest
from catalogue import extra_args, OPTIMIZERS, recipe_of
from recipe_runs import (
    moments,
    PARAMS,
    recipe,
    run,
)


@pytest.mark.parametrize(
    "optimizer, theirs",
    [
        (fo.AdamW(), optax.adamw(0.1, mu_dtype="bfloat16")),
        (
            fo.SGD(momentum=0.9),
            optax.sgd(0.1, momentum=0.9, accumulator_dtype="bfloat16"),
        ),
        (fo.Lion(), optax.lion(0.1, mu_dtype="bfloat16")),
    ],
    ids=lambda x: type(x).__name__,
)
def test_dtype_is_that_of_the_optimizers_own_field(optimizer, theirs):
    ours = recipe(optimizer=optimizer, schedule=0.1, state_dtype="bfloat16")
    found, expected = run(ours.build()), run(theirs)
    fo.testing.assert_equal(found.params, expected.params)
    fo.testing.assert_equal(moments(found.state), moments(expected.state))


class RMS(fo.AbstractOptimizer):
    def build(self, schedule):
        return optax.with_extra_args_support(optax.rmsprop(schedule, momentum=0.9))


def test_dtype_of_any_other_optimizer():
    inner = optax.rmsprop(0.1, momentum=0.9)

    def cast(state, dtype):
        return jax.tree.map(lambda x: x.astype(dtype) if x.ndim else x, state)

    def update(updates, state, params=None):
        updates, state = inner.update(updates, cast(state, jnp.float32), params)
        return updates, cast(state, jnp.bfloat16)

    theirs = optax.GradientTransformation(
        lambda params: cast(inner.init(params), jnp.bfloat16), update
    )
    ours = recipe(optimizer=RMS(), schedule=0.1, state_dtype="bfloat16")
    found, expected = run(ours.build()), run(theirs)
    assert {x.dtype for x in moments(found.state)} == {jnp.dtype("bfloat16")}
    fo.testing.assert_equal(found.params, expected.params)


@pytest.mark.parametrize("optimizer", [fo.AdamW(), RMS()], ids=["adamw", "rms"])
def test_narrow_parameters_are_updated_in_the_dtype_of_the_state(optimizer):
    narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
    inner = optimizer.build(0.1)

    def cast(tree, dtype):
        return jax.tree.map(lambda x: x.astype(dtype), tree)

    def update(updates, state, params=None):
        wide = cast(updates, jnp.float32), state, cast(params, jnp.float32)
        updates, state = inner.update(*wide)
        return cast(updates, jnp.bfloat16), state

    theirs = optax.GradientTransformation(
        lambda params: inner.init(cast(params, jnp.float32)), update
    )
    ours = recipe(optimizer=optimizer, schedule=0.1, state_dtype="float32")
    found, expected = run(ours.build(), params=narrow), run(theirs, params=narrow)
    assert {x.dtype for x in moments(found.state)} == {jnp.dtype("float32")}
    fo.testing.assert_equal(found.params, expected.params)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("params_dtype", ["bfloat16", "float32"])
def test_dtypes_stay_from_step_to_step(name, dtype, params_dtype):
    params = jax.tree.map(lambda x: x.astype(params_dtype), PARAMS)
    transformation = recipe_of(name, state_dtype=dtype).build()
    state = jax.eval_shape(transformation.init, params)
    update = functools.partial(transformation.update, **extra_args(name))
    updates, after = jax.eval_shape(update, params, state, params)
    assert eqx.tree_equal(after, state)
    assert {x.dtype for x in jax.tree.leaves(updates)} == {jnp.dtype(params_dtype)}
    # A compensation has the dtype of the parameters, whose digits it holds.
    if dtype == "float32" and name != "KahanSummation":
        floats = [x for x in moments(state) if jnp.issubdtype(x.dtype, jnp.floating)]
        assert {x.dtype for x in floats} <= {jnp.dtype("float32")}
