"""A recipe in a file: written, checked, changed by a command, and trained with."""

# --8<-- [start:registry]
import argparse
import dataclasses
import sys
from pathlib import Path

import functional_opt as fo
import jax
import jax.numpy as jnp
import optax


class Clipped(fo.AbstractOptimizer):
    """Gradient descent with every entry of a step in a range.

    **Arguments:**

    - `largest`: the largest entry of a step at a learning rate of 1.
    """

    largest: float = 1.0

    def build(self, schedule):
        return optax.chain(
            optax.clip(self.largest), optax.scale_by_learning_rate(schedule)
        )


registry = fo.Registry.of(Clipped, fo.AdamW, fo.Groups, fo.Cosine)
# --8<-- [end:registry]

# --8<-- [start:write]
TOML = """\
clip_norm = 1.0
weight_decay = 0.01
decay_where = {min_ndim = 2}

[optimizer]
name = "groups"
rest = {name = "adamw", b2 = 0.95}

[[optimizer.groups]]
where = {path = "bias"}
optimizer = {name = "clipped", largest = 0.1}

[schedule]
name = "cosine"
peak_value = 0.1
decay_steps = {name = "fraction", value = 1.0}
"""


def write():
    Path("recipe.toml").write_text(TOML)
    recipe = registry.load("recipe.toml")
    registry.save(recipe, "recipe.yaml")
    assert registry.load("recipe.yaml") == recipe
    other = dataclasses.replace(recipe, clip_norm=2.0)
    registry.save(other, "experiment.yaml")


# --8<-- [end:write]


# --8<-- [start:train]
def train(recipe, steps):
    tx = recipe.build(total_steps=steps)  # resolves the fraction of the run
    params = {"kernel": jnp.zeros((4, 2)), "bias": jnp.zeros(2)}
    inputs = jax.random.normal(jax.random.key(0), (64, 4))
    targets = inputs @ jnp.arange(8.0).reshape(4, 2) / 8 + 0.5

    def loss(params):
        return jnp.mean((inputs @ params["kernel"] + params["bias"] - targets) ** 2)

    def step(carry, _):
        params, state = carry
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), value

    _, values = jax.lax.scan(step, (params, tx.init(params)), length=steps)
    return values


# --8<-- [end:train]


# --8<-- [start:main]
def main(arguments):
    parser = argparse.ArgumentParser()
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--steps", type=int, default=100)
    options = parser.parse_args(arguments)
    try:
        recipe = registry.load(options.recipe)
    except fo.ConfigError as error:
        sys.exit(str(error))
    values = train(recipe, options.steps)
    print(f"loss {values[0]:.1f} -> below 0.1: {values[-1] < 0.1}")


# --8<-- [end:main]


if __name__ == "__main__":
    write()
    main(sys.argv[1:] or ["recipe.toml"])
