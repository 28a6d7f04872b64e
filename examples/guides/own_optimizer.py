"""An optimizer of one's own, and the proof that its stages compute the same."""

# --8<-- [start:optimizer]
import functional_opt as fo
import jax
import jax.numpy as jnp
import optax


def normalize_by_global_norm():
    def normalize(updates, params=None):
        del params
        norm = jnp.maximum(optax.tree.norm(updates), 1e-12)
        return jax.tree.map(lambda update: update / norm, updates)

    return optax.stateless(normalize)


class NormalizedMomentum(fo.AbstractOptimizer):
    """Steps of a fixed length along the momentum.

    **Arguments:**

    - `decay`: decay rate of the momentum.
    """

    decay: float = 0.9

    def build(self, schedule):
        return optax.chain(
            optax.trace(self.decay),
            normalize_by_global_norm(),
            optax.scale_by_learning_rate(schedule),
        )


# --8<-- [end:optimizer]

# --8<-- [start:use]
registry = fo.Registry.of(NormalizedMomentum, fo.Cosine)
recipe = registry.decode(
    {
        "optimizer": {"name": "normalizedmomentum", "decay": 0.8},
        "schedule": {"name": "cosine", "peak_value": 0.1, "decay_steps": 100},
        "weight_decay": 0.01,
        "accumulate": 2,
    }
)
print(recipe.optimizer)
# --8<-- [end:use]

# --8<-- [start:prove]
params = {"embed": jnp.ones((32, 8)), "block": jnp.ones((8, 8)), "head": jnp.ones(8)}
partition = fo.partition(params, {"embed": {0, 2}, "block": 1, "head": 2})  # tied
staged = fo.testing.assert_stage_local_equal(
    NormalizedMomentum().build(0.1), params, partition, steps=10, grade="close"
)
print(staged)
# --8<-- [end:prove]

# --8<-- [start:factory]
Lamb = fo.from_optax(optax.lamb, ranges={"b1": (0, 1)})
print(Lamb(b1=0.8, weight_decay=0.1))
try:
    Lamb(b1=1.8)
except ValueError as error:
    print(error)
# --8<-- [end:factory]
