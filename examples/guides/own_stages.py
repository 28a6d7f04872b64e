"""Splits an Equinox model into stages by path, and trains it on their devices."""

# --8<-- [start:model]
import itertools
import re

import equinox as eqx
import functional_opt as fo
import jax
import jax.numpy as jnp


STAGES, BLOCKS, WIDTH = 2, 4, 16


class Model(eqx.Module):
    embed: eqx.nn.Linear
    blocks: list[eqx.nn.MLP]
    head: eqx.nn.Linear

    def __init__(self, key):
        first, last, *others = jax.random.split(key, BLOCKS + 2)
        self.embed = eqx.nn.Linear(4, WIDTH, key=first)
        self.blocks = [eqx.nn.MLP(WIDTH, WIDTH, 32, 1, key=key) for key in others]
        self.head = eqx.nn.Linear(WIDTH, 1, key=last)


model = Model(jax.random.key(0))
# --8<-- [end:model]


# --8<-- [start:partition]
def stage_of(path, leaf):
    name = jax.tree_util.keystr(path)  # such as ".blocks[2].layers[0].weight"
    if block := re.match(r"\.blocks\[(\d+)\]", name):
        return int(block[1]) * STAGES // BLOCKS
    return 0 if name.startswith(".embed") else STAGES - 1


partition = fo.partition(model, stage_of)
pieces = partition.split(model)
for stage, piece in enumerate(pieces):
    paths = jax.tree_util.tree_leaves_with_path(eqx.filter(piece, eqx.is_inexact_array))
    parts = (jax.tree_util.keystr(path[:2]) for path, _ in paths)
    print(stage, [part for part, _ in itertools.groupby(parts)])
# --8<-- [end:partition]


# --8<-- [start:pipeline]
def run_stage(stage, piece, x):
    """The part of the forward pass that a stage computes from its own piece."""
    if stage == 0:
        x = jax.vmap(piece.embed)(x)
    for index, block in enumerate(piece.blocks):
        if index * STAGES // BLOCKS == stage:
            x = x + jax.vmap(block)(x)
    return jax.vmap(piece.head)(x) if stage == STAGES - 1 else x


def mean_squared(targets, outputs):
    return jnp.mean((outputs - targets) ** 2)


devices = list(itertools.islice(itertools.cycle(jax.devices()), STAGES))


def loss_and_grads(pieces, inputs, targets):
    """Activations move to the next device, and their gradients back."""
    x, backward, grads_by_stage = inputs, [], []
    for stage, piece in enumerate(pieces):
        x = jax.device_put(x, devices[stage])
        x, pullback = eqx.filter_vjp(
            lambda *args, s=stage: run_stage(s, *args), piece, x
        )
        backward.append(pullback)
    value, grad = jax.value_and_grad(lambda x: mean_squared(targets, x))(x)
    for stage, pullback in reversed(list(enumerate(backward))):
        grads, grad = pullback(jax.device_put(grad, devices[stage]))
        grads_by_stage.insert(0, grads)
    return value, tuple(grads_by_stage)


# --8<-- [end:pipeline]


# --8<-- [start:train]
def placed(tree, device):
    arrays, others = eqx.partition(tree, eqx.is_array)
    return eqx.combine(jax.device_put(arrays, device), others)


recipe = fo.Recipe(optimizer=fo.AdamW(), schedule=0.01, clip_norm=1.0)
staged = recipe.build_mpmd(model, partition)
pieces = tuple(map(placed, pieces, devices))
states = staged.init(pieces)

inputs = jax.random.normal(jax.random.key(1), (64, 4))
targets = jnp.sum(inputs**2, axis=1, keepdims=True)
value, _ = loss_and_grads(pieces, inputs, targets)
first = value
for _ in range(10):
    value, grads_by_stage = loss_and_grads(pieces, inputs, targets)
    pieces, states = staged.step(grads_by_stage, states, pieces)
print(f"the loss fell by more than half: {value < first / 2}")
print(f"bytes exchanged per step: {sum(staged.bytes_sent)}")
# --8<-- [end:train]

# --8<-- [start:merge]
trained = placed(partition.merge(pieces), devices[0])
print(type(trained).__name__, trained.head.weight.shape)
# --8<-- [end:merge]
