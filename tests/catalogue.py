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
    "Cautious": fo.Cautious(fo.SGD(momentum=0.9)),
    "CautiousDecay": fo.CautiousDecay(fo.SGD(momentum=0.9)),
    "DAdaptAdamW": fo.DAdaptAdamW(estim_lr0=0.1),
    "DPSGD": fo.DPSGD(l2_norm_clip=1.0, noise_multiplier=0.5, seed=0),
    "GaLore": fo.GaLore(rank=1, update_proj_gap=2),
    "Groups": frozen_groups(),
    "Hyperball": fo.Hyperball(fo.Adam()),
    "KahanSummation": fo.KahanSummation(fo.SGD(momentum=0.9)),
    "LBFGS": fo.LBFGS(memory_size=2, linesearch=None),
    "Lookahead": fo.Lookahead(
        fast_optimizer=fo.SGD(), sync_period=2, slow_step_size=0.5
    ),
    "Mechanize": fo.Mechanize(base_optimizer=fo.Adam()),
    "Prodigy": fo.Prodigy(estim_lr0=0.1, safeguard_warmup=True),
    "QKClip": fo.QKClip(
        fo.SGD(), query=fo.Where("embed|'w'"), key=fo.Where("body|'b'"), threshold=1.0
    ),
    "ScheduleFree": fo.ScheduleFree(optimizer=fo.SGD(momentum=0.9)),
    "StochasticRounding": fo.StochasticRounding(fo.SGD(momentum=0.9)),
    "Sophia": fo.Sophia(update_interval=2, hessian_diagonal_fn=SQUARES),
}
EXAMPLES = {name: GIVEN.get(name) or kind() for name, kind in KINDS.items()}
OPTIMIZERS = {name: x for name, x in EXAMPLES.items() if "Recipe" not in x.REFUSED_BY}


def extra_args(name: str) -> dict[str, Any]:
    """What an update of the optimizer of this name requires besides."""
    return {key: jnp.float32(2.0) for key in EXAMPLES[name].extra_args()}


def recipe_of(name: str, **fields: Any) -> fo.Recipe:
    """A recipe around the optimizer of this name."""
    # Its estimate needs a first learning rate.
    own = {"DAdaptAdamW": {"schedule": fo.Constant(0.1)}}.get(name, {})
    return recipe(optimizer=OPTIMIZERS[name], **own, **fields)


