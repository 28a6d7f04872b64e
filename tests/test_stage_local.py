"""Stage-local updates, as their users call them."""

import contextlib
import gc
from collections.abc import Callable

import equinox as eqx
import functional_opt as fo
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jaxtyping import Array


CLIPPED = optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(1e-2))


def has_rows(params):
    return jax.tree.map(lambda x: x.ndim > 1, params)


class Layer(eqx.Module):
    weight: Array
    bias: Array | None
    activation: Callable


class Model(eqx.Module):
    layers: tuple[Layer, ...]
    scale: Array
    width: int


def make_model():
    keys = iter(jax.random.split(jax.random.key(0), 8))

    def normal(*shape):
        return jax.random.normal(next(keys), shape)

    layers = (
        Layer(normal(4, 4), normal(4), jax.nn.relu),
        Layer(normal(4, 8), None, jnp.tanh),
        Layer(normal(8, 2), normal(2), jax.nn.relu),
    )
    return Model(layers, normal(), 4)


def stage_of(path, leaf):
    layer = [key.idx for key in path if isinstance(key, jax.tree_util.SequenceKey)]
    return layer[0] if layer else 2


@pytest.fixture
def model():
    return make_model()


@pytest.fixture
def partition(model):
    return fo.partition(model, stage_of)


def gradients(model, seed=1):
    params = eqx.filter(model, eqx.is_inexact_array)
    return jax.tree.map(lambda x: jnp.cos(seed + 7 * x), params)


def whole_step(tx):
    @jax.jit
    def step(grads, state, params):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step


# An update whose own norm is taken is computed once more for it, which XLA may round
# differently.
TRANSFORMATIONS = {
    "sgd": (optax.sgd(0.1), 0, "exact"),
    "momentum": (optax.sgd(0.1, momentum=0.9, nesterov=True), 0, "exact"),
    "adam": (optax.adam(1e-2), 0, "exact"),
    "adamw": (
        optax.adamw(optax.linear_schedule(0.0, 1e-2, 5), mu_dtype="bfloat16"),
        0,
        "exact",
    ),
    "lion": (optax.lion(1e-2), 0, "exact"),
    "lamb": (optax.lamb(1e-2), 0, "exact"),
    "adafactor": (optax.adafactor(1e-2, min_dim_size_to_factor=2), 0, "exact"),
    "masked": (optax.masked(optax.adam(1e-2), has_rows), 0, "exact"),
    "clipped": (CLIPPED, 1, "exact"),
    "clipped twice": (
        optax.chain(CLIPPED, optax.clip_by_global_norm(1e-3)),
        2,
        "close",
    ),
    "accumulated": (
        optax.MultiSteps(CLIPPED, 2).gradient_transformation(),
        1,
        "exact",
    ),
    "accumulated, then clipped": (
        optax.chain(
            optax.MultiSteps(optax.adam(1e-2), 2).gradient_transformation(),
            optax.clip_by_global_norm(0.5),
        ),
        1,
        "exact",
    ),
    "skipping": (optax.apply_if_finite(CLIPPED, 2), 1, "exact"),
}


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_the_same_as_on_the_whole_tree(name, model, partition):
    tx, rounds, grade = TRANSFORMATIONS[name]
    staged = fo.testing.assert_stage_local_equal(tx, model, partition, grade=grade)
    assert staged.rounds == rounds


@pytest.mark.parametrize("name", ["lion", "clipped"])
def test_the_same_bits_with_each_stage_on_its_own_device(name, model, partition):
    tx, _, _ = TRANSFORMATIONS[name]
    devices = jax.devices()[1:4]
    staged = fo.stage_local(tx, model, partition)
    pieces = put(partition.split(model), devices)
    states = staged.init(pieces)
    params = eqx.filter(model, eqx.is_inexact_array)
    state = jax.jit(tx.init)(params)
    step = whole_step(tx)
    for seed in range(3):
        grads = gradients(params, seed)
        pieces, states = staged.step(
            put(partition.split(grads), devices), states, pieces
        )
        params, state = step(grads, state, params)
    assert_on(pieces, devices)
    assert_on(states, devices)
    merged = eqx.filter(partition.merge(pieces), eqx.is_inexact_array)
    fo.testing.assert_equal((merged, staged.merge_state(states)), (params, state))


def put(pieces, devices):
    arrays, others = eqx.partition(pieces, eqx.is_array)
    return eqx.combine(jax.device_put(arrays, tuple(devices)), others)


def assert_on(pieces, devices):
    for piece, device in zip(pieces, devices, strict=True):
        for leaf in jax.tree.leaves(eqx.filter(piece, eqx.is_array)):
            assert leaf.devices() == {device}


