"""Whole trees whose leaves lie where their stages are, on 44 leaves in 8 stages."""

import functools
from typing import Any

import functional_opt as fo
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec


DEVICES = tuple(jax.devices())
STAGES = 8
MATRICES = lambda params: jax.tree.map(lambda x: x.ndim > 1, params)  # noqa: E731
CLIPPED = optax.chain(
    optax.clip_by_global_norm(0.5), optax.adamw(1e-2, weight_decay=0.1, mask=MATRICES)
)
TRANSFORMATIONS = {
    "clipped": CLIPPED,
    "accumulated": optax.MultiSteps(CLIPPED, 2).gradient_transformation(),
    "separable": optax.lion(1e-3),
}


SHAPES = [(4, 2), (2,), (), (2, 3), (1,)]


def make_params():
    keys = iter(jax.random.split(jax.random.key(0), 6 * STAGES))
    blocks = [
        [jax.random.normal(next(keys), shape) for shape in SHAPES]
        for _ in range(STAGES)
    ]
    return {"blocks": blocks, "embed": jax.random.normal(next(keys), (6, 4))}


PARAMS = make_params()
OWNERS = {"apart": [0, 7], "pairs": [0, 3], "together": [0, 7]}
MESHES = {
    "apart": DEVICES,
    "pairs": tuple(
        Mesh(np.array(DEVICES[k : k + 2]), ("data",)) for k in range(0, 8, 2)
    ),
    "together": DEVICES[:1] * STAGES,
}


def owners(where):
    count = len(MESHES[where])
    return {
        "blocks": [s % count for s in range(STAGES)],
        "embed": frozenset(OWNERS[where]),
    }


def sharding(mesh, leaf):
    if not isinstance(mesh, Mesh):
        return jax.sharding.SingleDeviceSharding(mesh)
    spec = PartitionSpec("data") if leaf.ndim > 1 else PartitionSpec()
    return NamedSharding(mesh, spec)


def tied_sharding(where):
    if where == "apart":
        mesh = Mesh(np.array([DEVICES[0], DEVICES[7]]), ("stage",))
        return NamedSharding(mesh, PartitionSpec())
    if where == "pairs":
        mesh = Mesh(np.array([DEVICES[0:2], DEVICES[6:8]]), ("stage", "data"))
        return NamedSharding(mesh, PartitionSpec("data"))
    return jax.sharding.SingleDeviceSharding(DEVICES[0])


def place(tree, where):
    """As a pipeline runtime has it."""
    meshes = MESHES[where]
    blocks = [
        [jax.device_put(x, sharding(meshes[s % len(meshes)], x)) for x in block]
        for s, block in enumerate(jax.tree.map(jnp.copy, tree["blocks"]))
    ]
    embed = jax.device_put(jnp.copy(tree["embed"]), tied_sharding(where))
    return {"blocks": blocks, "embed": embed}


def derive(where, tx=CLIPPED, **options):
    partition = fo.partition(PARAMS, owners(where))
    if where == "together":
        options = {"meshes": MESHES[where]} | options
    return fo.stage_local(tx, PARAMS, partition, **options)


# Shared with all that was compiled, but by the test of what is compiled.
make = functools.cache(derive)


def waves(tree, step):
    return jax.tree.map(lambda x: jnp.sin(x + step), tree)


@functools.cache
def reference(tx):
    @jax.jit
    def step(grads, state, params):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step


def layout(tree):
    return [leaf.sharding for leaf in jax.tree.leaves(tree)]


@pytest.mark.parametrize("donate", [False, True, "all"])
@pytest.mark.parametrize("where", MESHES)
def test_the_bits_of_optax(where, donate):
    tx, step = make(where, donate=donate).whole, reference(CLIPPED)
    params, whole, state = place(PARAMS, where), PARAMS, CLIPPED.init(PARAMS)
    placed = tx.init(params)
    fo.testing.assert_equal(placed, state)
    before = layout((params, placed))
    for k in range(3):
        grads = waves(PARAMS, k)
        params, placed = tx.step(place(grads, where), placed, params)
        whole, state = step(grads, state, whole)
        fo.testing.assert_equal((params, placed), (whole, state))
    assert layout((params, placed)) == before


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_a_loop_that_knows_only_optax(name):
    optimizer = TRANSFORMATIONS[name]
    tx = make("apart", optimizer, tied_grads="partial").whole
    assert isinstance(tx, optax.GradientTransformationExtraArgs)
    params, whole, state = place(PARAMS, "apart"), PARAMS, optimizer.init(PARAMS)
    placed, step = tx.init(params), jax.jit(optimizer.update)
    for k in range(2):
        grads = waves(PARAMS, k)
        given = place(grads, "apart")
        updates, placed = tx.update(updates=given, state=placed, params=params)
        expected, state = step(grads, state, whole)
        fo.testing.assert_equal((updates, placed), (expected, state))
        params = jax.tree.map(lambda p, u: p + u, params, updates)
        whole = jax.tree.map(lambda p, u: p + u, whole, expected)


