"""A flax.nnx model and a plain dict, whole and in stages."""

# --8<-- [start:model]
import re

import functional_opt as fo
import jax
import jax.numpy as jnp
from flax import nnx


STAGES, BLOCKS, WIDTH = 2, 4, 16


class Model(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Linear(4, WIDTH, rngs=rngs)
        self.blocks = nnx.List(
            [nnx.Linear(WIDTH, WIDTH, rngs=rngs) for _ in range(BLOCKS)]
        )
        self.norm = nnx.BatchNorm(WIDTH, rngs=rngs)
        self.head = nnx.Linear(WIDTH, 1, rngs=rngs)

    def __call__(self, x):
        x = self.embed(x)
        for block in self.blocks:
            x = x + jax.nn.gelu(block(x))
        return self.head(self.norm(x))


model = Model(nnx.Rngs(0))
inputs = jax.random.normal(jax.random.key(1), (64, 4))
targets = jnp.sum(inputs**2, axis=1, keepdims=True)


def loss(model):
    return jnp.mean((model(inputs) - targets) ** 2)


# --8<-- [end:model]

# --8<-- [start:whole]
recipe = fo.Recipe(
    optimizer=fo.AdamW(),
    schedule=1e-2,
    clip_norm=1.0,
    weight_decay=0.1,
    decay_where=fo.Where("kernel"),
)
optimizer = nnx.Optimizer(model, recipe.build(), wrt=nnx.Param)


@nnx.jit
def step(model, optimizer):
    value, grads = nnx.value_and_grad(loss)(model)
    optimizer.update(model, grads)
    return value


values = [step(model, optimizer) for _ in range(20)]
print(f"the loss fell by more than half: {values[-1] < values[0] / 2}")
# --8<-- [end:whole]


# --8<-- [start:stages]
def stage_of(path, leaf):
    name = jax.tree_util.keystr(path)  # such as "['blocks'][2]['kernel'].value"
    if block := re.match(r"\['blocks'\]\[(\d+)\]", name):
        return int(block[1]) * STAGES // BLOCKS
    return 0 if name.startswith("['embed']") else STAGES - 1


graph, params, rest = nnx.split(model, nnx.Param, ...)  # rest: the averages of the norm
partition = fo.partition(params, stage_of)
staged = recipe.build_mpmd(params, partition)
pieces = partition.split(params)
states = staged.init(pieces)


@jax.jit
def loss_and_grads(params, rest):
    def of_params(params):
        model = nnx.merge(graph, params, rest, copy=True)
        return loss(model), nnx.state(model, nnx.Not(nnx.Param))

    return jax.value_and_grad(of_params, has_aux=True)(params)


for _ in range(3):
    (value, rest), grads = loss_and_grads(partition.merge(pieces), rest)
    pieces, states = staged.step(partition.split_gradients(grads), states, pieces)
trained = nnx.merge(graph, partition.merge(pieces), rest)
print(type(trained).__name__, staged.rounds, sum(staged.bytes_sent))
# --8<-- [end:stages]

# --8<-- [start:dict]
params = {
    "embed": {"kernel": jnp.ones((4, WIDTH)), "bias": jnp.zeros(WIDTH)},
    "head": {"kernel": jnp.ones((WIDTH, 1)), "bias": jnp.zeros(1)},
}
print(recipe.explain(params))
partition = fo.partition(params, {"embed": 0, "head": 1})  # a prefix of the tree
print(recipe.build_mpmd(params, partition).rounds)
# --8<-- [end:dict]
