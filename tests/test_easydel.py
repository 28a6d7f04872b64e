"""The adapter for EasyDeL, called as its trainer calls its optimizer."""

import functional_opt as fo
import jax
import jax.numpy as jnp
import numpy as np
import optax
from easydel import StageLocalOptimizer
from jax.sharding import Mesh, NamedSharding, PartitionSpec


STAGES = 4
MESHES = [
    Mesh(np.array(jax.devices()[2 * k : 2 * k + 2]), ("data",)) for k in range(STAGES)
]
TX = fo.Recipe(
    optimizer=fo.AdamW(b2=0.95),
    schedule=fo.Cosine(peak_value=1e-2, warmup_steps=1, decay_steps=9),
    clip_norm=0.5,
    weight_decay=0.1,
    decay_where=fo.Where(min_ndim=2),
).build()


def place(tree):
    """Each stage on its mesh, in memory of its own."""
    homes = [NamedSharding(mesh, PartitionSpec()) for mesh in MESHES]
    return jax.device_put(jax.tree.map(jnp.copy, tree), homes)


@jax.jit
def whole_step(grads, state, params):
    updates, state = TX.update(grads, state, params)
    return optax.apply_updates(params, updates), state


def test_as_the_trainer_calls_it():
    tx = StageLocalOptimizer(TX, donate=True)
    keys = jax.random.split(jax.random.key(0), STAGES)
    whole = [{"w": jax.random.normal(k, (4, 3)), "b": jnp.ones(3)} for k in keys]
    expected, params = jax.jit(TX.init)(whole), place(whole)
    shapes = jax.eval_shape(tx.init, params)
    state = tx.init(params)
    assert jax.tree.structure(state) == jax.tree.structure(shapes)
    for step in range(3):
        grads = jax.tree.map(lambda x, k=step: jnp.sin(9 * x + k), whole)
        placed = place(grads)
        copy = jax.tree.map(jnp.copy, state)
        updates, _ = tx.update(updates=placed, state=copy, params=params)
        params, state = tx.apply_gradients_stage_local(
            params=params,
            grads=placed,
            opt_state=state,
            learning_rate_fn=lambda step: 0.0,
            delete_grads=True,
        )
        wanted, _ = jax.jit(TX.update)(grads, expected, whole)
        whole, expected = whole_step(grads, expected, whole)
        fo.testing.assert_equal((params, state), (whole, expected), grade="exact")
        fo.testing.assert_equal(updates, wanted, grade="exact")
        assert all(grad.is_deleted() for grad in jax.tree.leaves(placed))
