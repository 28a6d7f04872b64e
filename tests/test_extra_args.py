"""What `update` takes besides gradients, state and parameters."""

from typing import Any

import functional_opt as fo
import jax
import jax.numpy as jnp
import optax
import pytest


@pytest.fixture
def params():
    return {"first": jnp.linspace(-1.0, 1.0, 2048), "last": jnp.linspace(1.0, 2.0, 8)}


@pytest.fixture
def partition(params):
    return fo.partition(params, {"first": 0, "last": 1})


POLYAK = optax.polyak_sgd(max_learning_rate=0.5)


@pytest.mark.parametrize("value", [2.5, jnp.float32(2.5), fo.OnStage(2.5, 1)])
def test_a_value_reaches_the_transformation(value, params, partition):
    staged = fo.testing.assert_stage_local_equal(
        POLYAK, params, partition, extra_args={"value": value}
    )
    assert staged.rounds == 1


def test_the_loss_of_the_last_stage_travels_to_the_others(params, partition):
    devices = jax.devices()[:2]
    loss = fo.OnStage(jax.ShapeDtypeStruct((), jnp.float32), 1)
    staged = fo.stage_local(POLYAK, params, partition, extra_args={"value": loss})
    pieces = jax.device_put(partition.split(params), tuple(devices))
    states = staged.init(pieces)
    value = jax.device_put(jnp.float32(3.0), devices[1])
    pieces, _ = staged.step(pieces, states, pieces, value=value)

    @jax.jit
    def whole(params, value):
        updates, _ = POLYAK.update(params, POLYAK.init(params), params, value=value)
        return optax.apply_updates(params, updates)

    fo.testing.assert_equal(partition.merge(pieces), whole(params, jnp.float32(3.0)))


def test_one_value_serves_stages_on_all_devices(params, partition):
    devices = jax.devices()[:2]
    example = {"value": jax.ShapeDtypeStruct((), jnp.float32)}
    staged = fo.stage_local(POLYAK, params, partition, extra_args=example)
    pieces = jax.device_put(partition.split(params), tuple(devices))
    value = jax.device_put(jnp.float32(3.0), devices[0])
    new, _ = staged.step(pieces, staged.init(pieces), pieces, value=value)
    assert new[1]["last"].devices() == {devices[1]}


def test_a_program_is_given_what_its_stage_has(params, partition):
    loss = {"value": fo.OnStage(jax.ShapeDtypeStruct((), jnp.float32), 1)}
    staged = fo.stage_local(POLYAK, params, partition, extra_args=loss)
    pieces = partition.split(params)
    states = staged.init(pieces)
    rows = list(zip(staged.programs, pieces, states, pieces, strict=True))
    extra = [{"value": None}, {"value": jnp.float32(3.0)}]
    said = [
        program.message(0, *trees, **args)
        for (program, *trees), args in zip(rows, extra, strict=True)
    ]
    assert [len(message) for message in said] == [2, 2]  # one length for all


def test_functions_of_the_whole_parameters_are_refused(params, partition):
    with pytest.raises(fo.CrossStageError, match=r"`value_fn` is a function.*no stage"):
        fo.stage_local(
            optax.sgd(0.1), params, partition, extra_args={"value_fn": jnp.sum}
        )


def test_an_argument_on_a_stage_that_there_is_not(params, partition):
    with pytest.raises(ValueError, match=r"`value` is on stage 2.*0 to 1"):
        fo.stage_local(
            POLYAK, params, partition, extra_args={"value": fo.OnStage(1.0, 2)}
        )


@pytest.mark.parametrize("given", [{}, {"loss": 1.0}])
def test_other_arguments_than_announced(given, params, partition):
    staged = fo.stage_local(POLYAK, params, partition, extra_args={"value": 1.0})
    pieces = partition.split(params)
    with pytest.raises(ValueError, match=r"`extra_args` does not match the"):
        staged.step(pieces, staged.init(pieces), pieces, **given)


