"""A training in stages that saves as it goes, and goes on from what it saved.

    python tests/killed_training.py DIRECTORY STEPS

It prints the step that it starts from, and then each step that is saved.
"""

import sys

import functional_opt as fo
import jax
import jax.numpy as jnp
import optax


EVERY = 2  # steps from save to save
TX = optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(1e-2, b2=0.95))


def make_params():
    keys = jax.random.split(jax.random.key(0), 4)
    return {f"layer{i}": jax.random.normal(key, (32, 32)) for i, key in enumerate(keys)}


def gradients(params, step):
    return jax.tree.map(lambda x: jnp.cos(step + 7 * x), params)


def train(directory, steps):
    jax.config.update("jax_num_cpu_devices", 2)
    params = make_params()
    stages = dict.fromkeys(["layer0", "layer1"], 0) | dict.fromkeys(
        ["layer2", "layer3"], 1
    )
    partition = fo.partition(params, stages)
    devices = jax.devices()
    staged = fo.stage_local(TX, params, partition, meshes=devices, donate=True)
    pieces = jax.device_put(partition.split(params), tuple(devices))
    states = staged.init(pieces)
    checkpoints = fo.Checkpoints(directory, keep=2)
    step = 0
    if checkpoints.latest is not None:
        step, pieces, states = checkpoints.restore(pieces, states, staged)
    print(step, flush=True)
    while step < steps:
        grads = tuple(gradients(piece, step) for piece in pieces)
        pieces, states = staged.step(grads, states, pieces)
        step += 1
        if step % EVERY == 0:
            checkpoints.save(step, pieces, states, staged)
            print(step, flush=True)


if __name__ == "__main__":
    train(sys.argv[1], int(sys.argv[2]))
