"""One of several processes that train together; run by `test_processes.py`.

python tests/process_worker.py TASK INDEX COUNT DEVICES PORT
"""

import os
import signal
import sys
import time
from typing import Any

import functional_opt as fo
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec


CLIPPED = optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(1e-2))
ACCUMULATED = fo.Recipe(
    optimizer=fo.AdamW(), schedule=1e-2, clip_norm=0.5, accumulate=2
).build()
COPIES = PartitionSpec()
HEARTBEAT = 10  # seconds


def main(task, index, count, devices, port):
    jax.config.update("jax_num_cpu_devices", int(devices))
    jax.distributed.initialize(
        f"localhost:{port}",
        int(count),
        int(index),
        heartbeat_timeout_seconds=HEARTBEAT,
    )
    TASKS[task]()


def make_params(num_stages):
    keys = iter(jax.random.split(jax.random.key(0), 2 * num_stages))
    return [
        {
            "weight": jax.random.normal(next(keys), (8, 12)),
            "bias": jax.random.normal(next(keys), (12,)),
        }
        for _ in range(num_stages)
    ]


def mesh_of(*devices):
    return Mesh(np.array(devices), ("data",))


def put(tree, mesh, spec):
    """A host's arrays on a mesh, of which this process may have a part."""

    def put_leaf(leaf):
        sharding = NamedSharding(mesh, spec if leaf.ndim > 1 else PartitionSpec())
        return jax.make_array_from_callback(leaf.shape, sharding, lambda i: leaf[i])

    return jax.tree.map(put_leaf, jax.tree.map(np.asarray, tree))


def gradients(tree):
    return jax.tree.map(lambda leaf: jnp.sin(3 * leaf), tree)


def whole_training(tx, params, partition, steps):
    """The whole tree on one device of this process; each owner has a summand."""
    owners = jax.tree.unflatten(
        jax.tree.structure(params), map(len, partition.params.stage_sets)
    )

    @jax.jit
    def step(grads, state, params):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = jax.jit(tx.init)(params)
    gradients_of = jax.jit(gradients)
    for _ in range(steps):
        grads = jax.tree.map(jnp.multiply, gradients_of(params), owners)
        params, state = step(grads, state, params)
    return params, state


def one_by_one(staged, grads, states, pieces):
    """A step whose stages start in the order of a backward pass."""
    step = staged.begin(states, pieces)
    for stage in sorted(staged.local_stages, reverse=True):
        step.start(stage, grads[stage])
    results = {stage: step.finish(stage) for stage in staged.local_stages}
    return zip(
        *(results.get(stage, (None, None)) for stage in range(len(grads))), strict=True
    )


def check(
    tx, params, partition, meshes, spec=COPIES, grade: Any = "exact", shard_state=None
):
    """Trains staged and whole, and compares what is on this process."""
    staged = fo.stage_local(
        tx, params, partition, meshes=meshes, donate=True, shard_state=shard_state
    )
    pieces = tuple(
        put(piece, mesh, spec) if stage in staged.local_stages else None
        for stage, (piece, mesh) in enumerate(
            zip(partition.split(params), meshes, strict=True)
        )
    )
    states = staged.init(pieces)
    gradients_of = jax.jit(gradients)
    with jax.transfer_guard("disallow"):
        for number in range(3):
            grads = tuple(
                None if piece is None else gradients_of(piece) for piece in pieces
            )
            if number == 1:
                pieces, states = one_by_one(staged, grads, states, pieces)
            else:
                pieces, states = staged.step(grads, states, pieces)
    whole, state = whole_training(tx, params, partition, 3)
    expected = partition.split(whole), staged.split_state(state, pieces)
    for stage in range(len(meshes)):
        found = pieces[stage], states[stage]
        if stage not in staged.local_stages:
            assert found == (None, None) and expected[1][stage] is None
            continue
        wanted = shards(expected[0][stage], like=pieces[stage])
        fo.testing.assert_equal(shards(pieces[stage]), wanted, grade)
        wanted = shards(expected[1][stage])
        fo.testing.assert_equal(shards(states[stage]), wanted, grade)
        assert shardings(states[stage]) == shardings(expected[1][stage])
        are_parts = [not x.is_fully_replicated for x in shardings(states[stage])]
        is_split = shard_state is not None and meshes[stage].size > 1
        assert any(are_parts) or not is_split
    return staged


