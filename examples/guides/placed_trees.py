"""One tree with each leaf on the devices of its stage, as pipeline runtimes hold it."""

# --8<-- [start:place]
import functional_opt as fo
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec


jax.config.update("jax_num_cpu_devices", 4)  # in place of four real ones
STAGES, LAYERS, WIDTH = 2, 4, 16
devices = np.array(jax.devices()).reshape(STAGES, -1)
meshes = [Mesh(row, ("data",)) for row in devices]  # a stage is a row of devices
both = Mesh(devices, ("stage", "data"))


def place(name, leaf):
    if name == "embed":  # tied: the input of the first and the output of the last stage
        return jax.device_put(leaf, NamedSharding(both, PartitionSpec()))
    stage = int(name.removeprefix("layer")) * STAGES // LAYERS
    return jax.device_put(leaf, NamedSharding(meshes[stage], PartitionSpec("data")))


keys = jax.random.split(jax.random.key(0), LAYERS)
params = {f"layer{i}": jax.random.normal(k, (WIDTH, WIDTH)) for i, k in enumerate(keys)}
params["embed"] = jnp.ones((32, WIDTH))
params = {name: place(name, leaf) for name, leaf in params.items()}
# --8<-- [end:place]

# --8<-- [start:infer]
partition = fo.partition_by_devices(params)
for stage, piece in enumerate(partition.split(params)):
    print(stage, sorted(name for name, leaf in piece.items() if leaf is not None))
# --8<-- [end:infer]

# --8<-- [start:build]
recipe = fo.Recipe(optimizer=fo.AdamW(), schedule=0.1, clip_norm=1.0, weight_decay=0.1)
staged = recipe.build_mpmd(params, partition, donate=True)
tx = staged.whole
# --8<-- [end:build]


# --8<-- [start:train]
def gradients(params):
    """Those of a runtime: each on the devices of its parameter."""
    return jax.tree.map(jnp.sin, params)


state = tx.init(params)
for _ in range(3):
    params, state = tx.step(gradients(params), state, params)

mean = optax.tree.get(state, "mu")["layer3"]
count = recipe.metrics(state).updates_completed
print("on the devices of its parameter:", mean.sharding == params["layer3"].sharding)
print("on all devices:", count.devices() == set(jax.devices()))
# --8<-- [end:train]

# --8<-- [start:pieces]
pieces, states = tx.split(params, state)
print(pieces[1]["layer0"], pieces[1]["layer3"].shape)
params, state = tx.join(pieces, states)
# --8<-- [end:pieces]