def test_meshes_say_where_a_state_goes(model, partition):
    devices = jax.devices()[:3]
    meshes = [devices[0], jax.sharding.Mesh(np.array(devices[1:2]), "x"), devices[2]]
    staged = fo.stage_local(CLIPPED, model, partition, meshes=meshes)
    states = staged.init(put(partition.split(model), devices))
    assert_on(states, devices)
    params = eqx.filter(model, eqx.is_inexact_array)
    assert_on(staged.split_state(jax.jit(CLIPPED.init)(params)), devices)


def test_meshes_of_another_number(model, partition):
    with pytest.raises(ValueError, match="each of the 3 stages, got 1"):
        fo.stage_local(CLIPPED, model, partition, meshes=jax.devices()[:1])


def test_an_equinox_model_goes_in_and_comes_out_as_it_is(model, partition):
    staged = fo.stage_local(CLIPPED, model, partition)
    pieces = partition.split(model)
    new, _ = staged.step(partition.split(gradients(model)), staged.init(pieces), pieces)
    assert [jax.tree.structure(x) for x in new] == [
        jax.tree.structure(x) for x in pieces
    ]
    assert new[0].layers[0].activation is jax.nn.relu and new[1].width == 4


def test_a_filtered_model_comes_out_filtered(model, partition):
    params = eqx.filter(model, eqx.is_inexact_array)
    staged = fo.stage_local(CLIPPED, model, partition)
    pieces = partition.split(params)
    new, _ = staged.step(partition.split(gradients(model)), staged.init(pieces), pieces)
    assert [jax.tree.structure(x) for x in new] == [
        jax.tree.structure(x) for x in pieces
    ]


def test_shapes_suffice(model, partition):
    shapes = eqx.filter_eval_shape(make_model)
    staged = fo.stage_local(CLIPPED, shapes, partition)
    pieces = partition.split(model)
    new, _ = staged.step(partition.split(gradients(model)), staged.init(pieces), pieces)
    concrete = fo.stage_local(CLIPPED, model, partition)
    again, _ = concrete.step(
        partition.split(gradients(model)), concrete.init(pieces), pieces
    )
    fo.testing.assert_equal(*(eqx.filter(x, eqx.is_array) for x in (new, again)))


def test_update_is_optax_s_form(model, partition):
    staged = fo.stage_local(CLIPPED, model, partition)
    pieces = partition.split(model)
    given = partition.split(gradients(model)), staged.init(pieces), pieces
    updates, states = staged.update(*given)
    applied = tuple(map(eqx.apply_updates, pieces, updates))
    new, stepped = staged.step(*given)
    filtered = [eqx.filter(x, eqx.is_array) for x in (applied, new)]
    fo.testing.assert_equal(*filtered)
    fo.testing.assert_equal(states, stepped)


def test_a_state_splits_and_merges_unchanged(model, partition):
    params = eqx.filter(model, eqx.is_inexact_array)
    state = jax.jit(CLIPPED.init)(params)
    _, state = whole_step(CLIPPED)(gradients(model), state, params)
    staged = fo.stage_local(CLIPPED, model, partition)
    fo.testing.assert_equal(staged.merge_state(staged.split_state(state)), state)


def test_a_state_moves_to_another_number_of_stages(model, partition):
    staged = fo.stage_local(CLIPPED, model, partition)
    pieces = partition.split(model)
    new, states = staged.step(
        partition.split(gradients(model)), staged.init(pieces), pieces
    )
    other = fo.partition(model, lambda path, leaf: leaf.ndim % 2)
    restaged = fo.stage_local(CLIPPED, model, other)
    moved = other.split(partition.merge(new))
    moved_states = restaged.split_state(staged.merge_state(states))
    grads = gradients(model, seed=2)
    stayed, stayed_states = staged.step(partition.split(grads), states, new)
    moved, moved_states = restaged.step(other.split(grads), moved_states, moved)
    merged = [partition.merge(stayed), other.merge(moved)]
    fo.testing.assert_equal(*(eqx.filter(x, eqx.is_array) for x in merged))
    fo.testing.assert_equal(
        restaged.merge_state(moved_states), staged.merge_state(stayed_states)
    )


def test_programs_are_pure_functions_of_one_stage(model, partition):
    staged = fo.stage_local(CLIPPED, model, partition)
    pieces = partition.split(model)
    states = staged.init(pieces)
    grads = partition.split(gradients(model))
    rows = list(zip(staged.programs, grads, states, pieces, strict=True))
    said = [program.message(0, *args) for program, *args in rows]
    assert all(message.dtype == jnp.uint32 for message in said)
    stepped = [program.step(*args, gathered=[said]) for program, *args in rows]
    expected, expected_states = staged.step(grads, states, pieces)
    found = tuple(params for params, _ in stepped)
    filtered = [eqx.filter(x, eqx.is_array) for x in (found, expected)]
    # Not jitted, each operation is rounded by itself.
    fo.testing.assert_equal(*filtered, grade="close")
    fo.testing.assert_equal(
        tuple(state for _, state in stepped), expected_states, grade="close"
    )


