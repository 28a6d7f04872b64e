"""A training in stages that saves as it goes, and goes on from what it saved.

Each process has 2 stages. The first one sends the step that it starts from, and then
each step that is saved. Every other save is made in the background, and is sent when it
is known to be complete.
"""

import functional_opt as fo
import jax
import jax.numpy as jnp
import optax


EVERY = 2  # steps from save to save
LAYERS = 4
TX = optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(1e-2, b2=0.95))


def make_params():
    keys = jax.random.split(jax.random.key(0), LAYERS)
    return {f"layer{i}": jax.random.normal(key, (32, 32)) for i, key in enumerate(keys)}


def gradients(params, step):
    return jax.tree.map(lambda x: jnp.cos(step + 7 * x), params)


def start(devices):
    """Each stage on a device; None for those of other processes."""
    params = make_params()
    stages = {name: i * len(devices) // LAYERS for i, name in enumerate(params)}
    partition = fo.partition(params, stages)
    staged = fo.stage_local(TX, params, partition, meshes=devices, donate=True)
    pieces = tuple(
        jax.device_put(piece, device) if device in jax.local_devices() else None
        for piece, device in zip(partition.split(params), devices, strict=True)
    )
    return staged, pieces, staged.init(pieces)


def train(directory, steps, say):
    staged, pieces, states = start(jax.devices())
    checkpoints = fo.Checkpoints(directory, keep=2)
    step = 0
    if checkpoints.latest is not None:
        step, pieces, states = checkpoints.restore(pieces, states, staged)
    say(step)
    while step < steps:
        grads = tuple(gradients(piece, step) for piece in pieces)
        pieces, states = staged.step(grads, states, pieces)
        step += 1
        if step % EVERY == 0:
            in_background = step // EVERY % 2 == 1 and step < steps
            checkpoints.save(step, pieces, states, staged, wait=not in_background)
            say(step if not in_background else step - EVERY)


def main(directory, steps, port, processes, process, sender):
    jax.config.update("jax_num_cpu_devices", 2)
    if processes > 1:
        jax.distributed.initialize(f"127.0.0.1:{port}", processes, process)
    train(directory, steps, sender.send if process == 0 else id)
