"""Sweeps over hyperparameters by vmap, and their gradients; draws sweeps.svg."""

# --8<-- [start:loss]
import functional_opt as fo
import jax
import jax.numpy as jnp
import optax
from matplotlib.figure import Figure


inputs = jax.random.normal(jax.random.key(0), (64, 8))
targets = jnp.sin(inputs @ jnp.arange(8.0))


def loss(params):
    hidden = jnp.tanh(inputs @ params["first"])
    return jnp.mean((hidden @ params["last"] - targets) ** 2)


keys = jax.random.split(jax.random.key(1))
params = {
    "first": jax.random.normal(keys[0], (8, 16)) / 3,
    "last": jax.random.normal(keys[1], (16,)) / 4,
}


def losses(optimizer, schedule, steps=80):
    """The loss after each of some steps."""
    tx = optimizer.build(schedule)

    def step(carry, _):
        params, state = carry
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), value

    return jax.lax.scan(step, (params, tx.init(params)), length=steps)[1]


# --8<-- [end:loss]


# --8<-- [start:sweep]
@jax.jit
@jax.vmap
def sweep(rate, b2):
    schedule = fo.Cosine(peak_value=rate, warmup_steps=8, decay_steps=80)
    return losses(fo.AdamW(b2=b2, eps_root=1e-12), schedule)


rates = jnp.geomspace(1e-3, 1.0, 12)
found = {b2: sweep(rates, jnp.full(12, b2)) for b2 in (0.9, 0.999)}
best = jnp.argmin(found[0.999][:, -1])
print(f"one compilation, {2 * len(rates)} trainings; best rate {rates[best]:.2f}")
# --8<-- [end:sweep]


# --8<-- [start:gradient]
@jax.jit
@jax.value_and_grad
def last_loss(hyperparameters):
    optimizer = fo.AdamW(b1=jax.nn.sigmoid(hyperparameters["b1"]), eps_root=1e-12)
    return losses(optimizer, jnp.exp(hyperparameters["rate"]), steps=40)[-1]


hyperparameters = {"b1": jnp.float32(2.0), "rate": jnp.log(jnp.float32(0.005))}
outer = fo.Adam().build(0.2)
state = outer.init(hyperparameters)
value, _ = last_loss(hyperparameters)
start = value
for _ in range(10):
    value, grads = last_loss(hyperparameters)
    updates, state = outer.update(grads, state)
    hyperparameters = optax.apply_updates(hyperparameters, updates)
print(f"tuned by gradients, the last loss is lower: {value < 0.8 * start}")
# --8<-- [end:gradient]


# --8<-- [start:plot]
def draw(figure):
    axes = figure.subplots()
    for b2, curves in found.items():
        axes.loglog(rates, curves[:, -1], "o-", label=f"b2 = {b2}")
    axes.set(xlabel="peak learning rate", ylabel="last loss")
    axes.legend()


figure = Figure(figsize=(5.6, 3), layout="constrained")
draw(figure)
figure.savefig("sweeps.svg")
# --8<-- [end:plot]
