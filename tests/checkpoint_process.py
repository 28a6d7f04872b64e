"""One of several processes with stages of their own, which restore and save together.

    python tests/checkpoint_process.py GIVEN OWN PORT PROCESSES PROCESS

`GIVEN` is a directory with a checkpoint, `OWN` is where new ones go. Every process has
2 devices. A device is a stage, but for two in the middle, of two processes, over which
a stage is sharded.
"""

import functools
import sys

import functional_opt as fo
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from rooms import saving


STEP = 3
ROWS = PartitionSpec("x")
EXTRA = {"rng": np.array([0, 5], np.uint32), "data": {"file": "part-1", "at": 2**40}}


@functools.cache
def make_tx():
    noise = optax.add_noise(0.1, 0.5, key=jax.random.key(7))
    return optax.chain(optax.clip_by_global_norm(0.5), noise, optax.adam(1e-2))


def make_params():
    keys = jax.random.split(jax.random.key(0), 6)
    params = {f"layer{i}": jax.random.normal(key, (4, 6)) for i, key in enumerate(keys)}
    return {**params, "tied": jnp.ones(2)}


@jax.jit
def whole_step(grads, state, params):
    updates, state = make_tx().update(grads, state, params)
    return optax.apply_updates(params, updates), state


def train(steps):
    """Parameters and state after some steps of plain Optax on the whole tree."""
    params = make_params()
    state = jax.jit(make_tx().init)(params)
    for _ in range(steps):
        grads = jax.tree.map(lambda x: jnp.cos(7 * x), params)
        params, state = whole_step(grads, state, params)
    return params, state


def in_stages(meshes, **options):
    """The first and the last stage have a parameter in common."""
    num_stages = len(meshes)
    stage_of = {f"layer{i}": i * num_stages // 6 for i in range(6)}
    stage_of |= {"tied": {0, num_stages - 1}}
    params = make_params()
    partition = fo.partition(params, stage_of, num_stages=num_stages)
    return fo.stage_local(make_tx(), params, partition, meshes=meshes, **options)


def make_meshes():
    devices = jax.devices()
    middle = len(devices) // 2
    groups = [[device] for device in devices]
    groups[middle - 1 : middle + 1] = [devices[middle - 1 : middle + 1]]
    return [Mesh(np.array(group), ("x",)) for group in groups]


def place(piece, mesh, spec=ROWS):
    """A stage's piece on its mesh, or None if that is of other processes."""
    owners = {device.process_index for device in mesh.devices.flat}
    if jax.process_index() not in owners:
        return None
    return jax.tree.map(lambda leaf: place_leaf(leaf, mesh, spec), piece)


def place_leaf(leaf, mesh, spec):
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(
            place_leaf(jax.random.key_data(leaf), mesh, spec)
        )
    spec = spec if leaf.ndim > 1 else PartitionSpec()
    sharding, data = NamedSharding(mesh, spec), np.asarray(leaf)
    return jax.make_array_from_callback(leaf.shape, sharding, data.__getitem__)


def place_all(staged, params, state, meshes):
    pieces = staged.partition.split(params), staged.split_state(state)
    return tuple(tuple(map(place, tree, meshes)) for tree in pieces)


def shards(tree):
    """The shards that this process has, with their indices, and all shardings."""
    leaves = jax.tree.leaves(tree)
    data = [[shard.data for shard in leaf.addressable_shards] for leaf in leaves]
    indices = [[shard.index for shard in leaf.addressable_shards] for leaf in leaves]
    return data, (indices, [leaf.sharding for leaf in leaves], jax.tree.structure(tree))


def assert_restored(checkpoints, staged, meshes):
    """The latest checkpoint is of `STEP`, and is what plain Optax gives."""
    targets = place_all(staged, *train(0), meshes)
    step, *restored = checkpoints.restore(*targets, staged=staged)
    found, described = shards(tuple(restored))
    expected, same = shards(place_all(staged, *train(STEP), meshes))
    assert step == STEP
    assert described == same
    fo.testing.assert_equal(found, expected)


def check_sharded_states(given, own, staged, meshes):
    """Into states that are sharded over the devices of a stage, and back."""
    sharded = in_stages(meshes, shard_state="x")
    params, state = train(STEP)
    pieces = [
        place(piece, mesh, PartitionSpec())
        for piece, mesh in zip(sharded.partition.split(params), meshes, strict=True)
    ]
    expected = sharded.split_state(state, pieces)
    parts = [not x.is_fully_replicated for x in jax.tree.leaves(expected)]
    ours = [m.size > 1 and p is not None for m, p in zip(meshes, pieces, strict=True)]
    assert any(parts) or not any(ours)
    target = sharded.init(pieces)
    restored = fo.Checkpoints(given).restore(pieces, target, staged=sharded)
    both = [restored.params, restored.state]
    (found, described), (wanted, same) = map(shards, (both, [pieces, expected]))
    assert described[:2] == same[:2]
    fo.testing.assert_equal(found, wanted)
    fo.Checkpoints(own).save(STEP, *both, staged=sharded)
    assert_restored(fo.Checkpoints(own), staged, meshes)


def check_failures(directory, params, states, staged):
    """What one process finds, all of them are told; and nothing is left behind."""
    index, last = jax.process_index(), jax.process_count() - 1
    checkpoints = fo.Checkpoints(directory)

    def refused(words, step, **options):
        try:
            checkpoints.save(step, params, states, staged, **options)
            checkpoints.wait()
        except ValueError as error:
            assert words in str(error), error
        else:
            raise AssertionError(f"no error: {words}")

    refused("steps must increase", STEP - 1)
    refused("another value of `extra['data']", STEP, extra={**EXTRA, "data": {"at": 1}})
    refused("`extra['n']` is not the same on process 0", STEP + 1, extra={"n": index})
    original = saving.shard_bytes

    def fail(shard):
        if index == last:
            raise OSError("the disk of the last process is full")
        return original(shard)

    saving.shard_bytes = fail
    for wait in (True, False):
        refused("the disk of the last process is full", STEP + 1, wait=wait)
    saving.shard_bytes = original


def main():
    given, own, port, processes, process = sys.argv[1:]
    jax.config.update("jax_num_cpu_devices", 2)
    jax.distributed.initialize(f"127.0.0.1:{port}", int(processes), int(process))
    meshes = make_meshes()
    staged = in_stages(meshes)
    assert_restored(fo.Checkpoints(given), staged, meshes)
    check_sharded_states(given, f"{own}-sharded", staged, meshes)
    checkpoints = fo.Checkpoints(own, keep=2)
    for step in range(STEP + 1):
        params, states = place_all(staged, *train(step), meshes)
        checkpoints.save(step, params, states, staged, extra=EXTRA, wait=step % 2 == 0)
    params, states = place_all(staged, *train(STEP), meshes)
    checkpoints.save(STEP, params, states, staged, extra=EXTRA)  # is there already
    check_failures(own, params, states, staged)
    if jax.process_index() == 0:
        assert checkpoints.steps == (STEP - 1, STEP)  # does not wait for the others
    if jax.process_index() > 0:  # as where the last one shows late
        checkpoints = fo.Checkpoints(own)
        late = dict(list(checkpoints._opened.published().items())[:-1])
        object.__setattr__(checkpoints._opened, "published", lambda: late)
    assert_restored(checkpoints, staged, meshes)
    params, states = place_all(staged, *train(0), meshes)
    found = checkpoints.restore(params, states, staged).extra
    assert found["data"] == EXTRA["data"]
    fo.testing.assert_equal(found["rng"], EXTRA["rng"])


if __name__ == "__main__":
    main()
