"""How messages get from stage to stage."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from functional_opt._stages.exchange import gather, on_mesh, placement_of
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def said(value, device):
    return jax.device_put(jnp.array([value], jnp.uint32), device)


def test_on_one_device_nothing_moves():
    device = jax.devices()[3]
    messages = [said(1, device), None]
    received = gather(messages, [on_mesh(device)] * 2, [{0, 1}, set()])
    assert all(vectors[0] is messages[0] for vectors in received)


def test_each_stage_gets_what_it_reads_on_its_own_device():
    devices = jax.devices()[:3]
    messages = [said(stage, device) for stage, device in enumerate(devices)]
    placements = [placement_of(message) for message in messages]
    received = gather(messages, placements, [{1}, {0, 2}, {0, 1, 2}])
    heard = [
        [None if vector is None else int(vector[0]) for vector in vectors]
        for vectors in received
    ]
    assert heard == [[None, 1, 2], [0, None, 2], [None, 1, 2]]
    for vectors, device in zip(received, devices, strict=True):
        for vector in vectors:
            assert vector is None or vector.devices() == {device}


def test_stages_may_share_devices():
    devices = [jax.devices()[0], jax.devices()[1], jax.devices()[0]]
    messages = [said(stage, device) for stage, device in enumerate(devices)]
    received = gather(messages, [on_mesh(d) for d in devices], [{0, 1, 2}] * 3)
    assert [[int(v[0]) for v in vectors] for vectors in received] == [[0, 1, 2]] * 3


def test_a_stage_on_a_mesh_gets_a_copy_on_every_device():
    devices = jax.devices()
    mesh = Mesh(np.array(devices[:2]), ("data",))
    shards = NamedSharding(mesh, PartitionSpec("data"))
    sharded = jax.device_put(jnp.ones(4), shards)
    messages = [None, said(7, devices[2])]
    placements = [placement_of(sharded), placement_of(messages[1])]
    received = gather(messages, placements, [set(), {0}])
    vector = received[0][1]
    assert vector is not None and vector.sharding == NamedSharding(
        mesh, PartitionSpec()
    )
    assert int(vector[0]) == 7


@pytest.mark.parametrize("leaf", [1.0, np.ones(3), None])
def test_what_is_no_jax_array_is_nowhere(leaf):
    assert placement_of(leaf) is None
