"""What `update` takes besides gradients, state and parameters."""

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
    with pytest.raises(ValueError, match=r"`extra_args` is not the extra arguments"):
        staged.step(pieces, staged.init(pieces), pieces, **given)


def test_an_argument_that_was_not_announced(params, partition):
    staged = fo.stage_local(optax.sgd(0.1), params, partition)
    pieces = partition.split(params)
    with pytest.raises(ValueError, match=r"expected no further leaf, found.*'value'"):
        staged.step(pieces, staged.init(pieces), pieces, value=1.0)