def shards(tree, like=None):
    """What this process's first device has of each leaf, or would have of it."""
    leaves, likes = jax.tree.leaves(tree), jax.tree.leaves(like or tree)
    firsts = [leaf.addressable_shards[0] for leaf in likes]
    if like is None:
        return [np.asarray(shard.data) for shard in firsts]
    return [np.asarray(x)[s.index] for x, s in zip(leaves, firsts, strict=True)]


def shardings(tree):
    return [leaf.sharding for leaf in jax.tree.leaves(tree)]


def training():
    """One stage a device, two stages a device, and stages on several processes."""
    compiled = []

    def listen(event, duration_secs, **kwargs):
        name = str(kwargs.get("fun_name"))
        if event.endswith("backend_compile_duration") and "stage_results" in name:
            compiled.append(name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    meshes = [mesh_of(device) for device in jax.devices()]
    num_stages = len(meshes)
    params = make_params(num_stages)
    partition = fo.partition(params, list(range(num_stages)))
    staged = check(CLIPPED, params, partition, meshes)
    assert len(compiled) == 2 * len(staged.local_stages)  # of `init` and of `step`
    check(ACCUMULATED, params, partition, meshes)

    twice = make_params(2 * num_stages)
    partition = fo.partition(twice, list(range(2 * num_stages)))
    check(CLIPPED, twice, partition, meshes * 2)
    spanning()
    loss_of_one_process()
    print("done", flush=True)


def spanning():
    """Stages whose meshes have devices of several processes."""
    devices = jax.devices()
    if jax.local_device_count() == 1:
        meshes = [mesh_of(*devices)] * 2
    else:
        first, last = devices[0], devices[-1]
        meshes = [mesh_of(first), mesh_of(*devices[1:-1]), mesh_of(last)]
    params = make_params(len(meshes))
    partition = fo.partition(params, list(range(len(meshes))))
    check(CLIPPED, params, partition, meshes)
    check(CLIPPED, params, partition, meshes, shard_state="data")
    rows = PartitionSpec(None, "data")
    staged = check(optax.adam(1e-2), params, partition, meshes, rows)
    assert staged.rounds == 0
    # A norm over shards is added up in another order, and moments of Adam cancel.
    check(CLIPPED, params, partition, meshes, rows, grade="bounded")
    tied = [{"weight": {0, len(meshes) - 1}, "bias": stage} for stage in range(2)]
    owners = tied + list(range(2, len(meshes)))
    staged = check(optax.adam(1e-2), params, fo.partition(params, owners), meshes, rows)
    assert staged.rounds == 1


def loss_of_one_process():
    """The last process has the loss; the others do not know it, and give nothing."""
    devices = jax.devices()
    params, last = make_params(len(devices)), len(devices) - 1
    partition = fo.partition(params, list(range(len(devices))))
    given = {"value": fo.OnStage(jax.ShapeDtypeStruct((), jnp.float32), last)}
    tx = optax.polyak_sgd()
    staged = fo.stage_local(tx, params, partition, meshes=devices, extra_args=given)
    pieces = tuple(
        jax.device_put(piece, devices[stage]) if stage in staged.local_stages else None
        for stage, piece in enumerate(partition.split(params))
    )
    extra = {"value": jnp.float32(3.0)} if last in staged.local_stages else {}
    found, _ = staged.step(pieces, staged.init(pieces), pieces, **extra)

    @jax.jit
    def whole(params):
        updates, _ = tx.update(params, tx.init(params), params, value=jnp.float32(3.0))
        return optax.apply_updates(params, updates)

    for stage, wanted in enumerate(partition.split(whole(params))):
        if stage in staged.local_stages:
            # The whole tree's norm may be added up in another order; a parameter that
            # its update nearly cancels is then further apart.
            fo.testing.assert_equal(found[stage], wanted, grade="bounded")


def mistakes():
    """Every process is told what is wrong, and none waits for another."""
    devices = jax.devices()
    params = make_params(2)
    partition = fo.partition(params, [0, 1])
    meshes = [devices[0], devices[-1]]
    index = jax.process_index()

    def refused(text, function, *args, **kwargs):
        try:
            function(*args, **kwargs)
        except ValueError as error:
            assert text in str(error), error
        else:
            raise AssertionError(f"nothing said {text}")

    tx = optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(0.1 + index))
    text = "these differ: `tx` (process 1 differs from process 0)"
    refused(text, fo.stage_local, tx, params, partition, meshes=meshes)
    other = fo.partition(params, [index, 1 - index])
    text = "these differ: `params` and their partition"
    refused(text, fo.stage_local, optax.sgd(0.1), params, other, meshes=meshes)
    text = "these differ: `meshes`"
    backwards = meshes[:: 1 - 2 * index]
    refused(text, fo.stage_local, CLIPPED, params, partition, meshes=backwards)
    text = "No stage is on a device of process 1"
    alone = [devices[0]] * 2
    refused(text, fo.stage_local, CLIPPED, params, partition, meshes=alone)

    other_plans(index, refused)
    staged = fo.stage_local(CLIPPED, params, partition, meshes=meshes)
    pieces = partition.split(params)
    refused(f"`params_by_stage[{1 - index}]` must be None", staged.init, pieces)
    none = [None, None]
    refused(f"`params_by_stage[{index}]` is None", staged.init, none)
    print("done", flush=True)