def test_shared_counters_are_the_same_on_every_stage(model, partition):
    staged = fo.stage_local(optax.apply_if_finite(CLIPPED, 3), model, partition)
    pieces = partition.split(model)
    states = staged.init(pieces)
    for seed in range(20):
        grads = gradients(model, seed)
        if seed % 3 == 0:
            grads = eqx.tree_at(lambda g: g.scale, grads, jnp.inf)
        pieces, states = staged.step(partition.split(grads), states, pieces)
    counts = [int(state.inner_state[1][0].count) for state in states]
    assert counts == [13, 13, 13]


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_non_finite_gradients_do_what_they_do_in_optax(bad, model, partition):
    grads = eqx.tree_at(lambda g: g.layers[0].bias, gradients(model), jnp.full(4, bad))
    fo.testing.assert_stage_local_equal(
        CLIPPED, model, partition, grads=[gradients(model), grads, gradients(model)]
    )


@pytest.mark.parametrize("donate", [False, True])
def test_a_second_step_compiles_nothing(donate, model, partition):
    staged = fo.stage_local(CLIPPED, model, partition, donate=donate)
    devices = jax.devices()[:3]
    pieces = put(partition.split(model), devices)
    grads = put(partition.split(gradients(model)), devices)
    states = staged.init(pieces)
    pieces, states = staged.step(grads, states, pieces)
    with count_compilations() as compiled:
        for _ in range(3):
            pieces, states = staged.step(grads, states, pieces)
    assert compiled == []


@contextlib.contextmanager
def count_compilations():
    """The events of tracing and compiling, while it is open."""
    events, is_open = [], True

    # JAX keeps listeners for good.
    def listen(event, duration_secs, **kwargs):
        if is_open and event.endswith(("compile_duration", "trace_duration")):
            events.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield events
    is_open = False


def test_the_counter_of_compilations_counts():
    with count_compilations() as compiled:
        jax.jit(lambda x: x * 3.25)(jnp.ones(3))
    assert compiled != []


def test_donated_buffers_are_reused_in_place(model, partition):
    staged = fo.stage_local(CLIPPED, model, partition, donate=True)
    pieces = jax.tree.map(jnp.copy, partition.split(eqx.filter(model, eqx.is_array)))
    states = staged.init(pieces)
    grads = partition.split(gradients(model))
    before = {x.unsafe_buffer_pointer() for x in jax.tree.leaves((pieces, states))}
    pieces, states = staged.step(grads, states, pieces)
    after = {x.unsafe_buffer_pointer() for x in jax.tree.leaves((pieces, states))}
    assert before == after
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(grads))


def test_without_donation_nothing_is_lost(model, partition):
    staged = fo.stage_local(CLIPPED, model, partition)
    pieces = partition.split(model)
    states = staged.init(pieces)
    staged.step(partition.split(gradients(model)), states, pieces)
    assert not any(x.is_deleted() for x in jax.tree.leaves(states))


def test_printing_shows_what_is_exchanged_and_why(model, partition):
    text = str(fo.stage_local(CLIPPED, model, partition))
    rows = [line.split() for line in text.splitlines()]
    assert rows[0] == ["stage", "leaves", "params", "state", "sent", "per", "step"]
    assert rows[1][:4] == ["0", "2", "80", "B"] and rows[4][:2] == ["all", "6"]
    assert "1 round of exchange" in text
    assert "`add` at optax/transforms/_clipping.py" in text
    assert "Nothing is exchanged." in str(
        fo.stage_local(optax.adam(1.0), model, partition)
    )


def test_whole_tensors_of_two_stages_are_an_error_that_explains(model):
    big = {"a": jnp.ones((64, 64)), "b": jnp.ones((64, 64))}
    partition = fo.partition(big, {"a": 0, "b": 1})
    with pytest.raises(fo.CrossStageError) as error:
        fo.stage_local(optax.flatten(optax.adam(1e-3)), big, partition)
    message = str(error.value)
    assert "`concatenate` at optax/transforms/_" in message
    assert "stage 0" in message and "stage 1" in message and "optax.masked" in message


def test_a_state_that_changes_dtype_is_refused(model):
    params = {"w": jnp.ones(3, jnp.bfloat16)}
    tx = optax.trace(jnp.float32(0.9))
    with pytest.raises(ValueError, match=r"`trace\['w'\]` is bfloat16.*float32.*after"):
        fo.stage_local(tx, params, fo.partition(params, {"w": 0}))


