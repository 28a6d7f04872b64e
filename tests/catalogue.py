"""One optimizer of each class, for the properties that all of them have."""

import inspect
from typing import Any

import functional_opt as fo
import jax.numpy as jnp
import optax
from recipe_runs import frozen_groups, recipe


KINDS: dict[str, Any] = {
    name: kind
    for name, kind in vars(fo).items()
    if inspect.isclass(kind)
    and issubclass(kind, fo.AbstractOptimizer)
    and not inspect.isabstract(kind)
}
SQUARES = optax.stateless_with_tree_map(lambda grad, _: jnp.square(jnp.abs(grad)))
# Where a class has fields without defaults, or where its defaults show little.
GIVEN: dict[str, fo.AbstractOptimizer] = {
    "DAdaptAdamW": fo.DAdaptAdamW(estim_lr0=0.1),
    "DPSGD": fo.DPSGD(l2_norm_clip=1.0, noise_multiplier=0.5, seed=0),
    "GaLore": fo.GaLore(rank=1, update_proj_gap=2),
    "Groups": frozen_groups(),
    "LBFGS": fo.LBFGS(memory_size=2, linesearch=None),
    "Mechanize": fo.Mechanize(base_optimizer=fo.Adam()),
    "Prodigy": fo.Prodigy(estim_lr0=0.1, safeguard_warmup=True),
    "ScheduleFree": fo.ScheduleFree(optimizer=fo.SGD(momentum=0.9)),
    "Sophia": fo.Sophia(update_interval=2, hessian_diagonal_fn=SQUARES),
}
EXAMPLES = {name: GIVEN.get(name) or kind() for name, kind in KINDS.items()}
OPTIMIZERS = {name: x for name, x in EXAMPLES.items() if x.ALONE is None}


def extra_args(name: str) -> dict[str, Any]:
    """What an update of the optimizer of this name requires besides."""
    return {key: jnp.float32(2.0) for key in EXAMPLES[name].extra_args()}


def recipe_of(name: str, **fields: Any) -> fo.Recipe:
    """A recipe around the optimizer of this name."""
    # Its estimate needs a first learning rate.
    own = {"DAdaptAdamW": {"schedule": fo.Constant(0.1)}}.get(name, {})
    return recipe(optimizer=OPTIMIZERS[name], **own, **fields)
