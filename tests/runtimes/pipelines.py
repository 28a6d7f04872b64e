"""Models in the pipelines of spectrax, and their connection with an optimizer."""
# pyright: reportMissingImports=false

import functional_opt as fo
import jax
import jax.numpy as jnp
import optax
import spectrax as spx
from jax.sharding import NamedSharding, PartitionSpec
from spectrax.runtime import schedules
from spectrax_model import make, VOCABULARY, WIDTH


TOKENS = jax.random.randint(jax.random.key(1), (16, 8), 0, VOCABULARY)
RECIPE = fo.Recipe(
    optimizer=fo.AdamW(b2=0.95),
    schedule=fo.Cosine(peak_value=3e-3, warmup_steps=1, decay_steps=10),
    clip_norm=1.0,
    weight_decay=0.1,
    decay_where=fo.Where(min_ndim=2),
)

# Each schedule, how many parts of the model each device has, and what creates it.
SCHEDULES = {
    "GPipe": (1, {}),
    "Std1F1B": (1, {}),
    "Eager1F1B": (1, {}),
    "ZeroBubbleH1": (1, {}),
    "InterleavedGPipe": (2, {"virtual_stages": 2}),
    "InterleavedH1": (2, {"virtual_stages": 2}),
    "Interleaved1F1BPlusOne": (2, {"virtual_stages": 2}),
    "KimiK2": (2, {"virtual_stages": 2}),
    "DualPipeV": (2, {}),
}


class Pipeline:
    """The model in a pipeline of spectrax, with its parameters where that puts them."""

    def __init__(self, schedule, *, stages, is_tied=False, width=WIDTH):
        parts, options = SCHEDULES[schedule]
        self.mesh = spx.create_mesh(axis_dims=(stages, 1, -1, 1, 1, 1), mpmd_axis="pp")
        params, loss = make(stages * parts, is_tied, width)
        if is_tied or stages == len(jax.devices()):
            # With one device per stage, what is on the first device counts as assigned
            # to its stage; and a tied parameter must be on all stages.
            everywhere = NamedSharding(self.mesh.jax_mesh, PartitionSpec())
            params = jax.device_put(params, everywhere)
        self.loss = spx.jit(
            loss,
            mesh=self.mesh,
            schedule=getattr(schedules, schedule)(microbatches=8, **options),
            batch_argnums=(1,),
        )
        self.value_and_grad = spx.sxvalue_and_grad(self.loss, argnums=0)
        _, (grads,) = self.value_and_grad(params, TOKENS)
        self.params = jax.tree.map(
            lambda p, g: p if g is None else jax.device_put(p, g.sharding),
            params,
            grads,
        )

    def grads(self, params):
        _, (grads,) = self.value_and_grad(params, TOKENS)
        return grads


# The lines that connect a runtime with the optimizer: docs/runtimes.md shows them.
def connect(recipe, params, **options):
    partition = fo.partition_by_devices(params)
    tx = recipe.build_mpmd(params, partition, **options).whole
    return tx, tx.init(params)


def whole_step(tx):
    """A step of a transformation, on a whole tree."""

    def step(grads, state, params):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step


def whole_tree(tx, params, **options):
    """The same transformation on one device: a step, and its first state."""
    return jax.jit(whole_step(tx), **options), jax.jit(tx.init)(params)


def on_one_device(tree):
    return jax.device_put(jax.device_get(tree), jax.devices()[0])


def filled(grads, params):
    """With zeros in place of the gradients of unused parameters."""
    return jax.tree.map(
        lambda p, g: jnp.zeros_like(p) if g is None else g, params, grads
    )