@pytest.mark.parametrize("where", ["apart", "pairs"])
def test_nothing_is_copied_and_nothing_compiled(where):
    tx = derive(where).whole
    params = place(PARAMS, where)
    grads, state = place(waves(PARAMS, 0), where), tx.init(params)
    params, state = tx.step(grads, state, params)
    guard = jax.transfer_guard_device_to_device("disallow_explicit")
    compiled = []
    listen = jax.monitoring.register_event_duration_secs_listener

    def note(event, *args, **kwargs):
        compiled.append(event)

    listen(note)
    try:
        with guard:
            for _ in range(2):
                params, state = tx.step(grads, state, params)
    finally:
        jax.monitoring.unregister_event_duration_listener(note)
    assert not [event for event in compiled if "compile" in event]
    jax.block_until_ready(params)


def test_what_several_stages_hold_is_one_array_on_all_of_them():
    tx = make("apart").whole
    state: Any = tx.init(place(PARAMS, "apart"))
    adam = state[1][0]
    assert adam.count.devices() == set(DEVICES)
    assert adam.mu["embed"].devices() == {DEVICES[0], DEVICES[7]}
    assert adam.mu["blocks"][3][0].devices() == {DEVICES[3]}
    assert int(optax.tree.get(state, "count")) == 0


@pytest.mark.parametrize("where", ["apart", "pairs"])
def test_shapes_of_the_state(where):
    tx = make(where, meshes=MESHES[where]).whole
    shapes = jax.eval_shape(tx.init, PARAMS)
    state = tx.init(place(PARAMS, where))
    assert jax.tree.structure(shapes) == jax.tree.structure(state)
    pairs = zip(jax.tree.leaves(shapes), jax.tree.leaves(state), strict=True)
    for shape, leaf in pairs:
        assert (shape.shape, shape.dtype) == (leaf.shape, leaf.dtype)


def test_a_tied_gradient_on_one_owner():
    tx = make("apart").whole
    params = place(PARAMS, "apart")
    grads = place(waves(PARAMS, 0), "apart")
    expected = tx.step(grads, tx.init(params), params)
    alone = grads | {"embed": jax.device_put(grads["embed"], DEVICES[7])}
    fo.testing.assert_equal(tx.step(alone, tx.init(params), params), expected)


def test_gradients_that_are_none():
    tx = make("apart").whole
    params, grads = place(PARAMS, "apart"), waves(PARAMS, 0)
    for block in grads["blocks"]:
        block[1] = jnp.zeros_like(block[1])
    grads["embed"] = jnp.zeros_like(grads["embed"])
    zeros = place(grads, "apart")
    none = {"blocks": [list(block) for block in zeros["blocks"]], "embed": None}
    for block in none["blocks"]:
        block[1] = None
    found = tx.step(none, tx.init(params), params)
    fo.testing.assert_equal(found, tx.step(zeros, tx.init(params), params))


def test_stages_without_any_gradient():
    tx = make("apart").whole
    params, state = place(PARAMS, "apart"), CLIPPED.init(PARAMS)
    placed, whole = tx.init(params), PARAMS
    for missing in ({3}, {1, 4, 7}, set(range(STAGES))):
        grads = waves(PARAMS, 0)
        for stage in missing:
            grads["blocks"][stage] = jax.tree.map(
                jnp.zeros_like, grads["blocks"][stage]
            )
        grads["embed"] = jnp.zeros_like(grads["embed"])
        given = place(grads, "apart")
        for stage in missing:
            given["blocks"][stage] = [None] * len(SHAPES)
        params, placed = tx.step(given | {"embed": None}, placed, params)
        whole, state = reference(CLIPPED)(grads, state, whole)
        fo.testing.assert_equal((params, placed), (whole, state))


