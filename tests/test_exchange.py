"""How messages get from stage to stage."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from rooms import Exchange, on_mesh, sharding_of


def mesh_of(*numbers):
    return Mesh(np.array(jax.devices())[list(numbers)], ("data",))


def exchange_of(placements, senders, readers):
    taking_part = {*senders, *readers}
    return Exchange(
        tuple(senders),
        2,
        tuple(p if s in taking_part else None for s, p in enumerate(placements)),
    )


def said(stage, placement):
    return jax.device_put(jnp.array([stage, 10 * stage], jnp.uint32), placement)


def table_of(*stages):
    return [[stage, 10 * stage] for stage in stages]


def test_on_one_device_nothing_moves():
    placements = [on_mesh(jax.devices()[3])] * 2
    messages = [said(1, placements[0]), None]
    tables = exchange_of(placements, [0], [0, 1])(messages)
    assert [[id(vector) for vector in table] for table in tables] == [
        [id(messages[0])]
    ] * 2


# For each stage its devices, then which stages send and which read.
LAYOUTS = {
    "one device each": ([[0], [1], [2]], [0, 1, 2], [0, 1, 2]),
    "devices in another order": ([[5], [2], [7]], [0, 1, 2], [0, 1, 2]),
    "one stage sends nothing": ([[0], [1], [2]], [0, 2], [0, 1, 2]),
    "one stage takes no part": ([[0], [1], [2]], [0, 2], [0, 2]),
    "two stages on a device": ([[0], [1], [0], [1]], [0, 1, 2, 3], [0, 1, 2, 3]),
    "interleaved, one silent": ([[0], [1], [0], [1]], [0, 1, 2], [0, 1, 2, 3]),
    "meshes of one size": ([[0, 1], [2, 3], [4, 5]], [0, 1, 2], [0, 1, 2]),
    "meshes of two sizes": ([[0, 1, 2, 3], [6, 7]], [0, 1], [0, 1]),
    "meshes that share nothing": ([[0, 1, 2], [6, 7]], [0, 1], [0, 1]),
    "a mesh and a device": ([[2, 1], [5], [2, 1]], [1, 2], [0, 1, 2]),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_stage_gets_the_table_on_its_own_devices(name):
    devices, senders, readers = LAYOUTS[name]
    placements = [
        on_mesh(mesh_of(*numbers) if len(numbers) > 1 else jax.devices()[numbers[0]])
        for numbers in devices
    ]
    messages = [said(s, p) if s in senders else None for s, p in enumerate(placements)]
    with jax.transfer_guard("disallow"):
        tables = exchange_of(placements, senders, readers)(messages)
    for stage in readers:
        table, placement = tables[stage], placements[stage]
        assert table.tolist() == table_of(*senders)
        assert table.sharding.is_equivalent_to(placement, 2)


def test_stages_that_share_some_devices():
    placements = [on_mesh(mesh_of(0, 1)), on_mesh(mesh_of(1, 2))]
    messages = [said(stage, placement) for stage, placement in enumerate(placements)]
    with pytest.raises(ValueError, match=r"stages 0, 1 share .*1, but not all"):
        exchange_of(placements, [0, 1], [0, 1])(messages)


def test_one_program_a_round():
    placements = [on_mesh(device) for device in jax.devices()]
    exchange = exchange_of(placements, range(8), range(8))
    messages = [said(stage, placement) for stage, placement in enumerate(placements)]
    for _ in range(3):
        exchange(messages)
    slots = [jax.ShapeDtypeStruct((16,), jnp.uint32, sharding=exchange.sharding)]
    text = str(exchange.gather.lower(slots).compile().as_text())
    assert text.count("all-gather(") == 1
    assert "all-reduce" not in text and "collective-permute" not in text


def test_a_leaf_says_where_small_values_go():
    mesh = mesh_of(0, 1)
    sharded = jax.device_put(jnp.ones(4), NamedSharding(mesh, PartitionSpec("data")))
    assert sharding_of(sharded) == NamedSharding(mesh, PartitionSpec())
    device = jax.devices()[2]
    assert sharding_of(jax.device_put(1.0, device)) == on_mesh(device)


@pytest.mark.parametrize("leaf", [1.0, np.ones(3), None])
def test_what_is_no_jax_array_is_nowhere(leaf):
    assert sharding_of(leaf) is None
