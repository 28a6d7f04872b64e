"""Parameters that several stages own: tied weights."""

import functional_opt as fo
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest


CLIPPED = optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(1e-2))
OWNERS = {"embed": {0, 2}, "body": 1, "head": 2, "scale": {0, 1, 2}}


@pytest.fixture
def params():
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = {"embed": (40, 32), "body": (32, 32), "head": (32,), "scale": ()}
    return {
        name: jax.random.normal(key, shape)
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


@pytest.fixture
def partition(params):
    return fo.partition(params, OWNERS)


@pytest.mark.parametrize(
    "tx, rounds", [(optax.adam(1e-2), 1), (optax.lion(1e-2), 1), (CLIPPED, 2)]
)
def test_the_same_bits_as_the_untied_tree(tx, rounds, params, partition):
    staged = fo.testing.assert_stage_local_equal(tx, params, partition)
    assert staged.rounds == rounds


@pytest.mark.parametrize("spread", [False, True])
def test_gradients_are_summed_over_the_owners(spread, params, partition):
    devices = jax.devices()[:3] if spread else [jax.devices()[0]] * 3
    staged = fo.stage_local(CLIPPED, params, partition)
    pieces = jax.device_put(partition.split(params), tuple(devices))
    states = staged.init(pieces)
    whole, state = params, jax.jit(CLIPPED.init)(params)

    @jax.jit
    def reference(grads_by_stage, state, params):
        summed = {
            "embed": grads_by_stage[0]["embed"] + grads_by_stage[2]["embed"],
            "body": grads_by_stage[1]["body"],
            "head": grads_by_stage[2]["head"],
            "scale": sum(grads["scale"] for grads in grads_by_stage),
        }
        updates, state = CLIPPED.update(summed, state, params)
        return optax.apply_updates(params, updates), state

    def summands(step):
        waves = jax.tree.map(lambda x: jnp.sin(x + step), partition.split(params))
        return tuple(
            jax.tree.map(lambda x, factor=stage + 2: factor * x, piece)
            for stage, piece in enumerate(waves)
        )

    for step in range(3):
        grads = summands(step)
        placed = jax.device_put(grads, tuple(devices))
        pieces, states = staged.step(placed, states, pieces)
        whole, state = reference(grads, state, whole)
    fo.testing.assert_equal(partition.merge(pieces), whole)
    fo.testing.assert_equal(staged.merge_state(states), state)
    for copies in ([0, 2], "embed"), ([0, 1, 2], "scale"):
        stages, name = copies
        for stage in stages[1:]:
            fo.testing.assert_equal(pieces[stage][name], pieces[0][name])


def test_only_the_owners_hold_a_tied_parameter_and_its_state(params, partition):
    staged = fo.stage_local(CLIPPED, params, partition)
    states = staged.init(partition.split(params))
    held = [state[1][0].mu["embed"] is not None for state in states]
    assert held == [True, False, True]


def test_a_tied_parameter_counts_once_in_the_norm(params, partition):
    tx = optax.clip_by_global_norm(1.0)
    staged = fo.stage_local(tx, params, partition)
    pieces = partition.split(params)
    grads = partition.split_gradients(params)
    updates, _ = staged.update(grads, staged.init(pieces), pieces)
    norm = optax.tree.norm(partition.merge(updates))
    assert jnp.allclose(norm, 1.0, rtol=1e-6)


def test_summands_of_whole_gradients_add_nothing(params, partition):
    grads = partition.split_gradients(params)
    fo.testing.assert_equal(grads[0]["embed"] + grads[2]["embed"], params["embed"])
    assert not jnp.any(grads[2]["embed"])


def test_summands_keep_the_signs_of_zeros():
    zeros = jnp.array([complex(-0.0, -0.0), complex(0.0, -0.0)], jnp.complex64)
    partition = fo.partition({"embed": zeros}, {"embed": {0, 1}})
    one, two = partition.split_gradients({"embed": zeros})
    fo.testing.assert_equal(one["embed"] + two["embed"], zeros)


@pytest.mark.parametrize("kind", [np.asarray, lambda x: jnp.asarray(np.asarray(x))])
def test_gradients_that_are_on_no_stage_yet(kind, params, partition):
    devices = tuple(jax.devices()[1:4])
    staged = fo.stage_local(optax.adam(1e-2), params, partition)
    pieces = jax.device_put(partition.split(params), devices)
    states = staged.init(pieces)
    found = staged.step(jax.tree.map(kind, pieces), states, pieces)
    fo.testing.assert_equal(found, staged.step(pieces, states, pieces))
    for tree, device in zip(found[0], devices, strict=True):
        assert all(leaf.devices() == {device} for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("stages", [[0], [0, 2]])
def test_tied_gradients_of_another_shape(stages, params, partition):
    devices = tuple(jax.devices()[:3])
    staged = fo.stage_local(CLIPPED, params, partition)
    pieces = jax.device_put(partition.split(params), devices)
    grads = list(pieces)
    for stage in stages:
        wrong = jax.device_put(jnp.ones((40, 16)), devices[stage])
        grads[stage] = pieces[stage] | {"embed": wrong}
    with pytest.raises(
        ValueError, match=r"`\['embed'\]` of `grads\[0\]` must be float32\[40,32\]"
    ):
        staged.step(grads, staged.init(pieces), pieces)


def test_tied_gradients_on_other_devices(params, partition):
    devices = tuple(jax.devices()[:3])
    staged = fo.stage_local(CLIPPED, params, partition)
    pieces = jax.device_put(partition.split(params), devices)
    grads = jax.device_put(pieces, devices[::-1])
    with pytest.raises(ValueError, match=r"`grads\[0\]` is on .*2, but .* is on .*0"):
        staged.step(grads, staged.init(pieces), pieces)


@pytest.mark.parametrize(
    "fields",
    [
        dict(skip_nonfinite=True),
        dict(accumulate=2),
        dict(skip_nonfinite=True, accumulate=2, ema_decay=0.9),
    ],
    ids=lambda fields: " and ".join(fields),
)
@pytest.mark.parametrize("owners", [{0, 1}, {0, 1, 2}], ids=str)
def test_all_other_parameters_are_on_one_stage(fields, owners):
    """Within the conditional, the norm is computed there, but each owner needs it."""
    params = {f"{i}": jnp.arange(6.0).reshape(2, 3) + i for i in range(5)}
    params["head"] = jnp.ones(3)
    partition = fo.partition(params, dict.fromkeys(params, 0) | {"head": owners})
    recipe = fo.Recipe(optimizer=fo.AdamW(), schedule=0.1, clip_norm=1.0, **fields)
    # The last bit of the tied parameter's update may differ on the stage of the others.
    staged = fo.testing.assert_stage_local_equal(
        recipe.build(), params, partition, grade="close"
    )
    assert staged.rounds == 2  # of which one is the sum of tied gradients
