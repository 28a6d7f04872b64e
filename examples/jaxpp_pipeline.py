"""Trains in a pipeline of JaxPP, and updates each stage with `functional_opt`.

JaxPP (https://github.com/NVIDIA/jaxpp) computes the gradients of a model in stages, in
one program per stage. An update inside that program cannot combine values of several
stages: a clip by the global norm raises an error there. Outside, `whole` updates the
trees of JaxPP, after each leaf is taken out of its `MpmdArray`.

JaxPP is not on PyPI, and requires another JAX than `functional_opt`. With checkouts of
both, on four virtual CPU devices:

    pip install jax==0.9.2 optax==0.2.8 equinox DEPENDENCIES
    PYTHONPATH=.:JAXPP/src python examples/jaxpp_pipeline.py

`DEPENDENCIES` are the others of `pyproject.toml`. After each step, parameters and state
are compared with Optax on the whole tree.
"""
# pyright: reportMissingImports=false

import functools
import os
from typing import Any


os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=4")

import functional_opt as fo
import jax
import jax.numpy as jnp
import jaxpp.api as jaxpp
import numpy as np
import optax


STAGES, STEPS, MICROBATCHES, ROWS, WIDTH = 2, 5, 4, 16, 8
DEVICES = np.array(jax.devices()).reshape(STAGES, -1, 1)
MESH = jaxpp.MpmdMesh(jax.sharding.Mesh(DEVICES, ("stages", "data", "model")), "stages")
RECIPE = fo.Recipe(
    optimizer=fo.AdamW(),
    schedule=fo.Cosine(peak_value=1e-2, warmup_steps=1, decay_steps=10),
    clip_norm=0.1,
    weight_decay=0.1,
    decay_where=fo.Where(min_ndim=2),
)


def make_params() -> dict[str, jax.Array]:
    first, last = jax.random.split(jax.random.key(0))
    return {
        "first": 0.5 * jax.random.normal(first, (WIDTH, 2 * WIDTH)),
        "last": 0.5 * jax.random.normal(last, (2 * WIDTH, WIDTH)),
        "bias": jnp.zeros(WIDTH),
    }


def loss(params: Any, x: Any) -> Any:
    """The model, in two stages: it learns to return its input."""
    hidden = jaxpp.mark_stage_end(jnp.tanh(x @ params["first"]))
    errors = (hidden @ params["last"] + params["bias"] - x) ** 2
    return jnp.mean(jaxpp.mark_stage_end(errors)) / MICROBATCHES, (x, MICROBATCHES)


@functools.partial(jaxpp.mpmd_jit_with_loop, mpmd_mesh=MESH)
def pipeline(params: Any, batch: Any) -> Any:
    """The gradients, summed over the microbatches."""
    of_microbatch = functools.partial(jax.value_and_grad(loss, has_aux=True), params)
    schedule = jaxpp.Std1F1B(MESH.mpmd_dim)
    (losses, _), grads = jaxpp.treduce(of_microbatch, batch, schedule=schedule)
    return losses, grads


def gradients(params: Any, batch: Any) -> tuple[float, Any]:
    losses, grads = pipeline(params, batch)
    total = sum(float(x.to_mpmd_local_array.sum()) for x in jax.tree.leaves(losses))
    return total, jax.tree.map(lambda grad: grad.to_mpmd_local_array, grads)


# The lines that connect JaxPP with the optimizer.
def connect(recipe: fo.Recipe, params: Any, grads: Any) -> Any:
    params = jax.tree.map(lambda p, g: jax.device_put(p, g.sharding), params, grads)
    tx = recipe.build_mpmd(params, fo.partition_by_devices(params)).whole
    return tx, params, tx.init(params)


def main() -> None:
    batch = jax.random.normal(jax.random.key(1), (MICROBATCHES, ROWS, WIDTH))
    whole = make_params()
    _, grads = gradients(whole, batch)
    tx, params, state = connect(RECIPE, whole, grads)
    reference = RECIPE.build()
    whole_state = jax.jit(reference.init)(whole)

    @jax.jit
    def whole_step(grads: Any, state: Any, params: Any) -> Any:
        updates, state = reference.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for step in range(STEPS):
        total, grads = gradients(params, batch)
        params, state = tx.step(grads, state, params)
        given = jax.device_put(jax.device_get(grads), jax.devices()[0])
        whole, whole_state = whole_step(given, whole_state, whole)
        fo.testing.assert_equal((params, state), (whole, whole_state), grade="exact")
        print(f"step {step}: loss {total:.6f}, equal to Optax bit for bit")


if __name__ == "__main__":
    main()