# The class of each public optimizer of Optax.
FUNCTIONS: dict[str, Any] = {
    "adabelief": fo.AdaBelief,
    "adadelta": fo.AdaDelta,
    "adafactor": fo.Adafactor,
    "adagrad": fo.AdaGrad,
    "adam": fo.Adam,
    "adamax": fo.AdaMax,
    "adamaxw": fo.AdaMaxW,
    "adamw": fo.AdamW,
    "adan": fo.Adan,
    "amsgrad": fo.AMSGrad,
    "fromage": fo.Fromage,
    "lamb": fo.Lamb,
    "lars": fo.Lars,
    "lbfgs": fo.LBFGS,
    "lion": fo.Lion,
    "lookahead": fo.Lookahead,
    "nadam": fo.NAdam,
    "nadamw": fo.NAdamW,
    "noisy_sgd": fo.NoisySGD,
    "novograd": fo.Novograd,
    "optimistic_adam_v2": fo.OptimisticAdam,
    "optimistic_gradient_descent": fo.OptimisticGradientDescent,
    "polyak_sgd": fo.PolyakSGD,
    "radam": fo.RAdam,
    "rmsprop": fo.RMSProp,
    "rprop": fo.Rprop,
    "sgd": fo.SGD,
    "sign_sgd": fo.SignSGD,
    "signum": fo.Signum,
    "sm3": fo.SM3,
    "yogi": fo.Yogi,
    "contrib.acprop": fo.ACProp,
    "contrib.ademamix": fo.AdEMAMix,
    "contrib.adopt": fo.ADOPT,
    "contrib.cocob": fo.COCOB,
    "contrib.dadapt_adamw": fo.DAdaptAdamW,
    "contrib.dog": fo.DoG,
    "contrib.dowg": fo.DoWG,
    "contrib.dpsgd": fo.DPSGD,
    "contrib.galore": fo.GaLore,
    "contrib.madgrad": fo.MADGRAD,
    "contrib.mechanize": fo.Mechanize,
    "contrib.momo": fo.Momo,
    "contrib.momo_adam": fo.MomoAdam,
    "contrib.muon": fo.Muon,
    "contrib.prodigy": fo.Prodigy,
    "contrib.schedule_free": fo.ScheduleFree,
    "contrib.schedule_free_adamw": fo.ScheduleFreeAdamW,
    "contrib.schedule_free_sgd": fo.ScheduleFreeSGD,
    "contrib.simplified_ademamix": fo.SimplifiedAdEMAMix,
    "contrib.sophia": fo.Sophia,
}
# The other public functions that make an optimizer or a part of one, and why they have
# no class.
REFUSED = {
    "optimistic_adam": "Optax deprecates it for `optimistic_adam_v2`, which is "
    "`OptimisticAdam`.",
    "selective_transform": "It freezes parameters: `Groups` with `Frozen`.",
    "contrib.differentially_private_aggregate": "It is the part of `DPSGD` that has no "
    "learning rate.",
    "contrib.hutchinson_estimator_diag_hessian": "It estimates a Hessian for `Sophia`, "
    "and makes no steps.",
    "contrib.normalize": "It scales a gradient, and makes no steps.",
    "contrib.reduce_on_plateau": "It scales the steps of an optimizer before it in a "
    "chain, as the loss says. What changes a learning rate is a schedule here, which "
    "does not know the loss.",
    "contrib.sam": "Half of its updates are steps uphill, between which the parameters "
    "are none that a recipe may average, count or save. `from_optax` makes a class of "
    "a function that returns it.",
    "contrib.split_real_and_imaginary": "It shows complex parameters to any "
    "transformation as real ones, and is no optimizer itself.",
}
# Fields that are not as in Optax: their default, or `...` if there is none, and why.
OTHER_FIELDS: dict[str, dict[str, tuple[Any, str]]] = {
    "lbfgs": {"linesearch": ("zoom", "a name can be in files; a function cannot")},
    "noisy_sgd": {
        "key": (0, "Optax warns of None, and takes 0 for it"),
        "seed": (..., "Optax deprecates it for `key`"),
    },
    "contrib.adopt": {
        "clip_value_fn": (None, "None stands for Optax's function: no file can hold it")
    },
    "contrib.schedule_free": {
        "base_optimizer": (inspect.Parameter.empty, "it is named `optimizer` here")
    },
    "contrib.sophia": {
        "hessian_diagonal_fn": (
            None,
            "None stands for Optax's transformation: no file can hold it",
        )
    },
}
# Functions of Optax whose learning rate is a number.
NUMBERS_ONLY = {
    *("polyak_sgd", "rprop", "sm3"),
    *("contrib.schedule_free_adamw", "contrib.schedule_free_sgd"),
}


def public_function(name: str) -> Any:
    """A public function of Optax by its name."""
    *within, last = name.split(".")
    return getattr(optax.contrib if within else optax, last)


# What Optax is called with for the examples that are not the defaults.
THEIRS: dict[str, Any] = {
    "lbfgs": lambda rate: optax.lbfgs(rate, memory_size=2, linesearch=None),
    "contrib.dadapt_adamw": lambda rate: optax.contrib.dadapt_adamw(
        rate, estim_lr0=0.1
    ),
    "contrib.galore": lambda rate: optax.contrib.galore(
        rate, rank=1, update_proj_gap=2
    ),
    "contrib.mechanize": lambda rate: optax.contrib.mechanize(optax.adam(rate)),
    "contrib.prodigy": lambda rate: optax.contrib.prodigy(
        rate, estim_lr0=0.1, safeguard_warmup=True
    ),
    "contrib.schedule_free": lambda rate: optax.contrib.schedule_free(
        optax.sgd(rate, momentum=0.9), rate
    ),
    "contrib.sophia": lambda rate: optax.contrib.sophia(
        rate, update_interval=2, hessian_diagonal_fn=SQUARES
    ),
    "noisy_sgd": lambda rate: optax.noisy_sgd(rate, key=0),
}
