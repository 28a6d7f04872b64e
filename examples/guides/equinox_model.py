"""Trains an Equinox model that has a state and dropout, then fine-tunes it by LoRA."""

# --8<-- [start:model]
from typing import Any

import equinox as eqx
import functional_opt as fo
import jax
import jax.numpy as jnp


class Classifier(eqx.Module):
    backbone: Any  # a layer, and later one with an adapter
    norm: eqx.nn.BatchNorm
    dropout: eqx.nn.Dropout
    head: eqx.nn.Linear

    def __init__(self, key):
        one, two = jax.random.split(key)
        self.backbone = eqx.nn.Linear(8, 32, key=one)
        self.norm = eqx.nn.BatchNorm(32, axis_name="batch", mode="batch")
        self.dropout = eqx.nn.Dropout(0.1)
        self.head = eqx.nn.Linear(32, 3, key=two)

    def __call__(self, x, state, key=None):
        x, state = self.norm(self.backbone(x), state)
        x = self.dropout(jax.nn.gelu(x), key=key)
        return self.head(x), state


model, state = eqx.nn.make_with_state(Classifier)(jax.random.key(0))
# --8<-- [end:model]

inputs = jax.random.normal(jax.random.key(1), (256, 8))
labels = jnp.argmax(inputs[:, :3] + inputs[:, 3:6] ** 2, axis=1)


# --8<-- [start:step]
@eqx.filter_value_and_grad(has_aux=True)
def loss_and_grads(model, state, key):
    keys = jax.random.split(key, len(inputs))
    batched = jax.vmap(model, (0, None, 0), (0, None), axis_name="batch")
    logits, state = batched(inputs, state, keys)
    losses = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)
    return -jnp.mean(losses), state


def params_of(model):
    return eqx.filter(model, eqx.is_inexact_array)


def train(model, state, recipe, steps=60):
    tx = recipe.build()
    opt_state = tx.init(params_of(model))

    @eqx.filter_jit
    def step(model, state, opt_state, key):
        (value, state), grads = loss_and_grads(model, state, key)
        updates, opt_state = tx.update(grads, opt_state, params_of(model))
        return eqx.apply_updates(model, updates), state, opt_state, value

    value = jnp.inf
    for key in jax.random.split(jax.random.key(2), steps):
        model, state, opt_state, value = step(model, state, opt_state, key)
    return model, state, opt_state, value


# --8<-- [end:step]

# --8<-- [start:train]
recipe = fo.Recipe(
    optimizer=fo.Groups(
        (fo.Group(fo.Where("head"), optimizer=fo.AdamW(), schedule_scale=0.5),),
        rest=fo.AdamW(b2=0.99),
    ),
    schedule=fo.Cosine(peak_value=0.05, warmup_steps=5, decay_steps=60),
    clip_norm=1.0,
    weight_decay=0.01,
    decay_where=fo.Where(min_ndim=2),
    ema_decay=0.9,
)
model, state, opt_state, value = train(model, state, recipe)
print(f"loss of the last step: {value:.1f}")
# --8<-- [end:train]


# --8<-- [start:evaluate]
def accuracy(model, state):
    model = eqx.nn.inference_mode(model)
    logits, _ = jax.vmap(model, (0, None))(inputs, state)
    return float(jnp.mean(jnp.argmax(logits, axis=1) == labels))


averaged = recipe.eval_params(opt_state, params_of(model))
averaged_model = eqx.combine(averaged, model)
print(f"accuracy above 0.8: {accuracy(averaged_model, state) > 0.8}")
# --8<-- [end:evaluate]


# --8<-- [start:lora]
class LoRA(eqx.Module):
    base: eqx.nn.Linear
    down: jax.Array
    up: jax.Array

    def __init__(self, base, rank, key):
        self.base = base
        self.down = jax.random.normal(key, (rank, base.in_features)) / rank
        self.up = jnp.zeros((base.out_features, rank))

    def __call__(self, x):
        return self.base(x) + self.up @ (self.down @ x)


adapted = eqx.tree_at(
    lambda model: model.backbone,
    averaged_model,
    LoRA(averaged_model.backbone, rank=2, key=jax.random.key(3)),
)
adapters = fo.Where(r"\.down$") | fo.Where(r"\.up$")
fine_tuning = fo.Recipe(
    optimizer=fo.Groups((fo.Group(~adapters, optimizer=fo.Frozen()),), rest=fo.AdamW()),
    schedule=1e-2,
)
print(fine_tuning.explain(adapted))
tuned, state, opt_state, value = train(adapted, state, fine_tuning, steps=20)
unchanged = eqx.tree_equal(tuned.backbone.base, averaged_model.backbone)
print(
    "base unchanged:",
    bool(unchanged),
    "| adapter moved:",
    bool(jnp.any(tuned.backbone.up)),
)
# --8<-- [end:lora]
