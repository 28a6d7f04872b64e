"""Partitions that are read from where the parameters lie."""

import functional_opt as fo
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec


DEVICES = jax.devices()
MESHES = [Mesh(np.array(DEVICES[k : k + 2]), ("data",)) for k in range(0, 8, 2)]
EVERYWHERE = Mesh(np.array(DEVICES).reshape(4, 2), ("stage", "data"))


def on(mesh, shape=(4, 2), *spec):
    return jax.device_put(jnp.ones(shape), NamedSharding(mesh, PartitionSpec(*spec)))


def owners(tree, meshes=None):
    partition = fo.partition_by_devices(tree, meshes)
    paths = zip(partition.params.paths, partition.params.stage_sets, strict=True)
    return partition.num_stages, {path: set(place) for path, place in paths}


@pytest.mark.parametrize("meshes", [None, MESHES])
def test_forty_leaves_on_meshes(meshes):
    blocks = [[on(mesh, (4, 2), "data") for _ in range(10)] for mesh in MESHES]
    tree = {"blocks": blocks, "tied": on(EVERYWHERE), "step": jnp.int32(3)}
    num_stages, found = owners(tree, meshes)
    assert num_stages == 4
    assert found.pop("['tied']") == {0, 1, 2, 3}
    assert len(found) == 40
    for path, place in found.items():
        assert place == {int(path.split("[")[2][0])}


def test_one_device_per_stage_in_the_order_of_meshes():
    order = DEVICES[7:2:-1]
    tree = [jax.device_put(jnp.ones(2), device) for device in order]
    assert owners(tree, order)[1] == {f"[{k}]": {k} for k in range(5)}
    assert owners(tree)[1] == {f"[{k}]": {4 - k} for k in range(5)}


def test_tied_between_two_of_three():
    pair = Mesh(np.array([DEVICES[0], DEVICES[2]]), ("stage",))
    tree = [jax.device_put(jnp.ones(2), device) for device in DEVICES[:3]]
    assert owners([*tree, on(pair)])[1]["[3]"] == {0, 2}


def test_a_stage_without_parameters():
    assert owners([on(MESHES[0]), on(MESHES[3])], MESHES)[1] == {"[0]": {0}, "[1]": {3}}


def test_shapes_with_shardings():
    tree = [on(mesh, (4, 2), "data") for mesh in MESHES]
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree
    )
    assert owners(shapes) == owners(tree)


@pytest.mark.parametrize(
    "leaf", [np.ones(2, np.float32), jax.ShapeDtypeStruct((2,), jnp.float32)]
)
def test_a_leaf_on_no_device(leaf):
    with pytest.raises(ValueError, match=r"`\[1\]` is not on a device.*`fo.partition`"):
        fo.partition_by_devices([on(MESHES[0]), leaf])


@pytest.mark.parametrize("meshes", [None, MESHES[:2]])
def test_a_leaf_on_other_devices(meshes):
    wide = Mesh(np.array(DEVICES[2:5]), ("data",))
    with pytest.raises(ValueError, match=r"`\[2\]` is on .*2, .*3, .*4.*`meshes`"):
        fo.partition_by_devices([on(MESHES[0]), on(MESHES[1]), on(wide)], meshes)


def test_meshes_that_share_devices():
    with pytest.raises(ValueError, match="share devices"):
        fo.partition_by_devices([on(MESHES[0])], [MESHES[0], MESHES[0]])
