"""What `print(staged)` reports, and what to do about a `CrossStageError`."""

# --8<-- [start:report]
import functional_opt as fo
import jax
import jax.numpy as jnp
import optax


params = {f"layer{i}": jnp.ones((32, 32)) for i in range(4)}
params["embed"] = jnp.ones((64, 32))


def stage_of(path, leaf):
    name = path[0].key
    return {0, 1} if name == "embed" else int(name.removeprefix("layer")) // 2


partition = fo.partition(params, stage_of)
recipe = fo.Recipe(
    optimizer=fo.AdamW(),
    schedule=1e-3,
    clip_norm=1.0,
    skip_nonfinite=True,
    weight_decay=0.1,
)
staged = recipe.build_mpmd(params, partition)
print(staged)
# --8<-- [end:report]

# --8<-- [start:numbers]
print(staged.rounds, staged.bytes_sent)
assert sum(staged.bytes_sent) < 20_000, staged
# --8<-- [end:numbers]

# --8<-- [start:summed]
summed = recipe.build_mpmd(params, partition, tied_grads="summed")
print(summed.rounds, sum(summed.bytes_sent))
tied = sum(staged.bytes_sent) - sum(summed.bytes_sent)
# --8<-- [end:summed]


# --8<-- [start:mixture]
def towards_the_mean():
    """Mixes every update of a layer with the mean of the updates of all layers."""

    def update(updates, params=None):
        del params
        layers = {name: x for name, x in updates.items() if name != "embed"}
        mean = sum(layers.values()) / len(layers)
        return updates | {name: 0.9 * x + 0.1 * mean for name, x in layers.items()}

    return optax.stateless(update)


mixing = optax.chain(towards_the_mean(), optax.adam(1e-3))
try:
    fo.stage_local(mixing, params, partition)
except fo.CrossStageError as error:
    print(error)
# --8<-- [end:mixture]


# --8<-- [start:scalar]
def by_largest_norm():
    """Divides all updates by the largest norm of one of them."""

    def update(updates, params=None):
        del params
        norms = [jnp.linalg.norm(x) for x in jax.tree.leaves(updates)]
        largest = jnp.max(jnp.stack(norms))
        return jax.tree.map(lambda x: x / largest, updates)

    return optax.stateless(update)


scaling = optax.chain(by_largest_norm(), optax.adam(1e-3))
print(sum(fo.stage_local(scaling, params, partition).bytes_sent) - tied)
# --8<-- [end:scalar]

# --8<-- [start:limit]
allowed = fo.stage_local(mixing, params, partition, travel_limit=32 * 32 * 4)
print(allowed.rounds, sum(allowed.bytes_sent) - tied)
# --8<-- [end:limit]
