"""Whose is a leaf of the state: by `init`, by use, and by the user's word."""

import functional_opt as fo
import jax
import jax.numpy as jnp
import optax
import pytest


PARAMS = {"a": jnp.ones((40, 40)), "b": jnp.ones((40, 40))}
PARTITION = fo.partition(PARAMS, {"a": 0, "b": 1})


def with_memory(whole: bool) -> optax.GradientTransformation:
    """Momentum, and a memory that no update uses; `whole`: no part of the tree does."""

    def init(params):
        sizes = [leaf.size for leaf in jax.tree.leaves(params)]
        if whole and len(sizes) < 2:
            raise ValueError("All parameters are needed.")
        zeros = jax.tree.map(jnp.zeros_like, params)
        return {"momentum": zeros, "memory": jnp.arange(2000.0), "count": 0}

    def update(updates, state, params=None):
        momentum = jax.tree.map(lambda m, u: 0.9 * m + u, state["momentum"], updates)
        count = state["count"] + 1
        return momentum, {**state, "momentum": momentum, "count": count}

    return optax.GradientTransformation(init, update)


def memory_on_stage_1(path, leaf):
    return 1 if path[0].key == "memory" else None


def held(staged, name):
    """The stages that hold an entry of the state."""
    states = staged.init(PARTITION.split(PARAMS))
    return [s for s, state in enumerate(states) if jax.tree.leaves(state[name])]


@pytest.mark.parametrize("whole", [False, True])
def test_momentum_is_with_its_parameter(whole):
    staged = fo.testing.assert_stage_local_equal(with_memory(whole), PARAMS, PARTITION)
    first, last = staged.init(PARTITION.split(PARAMS))
    assert first["momentum"]["b"] is None and last["momentum"]["a"] is None
    assert held(staged, "memory") == held(staged, "count") == [0, 1]


@pytest.mark.parametrize("whole", [False, True])
def test_the_user_knows_whose_is_what_no_update_uses(whole):
    staged = fo.stage_local(
        with_memory(whole), PARAMS, PARTITION, state_stage_of=memory_on_stage_1
    )
    assert held(staged, "memory") == [1] and held(staged, "count") == [0, 1]
    pieces = PARTITION.split(PARAMS)
    states = staged.init(pieces)
    pieces, states = staged.step(pieces, states, pieces)
    expected = jax.jit(with_memory(whole).init)(PARAMS)
    _, expected = jax.jit(with_memory(whole).update)(PARAMS, expected)
    fo.testing.assert_equal(staged.merge_state(states), expected)


def test_a_momentum_away_from_its_parameter_is_refused():
    with pytest.raises(fo.CrossStageError, match=r"`add` at .*mixes whole tensors"):
        fo.stage_local(
            optax.trace(0.9), PARAMS, PARTITION, state_stage_of=lambda path, leaf: 1
        )


@pytest.mark.parametrize("stage", [1.5, "first", True])
def test_a_word_that_names_no_stage(stage):
    with pytest.raises(TypeError, match=r"`stage_of` must assign a stage"):
        fo.stage_local(
            with_memory(False),
            PARAMS,
            PARTITION,
            state_stage_of=lambda path, leaf: stage,
        )


@pytest.mark.parametrize("stage", [-1, 2])
def test_a_word_that_names_a_stage_that_there_is_not(stage):
    with pytest.raises(ValueError, match=rf"`.*`.*stage {stage}.*are 0 to 1\."):
        fo.stage_local(
            with_memory(False),
            PARAMS,
            PARTITION,
            state_stage_of=lambda path, leaf: stage,
        )