def test_a_transformation_that_returns_another_structure():
    params = {"w": jnp.ones(3)}
    tx = optax.stateless(lambda updates, params: jax.tree.leaves(updates))
    with pytest.raises(ValueError, match=r"updates with a different structure.*'w'"):
        fo.stage_local(tx, params, fo.partition(params, {"w": 0}))


@pytest.mark.parametrize("tx", [1e-3, optax.MultiSteps(optax.sgd(1.0), 2)])
def test_what_is_no_transformation(tx, model, partition):
    with pytest.raises(TypeError, match=r"`tx` must be an `optax\.GradientTransf"):
        fo.stage_local(tx, model, partition)


def test_parameters_that_were_not_partitioned(partition):
    with pytest.raises(
        ValueError, match="`params` does not match the tree that was partitioned"
    ):
        fo.stage_local(CLIPPED, {"w": jnp.ones(3)}, partition)


@pytest.fixture
def ready(model, partition):
    staged = fo.stage_local(CLIPPED, model, partition)
    pieces = partition.split(model)
    return staged, partition.split(gradients(model)), staged.init(pieces), pieces


def test_params_given_whole(ready, model):
    staged, grads, states, _ = ready
    with pytest.raises(
        TypeError, match=r"`params_by_stage`.*tuple of 3.*partition.split"
    ):
        staged.step(grads, states, model)


def test_too_few_stages(ready):
    staged, grads, states, pieces = ready
    with pytest.raises(ValueError, match=r"`grads_by_stage`.*3 stages, got 2"):
        staged.step(grads[:2], states, pieces)


def test_gradients_of_another_tree(ready):
    staged, grads, states, pieces = ready
    with pytest.raises(
        ValueError, match=r"`grads\[0\]`.*expected a leaf at `layers\[0\]"
    ):
        staged.step((grads[1], *grads[1:]), states, pieces)


def test_gradients_of_another_dtype(ready):
    staged, grads, states, pieces = ready
    wrong = jax.tree.map(lambda x: x.astype(jnp.bfloat16), grads)
    with pytest.raises(ValueError, match=r"`.*` of `grads\[.\]` must be float32"):
        staged.step(wrong, states, pieces)


def test_a_state_of_another_optimizer(ready, model, partition):
    staged, grads, _, pieces = ready
    states = fo.stage_local(optax.lion(1e-3), model, partition).init(pieces)
    with pytest.raises(
        ValueError, match=r"`states\[0\]` does not match stage 0 of the state of"
    ):
        staged.step(grads, states, pieces)
    with pytest.raises(ValueError, match="`state` does not match the state of this"):
        staged.split_state(optax.sgd(1.0, momentum=0.5).init(model.scale))


def test_states_in_another_order(ready):
    staged, grads, states, pieces = ready
    with pytest.raises(ValueError, match=r"`states\[0\]` does not match"):
        staged.step(grads, states[::-1], pieces)


def test_a_state_that_loses_its_weak_type_is_refused():
    params = {"w": jnp.ones(3)}
    tx = optax.GradientTransformation(
        lambda params: {"scale": jnp.asarray(1.0)},
        lambda updates, state, params=None: (
            updates,
            {"scale": state["scale"] * jnp.float32(2.0)},
        ),
    )
    with pytest.raises(
        ValueError, match=r"weakly typed float32\[\] before.* float32\["
    ):
        fo.stage_local(tx, params, fo.partition(params, {"w": 0}))


def test_gradients_may_have_a_dtype_of_their_own(model, partition):
    params = eqx.filter(model, eqx.is_inexact_array)
    grads = jax.tree.map(lambda x: x.astype(jnp.bfloat16), gradients(model))
    fo.testing.assert_stage_local_equal(
        CLIPPED, params, partition, grads=[grads, grads]
    )
    with pytest.raises(ValueError, match="`grads` does not match the tree that was"):
        fo.stage_local(CLIPPED, model, partition, grads={"w": jnp.ones(3)})


@pytest.mark.parametrize("is_enabled", [True, False])
@pytest.mark.parametrize("fails", [True, False])
def test_the_garbage_collector_pauses_and_goes_on(is_enabled, fails):
    found = []

    def update(updates, state, params=None):
        found.append(gc.isenabled())
        return (0.0 if fails else updates), state

    tx = optax.GradientTransformation(lambda params: (), update)
    params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    (gc.enable if is_enabled else gc.disable)()
    try:
        with pytest.raises(ValueError) if fails else contextlib.nullcontext():
            fo.stage_local(tx, params, fo.partition(params, {"a": 0, "b": 1}))
        assert set(found) == {False} and gc.isenabled() == is_enabled
    finally:
        gc.enable()
