"""Trains in 4 stages, stops, and resumes in 2, as if it had never stopped."""

# --8<-- [start:model]
import tempfile

import functional_opt as fo
import jax
import jax.numpy as jnp


LAYERS, WIDTH, STEPS = 8, 16, 8
keys = jax.random.split(jax.random.key(0), LAYERS)
fresh = {
    f"layer{i}": jax.random.normal(key, (WIDTH, WIDTH)) / 4
    for i, key in enumerate(keys)
}


def loss(params, x):
    y = x
    for name in sorted(params):
        y = y + jnp.tanh(y @ params[name])
    return jnp.mean((y - jnp.flip(x, 1)) ** 2)


gradients = jax.jit(jax.grad(loss))


def batch(key, step):
    return jax.random.normal(jax.random.fold_in(key, step), (32, WIDTH))


# --8<-- [end:model]


# --8<-- [start:run]
recipe = fo.Recipe(
    optimizer=fo.AdamW(),
    schedule=fo.Cosine(peak_value=1e-2, warmup_steps=2, decay_steps=STEPS),
    clip_norm=1.0,
)
registry = fo.Registry.of(fo.AdamW, fo.Cosine)


def run(directory, stages, last):
    """Trains up to a step; resumes if the directory has a checkpoint."""
    partition = fo.partition(
        fresh, lambda path, _: int(path[0].key.removeprefix("layer")) * stages // LAYERS
    )
    staged = recipe.build_mpmd(fresh, partition)
    pieces = partition.split(fresh)
    states = staged.init(pieces)
    step, data = 0, {"key": jax.random.key(1)}

    checkpoints = fo.Checkpoints(directory, keep=2, recipe=recipe, registry=registry)
    if checkpoints.latest is not None:
        restored = checkpoints.restore(pieces, states, staged)
        step, pieces, states = restored
        data = restored.extra
        print(f"step {step} restored in {stages} stages")

    while step < last:
        grads = gradients(partition.merge(pieces), batch(data["key"], step))
        grads = partition.split_gradients(grads)
        pieces, states = staged.step(grads, states, pieces)
        step += 1
        if step % 4 == 0:
            checkpoints.save(step, pieces, states, staged, extra=data, wait=False)
    checkpoints.wait()
    return partition.merge(pieces), staged.merge_state(states)


# --8<-- [end:run]

# --8<-- [start:elsewhere]
interrupted = tempfile.mkdtemp()
run(interrupted, stages=4, last=4)
resumed = run(interrupted, stages=2, last=STEPS)

never_stopped = run(tempfile.mkdtemp(), stages=4, last=STEPS)
fo.testing.assert_equal(resumed, never_stopped)
print("parameters and state are equal bit for bit")
# --8<-- [end:elsewhere]

# --8<-- [start:plain]
checkpoints = fo.Checkpoints(interrupted, registry=registry)
tx = checkpoints.saved_recipe().build()
step, params, state = checkpoints.restore(fresh, tx.init(fresh))
updates, state = tx.update(
    gradients(params, batch(jax.random.key(1), step)), state, params
)
print(f"step {step} restored for plain Optax")
# --8<-- [end:plain]

# --8<-- [start:evaluate]
params = checkpoints.restore_params(fresh)
x = batch(jax.random.key(2), 0)
print(f"lower loss than untrained: {loss(params, x) < loss(fresh, x)}")
# --8<-- [end:evaluate]

# --8<-- [start:changed]
changed = fo.Recipe(optimizer=fo.Lion(), schedule=recipe.schedule, clip_norm=1.0)
checkpoints = fo.Checkpoints(interrupted, recipe=changed, registry=registry)
try:
    checkpoints.restore(fresh, changed.build().init(fresh))
except ValueError as error:
    print(error.args[0].partition("The recipe has changed: ")[2])
# --8<-- [end:changed]