def test_an_argument_that_was_not_announced(params, partition):
    staged = fo.stage_local(optax.sgd(0.1), params, partition)
    pieces = partition.split(params)
    with pytest.raises(ValueError, match=r"expected no further leaf, found.*'value'"):
        staged.step(pieces, staged.init(pieces), pieces, value=1.0)


def scaled() -> optax.GradientTransformation:
    """Multiplies by an extra argument, which is of any shape."""

    def update(updates, state, params=None, **extra_args):
        return jax.tree.map(lambda u: u * extra_args["factor"], updates), state

    return optax.GradientTransformationExtraArgs(lambda params: (), update)


def test_a_tree_may_be_an_argument(params, partition):
    def update(updates, state, params=None, **extra_args):
        return jax.tree.map(jnp.multiply, updates, extra_args["factors"]), state

    tx = optax.GradientTransformationExtraArgs(lambda params: (), update)
    factors = {"first": 2.0, "last": jnp.linspace(0.0, 1.0, 8)}
    staged = fo.testing.assert_stage_local_equal(
        tx, params, partition, extra_args={"factors": factors}
    )
    assert staged.rounds == 0


def test_a_whole_tensor_on_another_stage_is_refused(params):
    both = {"first": params["first"], "last": params["first"]}
    partition = fo.partition(both, {"first": 0, "last": 1})
    factor = fo.OnStage(jnp.ones(2048), 0)
    with pytest.raises(fo.CrossStageError, match=r"`mul` at .*mixes whole tensors"):
        fo.stage_local(scaled(), both, partition, extra_args={"factor": factor})


@pytest.mark.parametrize(
    "factor", ["text", fo.OnStage({"one": fo.OnStage(2.0, 0)}, 0), [object()]]
)
def test_what_is_no_number_is_refused(factor, params, partition):
    with pytest.raises(TypeError, match=r"`factor` must be an array, a number.*got"):
        fo.stage_local(scaled(), params, partition, extra_args={"factor": factor})


def test_leaves_of_one_argument_on_different_stages():
    """Each where its parameter is: nothing is exchanged. Whole trees take them, too."""
    params = {f"layer {i:02}": jnp.linspace(0.5, 2.0 + i, 4) for i in range(40)}
    partition = fo.partition(params, {name: i // 5 for i, name in enumerate(params)})
    of_each = {name: 1.0 + i for i, name in enumerate(params)}
    factors: Any = {"of each": of_each, "all": 2.0}

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> Any:
        given = extra_args["factors"]
        scaled = jax.tree.map(lambda x, y: x * y, params, given["of each"])
        return jax.tree.map(lambda x: x * given["all"], scaled), state

    tx = optax.GradientTransformationExtraArgs(optax.identity().init, update)
    own = {name: fo.OnStage(1.0 + i, i // 5) for i, name in enumerate(params)}
    placed = {"factors": {"of each": own, "all": fo.OnStage(2.0, 3)}}
    staged = fo.testing.assert_stage_local_equal(
        tx, params, partition, extra_args=placed, steps=2
    )
    assert staged.rounds == 1
    pieces = partition.split(params)
    states = staged.init(pieces)
    fo.testing.assert_equal(
        staged.step(pieces, states, pieces, **placed),
        staged.step(pieces, states, pieces, factors=factors),
    )
    beyond = {"factors": {"of each": own, "all": fo.OnStage(2.0, 8)}}
    with pytest.raises(ValueError, match=r"`factors` is on stage 8, but the stages"):
        fo.stage_local(tx, params, partition, extra_args=beyond)


def test_an_argument_of_another_shape_or_dtype(params, partition):
    staged = fo.stage_local(scaled(), params, partition, extra_args={"factor": 1.0})
    pieces = partition.split(params)
    states = staged.init(pieces)
    for factor in (jnp.ones(3), jnp.int32(1)):
        with pytest.raises(ValueError, match=r"`\['factor'\]` of `extra_args\[0\]`"):
            staged.step(pieces, states, pieces, factor=factor)