def other_plans(index, refused):
    """Transformations that differ only in which values they read, or deep inside."""
    params = make_params(24)  # 48 leaves in 8 stages
    partition = fo.partition(params, [block // 3 for block in range(24)])
    meshes = [jax.devices()[stage % 2 * -1] for stage in range(8)]
    mask = [dict.fromkeys(block, k % 2 == index) for k, block in enumerate(params)]

    def stateless(function):
        return optax.stateless(lambda updates, params: function(updates, params))

    def difference(updates, params):
        pair = (updates, params)[:: 1 - 2 * index]
        return jax.tree.map(jnp.subtract, *pair)

    def norm_of_one(updates, params):
        factor = optax.tree.norm(updates[index])
        return jax.tree.map(lambda x: x * factor, updates)

    @jax.jit
    def inner(x):
        return jax.lax.cumsum(x, reverse=bool(index))

    def nested(updates, params):
        return jax.tree.map(jax.jit(lambda x: 2 * inner(x)), updates)

    decayed = optax.add_decayed_weights(0.5, mask)
    for tx in (decayed, *map(stateless, (difference, norm_of_one, nested))):
        text = "these differ: `tx` (process 1 differs from process 0)"
        refused(text, fo.stage_local, tx, params, partition, meshes=meshes)


def late():
    """The last process never calls `stage_local`."""
    devices, params = jax.devices(), make_params(2)
    if jax.process_index() == 1:
        time.sleep(20)
        os._exit(0)
    partition = fo.partition(params, [0, 1])
    try:
        fo.stage_local(CLIPPED, params, partition, meshes=devices, process_timeout=5)
    except RuntimeError as error:
        print(error, flush=True)
        # The exchange still waits, and nobody will come.
        os._exit(0)


def death():
    """The last process dies before the third exchange."""
    devices = jax.devices()
    params = make_params(len(devices))
    partition = fo.partition(params, list(range(len(devices))))
    staged = fo.stage_local(CLIPPED, params, partition, meshes=devices)
    pieces = tuple(
        jax.device_put(piece, devices[stage]) if stage in staged.local_stages else None
        for stage, piece in enumerate(partition.split(params))
    )
    states = staged.init(pieces)
    for step in range(5):
        if step == 2 and jax.process_index() == jax.process_count() - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        grads = jax.tree.map(jnp.sin, pieces)
        pieces, states = jax.block_until_ready(staged.step(grads, states, pieces))
        print(f"step {step}", flush=True)


TASKS = {"training": training, "mistakes": mistakes, "late": late, "death": death}

if __name__ == "__main__":
    main(*sys.argv[1:])
