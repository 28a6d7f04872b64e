"""What eformer has, what we have for it, and how alike they are.

eformer is not imported here: `nox -s peer` installs it, and `theirs` is given its
`optimizers`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import functional_opt as fo
import jax
import jax.numpy as jnp
import numpy as np
import optax
import trajectory_inputs as inputs


RATE = 0.1
MATRICES = fo.Where(min_ndim=2)

Values = dict[str, np.ndarray]


@dataclass(frozen=True)
class Case:
    """The same settings on both sides.

    **Attributes:**

    - `name`: the name that eformer registers it by.
    - `settings`: what differs from eformer's defaults.
    - `theirs`: from `eformer.optimizers` to their optimizer or schedule.
    - `ours`: our optimizer or schedule.
    - `equal`: how alike what they do is: "fails", if theirs does nothing.
    - `reason`: why it is not exact.
    - `witness`: who shows what is right, where they differ: Optax's own, or the name of
        a trajectory that was recorded from the authors' code.
    """

    name: str
    settings: str
    theirs: Callable[[Any], Any]
    ours: Any
    equal: Literal["exact", "bounded", "different", "fails"] = "exact"
    reason: str = ""
    witness: Any = None

    @property
    def label(self) -> str:
        return f"{self.name}, {self.settings}" if self.settings else self.name


def optimizer(
    name: str, settings: str, config: str, fields: Any, ours: Any, *rest: Any, **kw: Any
) -> Case:
    """A case of an optimizer at a learning rate of 0.1. `kw` goes to their factory."""

    def theirs(optimizers: Any) -> optax.GradientTransformation:
        transformation, _ = optimizers.OptimizerFactory.create(
            name,
            scheduler_config=optimizers.SchedulerConfig(learning_rate=RATE),
            optimizer_config=getattr(optimizers, config)(**fields),
            **kw,
        )
        return transformation

    recipe = ours if isinstance(ours, fo.Recipe) else recipe_of(ours)
    return Case(name, settings, theirs, recipe.build(), *rest)


def recipe_of(optimizer: fo.AbstractOptimizer, **fields: Any) -> fo.Recipe:
    return fo.Recipe(optimizer=optimizer, schedule=RATE, **fields)


def schedule(name: str, settings: str, fields: Any, *rest: Any) -> Case:
    """A case of a schedule, of 15 updates from 0.1 to 0.01 where it goes anywhere."""

    def theirs(optimizers: Any) -> optax.Schedule:
        config = optimizers.SchedulerConfig(learning_rate=RATE, **fields)
        return optimizers.SchedulerFactory.create_scheduler(config)

    return Case(name, settings, theirs, *rest)


WHITENING = (
    "it differs from the code of the authors in four points: its momentum starts at 0 "
    "with a bias correction, its factors start at 1, its steps may have a root mean "
    "square of 1.1, and it estimates spectral norms differently; otherwise it is close"
)

OPTIMIZERS = (
    optimizer("adamw", "", "AdamWConfig", {}, fo.AdamW(weight_decay=0.0)),
    optimizer(
        "adamw",
        "b2, clip, masked decay, two gradients per update",
        "AdamWConfig",
        dict(b2=0.95),
        recipe_of(
            fo.AdamW(b2=0.95),
            clip_norm=1.0,
            weight_decay=0.1,
            decay_where=MATRICES,
            accumulate=2,
        ),
        "bounded",
        "it subtracts the decay from the parameters after the step, in another order",
        clip_grad=1.0,
        weight_decay=0.1,
        weight_decay_mask=MATRICES,
        gradient_accumulation_steps=2,
    ),
    optimizer("adafactor", "", "AdafactorConfig", {}, fo.Adafactor()),
    optimizer(
        "adafactor",
        "factored, momentum, own decay",
        "AdafactorConfig",
        dict(min_dim_size_to_factor=4, momentum=0.9, weight_decay_rate=1e-3),
        fo.Adafactor(min_dim_size_to_factor=4, momentum=0.9, weight_decay_rate=1e-3),
    ),
    optimizer("lion", "", "LionConfig", {}, fo.Lion()),
    optimizer(
        "lion",
        "decay",
        "LionConfig",
        dict(b1=0.8),
        recipe_of(fo.Lion(b1=0.8), weight_decay=0.1),
        "different",
        "it adds the decay to the default decay of Lion, 1e-3",
        optax.lion(RATE, b1=0.8, weight_decay=0.1),
        weight_decay=0.1,
    ),
    optimizer("rmsprop", "", "RMSPropConfig", {}, fo.RMSProp()),
    optimizer(
        "rmsprop",
        "momentum, Nesterov",
        "RMSPropConfig",
        dict(decay=0.8, initial_scale=1.0, momentum=0.9, nesterov=True),
        fo.RMSProp(decay=0.8, initial_scale=1.0, momentum=0.9, nesterov=True),
    ),
    optimizer("muon", "", "MuonConfig", {}, fo.Muon()),
    optimizer(
        "muon",
        "decay of AdamW's part",
        "MuonConfig",
        dict(adam_weight_decay=0.1),
        fo.Muon(adam_weight_decay=0.1),
        "different",
        "its `adam_weight_decay` is not passed on",
        optax.contrib.muon(RATE, adam_weight_decay=0.1),
    ),
    optimizer(
        "mars",
        "no clip",
        "MarsConfig",
        dict(max_grad_norm=None),
        fo.Mars(optimize_1d=True, max_norm=None),
    ),
    optimizer(
        "mars",
        "b1, b2, eps",
        "MarsConfig",
        dict(beta1=0.8, beta2=0.9, epsilon=1e-3),
        fo.Mars(b1=0.8, b2=0.9, eps=1e-3, optimize_1d=True),
        "fails",
        "its clip calls `jax.tree_map`, which JAX no longer has",
        "mars_1d",
    ),
    optimizer(
        "quad",
        "float32, decay",
        "WhiteKronConfig",
        dict(dtype="float32", weight_decay=0.2),
        fo.Quad(weight_decay=0.2),
        "different",
        WHITENING,
        "quad",
    ),
    optimizer(
        "skew",
        "float32, momentum, step sizes",
        "WhiteKronConfig",
        dict(
            dtype="float32",
            lr_style=None,
            b1=0.5,
            weight_decay=0.0,
            preconditioner_lr=0.3,
        ),
        fo.Skew(
            lr_style=None,
            momentum=0.5,
            weight_decay=0.0,
            preconditioner_lr=0.3,
            preconditioner_init_scale=1.0,
        ),
        "different",
        WHITENING,
        "skew",
    ),
)

DOWN = dict(learning_rate_end=0.01, steps=15)

SCHEDULES = (
    schedule("constant", "", {}, fo.Constant(RATE)),
    schedule(
        "linear",
        "",
        dict(scheduler_type="linear", **DOWN),
        fo.Linear(init_value=RATE, end_value=0.01, transition_steps=15),
    ),
    schedule(
        "linear",
        "warmup",
        dict(scheduler_type="linear", warmup_steps=5, **DOWN),
        fo.Sequence(
            (
                fo.Linear(init_value=1e-8, end_value=RATE, transition_steps=5),
                fo.Linear(init_value=RATE, end_value=0.01, transition_steps=10),
            )
        ),
    ),
    schedule(
        "cosine",
        "",
        dict(scheduler_type="cosine", **DOWN),
        fo.Cosine(peak_value=RATE, decay_steps=15, end_value=0.01),
    ),
    schedule(
        "cosine",
        "warmup, exponent",
        dict(scheduler_type="cosine", warmup_steps=5, exponent=2.0, **DOWN),
        fo.Cosine(
            init_value=1e-8,
            peak_value=RATE,
            warmup_steps=5,
            decay_steps=15,
            end_value=0.01,
            exponent=2.0,
        ),
    ),
    schedule(
        "cosine",
        "exponent",
        dict(scheduler_type="cosine", exponent=2.0, **DOWN),
        fo.Cosine(peak_value=RATE, decay_steps=15, end_value=0.01, exponent=2.0),
        "different",
        "without a warmup, its exponent is not passed on",
        optax.cosine_decay_schedule(RATE, 15, alpha=0.1, exponent=2.0),
    ),
)

CASES = {"Optimizers": OPTIMIZERS, "Schedules": SCHEDULES}


def values(made: Any) -> Values:
    """The parameters after each of 20 steps, or the first 21 values of a schedule."""
    if isinstance(made, str):
        return dict(np.load(inputs.TRAJECTORIES / f"{made}.npz"))
    if not hasattr(made, "init"):
        counts = range(inputs.STEPS + 1)
        return {"value": np.stack([made(jnp.asarray(count)) for count in counts])}
    return trajectory(made)


def trajectory(transformation: optax.GradientTransformation) -> Values:
    @jax.jit
    def step(gradients: Any, state: Any, params: Any) -> Any:
        updates, state = transformation.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    params = _in_float32(inputs.params())
    state, history = transformation.init(params), []
    for gradients in inputs.gradients():
        params, state = step(_in_float32(gradients), state, params)
        history.append(params)
    return jax.tree.map(lambda *steps: np.stack(steps), *history)


def _in_float32(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), tree)


def distance(found: Values, expected: Values) -> float:
    """The largest distance of a leaf, in units of its largest entry."""
    return max(
        float(np.max(np.abs(found[name] - leaf)) / np.max(np.abs(leaf)))
        for name, leaf in expected.items()
    )