def test_pieces_and_whole_trees_are_the_same_arrays():
    staged = make("pairs")
    params = place(PARAMS, "pairs")
    state = staged.whole.init(params)
    with jax.transfer_guard_device_to_device("disallow_explicit"):
        pieces, states = staged.whole.split(params, state)
        joined = staged.whole.join(pieces, states)
    fo.testing.assert_equal(joined, (params, state))
    fo.testing.assert_equal(states, staged.init(pieces))
    assert pieces[3]["embed"].devices() == set(DEVICES[6:8])
    grads, _ = staged.whole.split(place(waves(PARAMS, 0), "pairs"), state)
    own = list(grads)
    own[3] = own[3] | {"embed": None}
    found = staged.whole.join(*staged.step(tuple(own), states, pieces))
    expected = staged.whole.step(place(waves(PARAMS, 0), "pairs"), state, params)
    fo.testing.assert_equal(found, expected)


def test_a_tied_parameter_on_one_owner_only():
    params = place(PARAMS, "apart")
    params["embed"] = jax.device_put(PARAMS["embed"], DEVICES[0])
    with pytest.raises(ValueError, match=r"`\['embed'\]` is held by stages 0, 7"):
        make("apart").whole.init(params)


def test_a_model_keeps_its_other_leaves():
    params = {"w": [jnp.ones(2), jnp.ones(3)], "name": "model", "n": jnp.int32(3)}
    stages = {"w": [0, 1], "name": 0, "n": 0}
    partition = fo.partition(params, stages)
    tx = fo.stage_local(optax.adam(0.1), params, partition).whole
    placed = params | {
        "w": [jax.device_put(params["w"][k], DEVICES[k]) for k in (0, 1)]
    }
    grads = {"w": placed["w"], "name": None, "n": None}
    new, _ = tx.step(grads, tx.init(placed), placed)
    assert new["name"] == "model" and new["n"] == 3
    assert [x.devices() for x in new["w"]] == [{DEVICES[0]}, {DEVICES[1]}]


def test_extra_arguments():
    tx = optax.polyak_sgd(1.0)
    shape = jax.ShapeDtypeStruct((), jnp.float32)
    for value in (shape, fo.OnStage(shape, STAGES - 1)):
        placed = derive("apart", tx, extra_args={"value": value}).whole
        params = place(PARAMS, "apart")
        grads, state = place(waves(PARAMS, 0), "apart"), placed.init(params)
        found, _ = placed.update(grads, state, params, value=jnp.float32(3.0))
        expected, _ = jax.jit(tx.update)(
            waves(PARAMS, 0), tx.init(PARAMS), PARAMS, value=jnp.float32(3.0)
        )
        fo.testing.assert_equal(found, expected)


def test_under_jit_on_one_device_it_is_the_transformation():
    partition = fo.partition(PARAMS, owners("apart"))
    tx = fo.stage_local(CLIPPED, PARAMS, partition).whole
    given = waves(PARAMS, 0), CLIPPED.init(PARAMS), PARAMS
    fo.testing.assert_equal(jax.jit(tx.init)(PARAMS), CLIPPED.init(PARAMS))
    fo.testing.assert_equal(jax.jit(tx.step)(*given), reference(CLIPPED)(*given))
    fo.testing.assert_equal(jax.jit(tx.update)(*given), jax.jit(CLIPPED.update)(*given))


def test_under_jit_with_meshes():
    tx = make("apart", meshes=DEVICES).whole
    given = waves(PARAMS, 0), CLIPPED.init(PARAMS), PARAMS
    with pytest.raises(ValueError, match=r"`whole\.step`.*`programs`.*`over_axis`"):
        jax.jit(tx.step)(*given)


def test_no_parameters():
    tx = make("apart").whole
    params = place(PARAMS, "apart")
    with pytest.raises(ValueError, match=r"`params` of `update` is None"):
        tx.update(params, tx.init(params))


def test_trees_that_do_not_fit():
    tx = make("apart").whole
    params = place(PARAMS, "apart")
    state: Any = tx.init(params)
    with pytest.raises(ValueError, match="`state` does not match the state"):
        tx.step(params, state[0], params)
    with pytest.raises(ValueError, match="`params` does not match"):
        tx.step(params, state, params["blocks"])
    with pytest.raises(ValueError, match="`grads` does not match"):
        tx.step(params["blocks"], state, params)
