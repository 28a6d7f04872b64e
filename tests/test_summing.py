"""Sums over stages: of the right bits, sharded as they were, and no whole leaf."""

import functools

import functional_opt as fo
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from rooms import on_mesh, ShardedSum


def mesh_of(*numbers):
    return Mesh(np.array(jax.devices())[list(numbers)], ("data",))


MESHES = {
    "apart": [mesh_of(0, 1), mesh_of(2, 3)],
    "three": [mesh_of(4, 5), mesh_of(0, 1), mesh_of(3, 2)],
    "of two sizes": [mesh_of(0, 1, 2, 3), mesh_of(4, 5)],
    "shared": [mesh_of(0, 1), mesh_of(2, 3), mesh_of(0, 1)],
    "the same": [mesh_of(0, 1), mesh_of(0, 1)],
    "devices": jax.devices()[1:3],
}
SHAPES = [(40, 32), (6, 16), (3, 5), ()]
SPECS = [PartitionSpec("data"), PartitionSpec(None, "data"), *[PartitionSpec()] * 2]


def shardings(mesh):
    if not isinstance(mesh, Mesh):
        return [on_mesh(mesh)] * len(SHAPES)
    return [NamedSharding(mesh, spec) for spec in SPECS]


def leaves_on(mesh, stage):
    keys = jax.random.split(jax.random.key(stage), len(SHAPES))
    drawn = map(jax.random.normal, keys, SHAPES)
    return list(map(jax.device_put, drawn, shardings(mesh)))


@pytest.mark.parametrize("name", MESHES)
def test_sums_are_those_of_whole_leaves_and_sharded_like_them(name):
    meshes = MESHES[name]
    adding = ShardedSum(dict(enumerate(map(on_mesh, meshes))), SHAPES)
    leaves = {stage: leaves_on(mesh, stage) for stage, mesh in enumerate(meshes)}
    with jax.transfer_guard("disallow"):
        sums = adding(leaves)
    columns = zip(*leaves.values(), strict=True)
    expected = [functools.reduce(np.add, map(np.asarray, each)) for each in columns]
    for stage, mesh in enumerate(meshes):
        fo.testing.assert_equal(sums[stage], expected)
        assert [total.sharding for total in sums[stage]] == shardings(mesh)


def test_no_device_holds_a_whole_leaf():
    meshes = MESHES["apart"]
    adding = ShardedSum(dict(enumerate(map(on_mesh, meshes))), SHAPES[:1])
    leaves = {stage: leaves_on(mesh, stage)[:1] for stage, mesh in enumerate(meshes)}
    adding(leaves)
    stacks = jax.ShapeDtypeStruct(
        (2, 40, 32),
        jnp.float32,
        sharding=NamedSharding(adding.rows.mesh, PartitionSpec("row", "column")),
    )
    text = str(adding.add.lower([stacks]).compile().as_text())
    assert "f32[20,32]" in text
    assert "40,32]" not in text.partition("ENTRY")[2]


def test_a_process_without_any_of_the_stages_has_nothing_to_do():
    assert ShardedSum(dict(enumerate(map(on_mesh, MESHES["apart"]))), SHAPES)({}) == {}
