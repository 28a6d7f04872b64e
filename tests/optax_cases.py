"""Every public name of Optax, and what cutting it into stages gives.

`GROUPS` has a transformation or more for each public name that makes or wraps one.
`category` says what every other name is.
"""

import contextlib
import functools
import inspect
import typing
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import functional_opt as fo
import jax
import jax.numpy as jnp
import optax
from functional_opt.testing import Grade


# Each weight is larger than what may travel. A norm is summed in the order of the
# names, which leaves stage 0 and comes back to it.
SHAPES = {
    "first": {"weight": (48, 32)},
    "hidden": {"weight": (32, 48)},
    "last": {"weight": (32, 48)},
    "scale": (32,),
}
STAGES = {"first": 0, "hidden": 1, "last": 2, "scale": 0}


@dataclass(frozen=True)
class Case:
    """A transformation, and what its stages give.

    **Attributes:**

    - `name`: the public name of Optax that it shows.
    - `make`: makes it.
    - `variant`: tells cases of the same name apart.
    - `equal`: to which grade the stages give what the whole tree gives; "impossible" if
        cutting it is refused.
    - `reason`: why it is not exact.
    - `error`: the error that cutting it raises, as a regular expression.
    - `exchanges`: whether the stages exchange anything.
    - `most_sent`: how many bytes a leaf the stages send at most, all of them together.
    - `shapes`, `stages`: of the parameters; `stages` may be a prefix.
    - `num_stages`: how many stages there are, if not one more than the highest.
    - `dtype`: of the parameters.
    - `batch`: how many examples have a gradient of their own, if any has.
    - `synced`: whether the parameters are `optax.LookaheadParams`.
    - `steps`: how many steps are compared. A last bit does not differ in each.
    - `bad`: a value that one gradient of one stage has in the second step.
    - `steady`: whether the gradients are the same at every step.
    - `extra_args`: what `update` takes besides.
    - `broadcasts`: where its authors add arrays of different ranks, which is an error
        in all other cases.
    - `pending`: why it does not work yet.
    """

    name: str
    make: Callable[[], Any]
    variant: str = ""
    equal: Literal[Grade, "impossible"] = "exact"
    reason: str = ""
    error: str = ""
    exchanges: bool = False
    most_sent: int = 16
    shapes: Any = field(default_factory=lambda: SHAPES, repr=False)
    stages: Any = field(default_factory=lambda: STAGES, repr=False)
    num_stages: int | None = None
    dtype: Any = jnp.float32
    batch: int | None = None
    synced: bool = False
    steps: int = 10
    bad: float | None = None
    steady: bool = False
    extra_args: dict[str, Any] | None = None
    broadcasts: str = ""
    pending: str = ""

    @property
    def label(self) -> str:
        return f"{self.name}, {self.variant}" if self.variant else self.name

    def build(self) -> optax.GradientTransformation:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            return self.make()

    @functools.cached_property
    def params(self) -> Any:
        params = jax.tree.map(
            lambda shape: jax.ShapeDtypeStruct(shape, self.dtype),
            self.shapes,
            is_leaf=lambda node: isinstance(node, tuple),
        )
        return optax.LookaheadParams.init_synced(params) if self.synced else params

    @functools.cached_property
    def partition(self) -> fo.StagePartition:
        stages = self.stages
        if self.synced:
            stages = optax.LookaheadParams.init_synced(stages)
        return fo.partition(self.params, stages, num_stages=self.num_stages)

    def grads(self) -> Sequence[Any] | None:
        """The gradients of each step; None if normal random ones do."""
        if self.bad is None and self.batch is None and not self.steady:
            return None
        keys = jax.random.split(jax.random.key(1), self.steps)
        grads = [self._normal(keys[0] if self.steady else key) for key in keys]
        if self.bad is not None:
            grads[1]["scale"] = grads[1]["scale"].at[3].set(self.bad)
        return grads

    def example_grads(self) -> Any:
        """The shapes of gradients."""
        examples = () if self.batch is None else (self.batch,)
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(examples + leaf.shape, leaf.dtype),
            self.params,
        )

    def _normal(self, key: Any) -> Any:
        leaves, structure = jax.tree.flatten(self.example_grads())
        keys = jax.random.split(key, len(leaves))
        normal = [
            jax.random.normal(key, leaf.shape, leaf.dtype)
            for key, leaf in zip(keys, leaves, strict=True)
        ]
        return jax.tree.unflatten(structure, normal)

    def ranks(self) -> contextlib.AbstractContextManager[None]:
        """Allows arrays of different ranks in one operation, if its authors do."""
        return jax.numpy_rank_promotion("allow" if self.broadcasts else "raise")

    def cut(self) -> fo.StageLocal:
        with self.ranks():
            return fo.stage_local(
                self.build(),
                self.params,
                self.partition,
                grads=self.example_grads(),
                extra_args=self.extra_args,
            )


def bytes_sent(staged: fo.StageLocal) -> int:
    """What all stages together send in a step, packed."""
    return sum(staged.bytes_sent)


def unread(staged: fo.StageLocal) -> list[Any]:
    """The messages that no other stage than their sender reads."""
    function = staged.programs[0].function
    slices, places = function.slices, []
    for split in function.results.values():
        places += split.stage_sets
    read = set()
    for stage in range(function.num_stages):
        results = [i for i, place in enumerate(places) if stage in place]
        programs = [slices.message_program(stage, r) for r in range(staged.rounds)]
        for program in [*programs, slices.result_program(stage, results)]:
            read |= {m for m in program.received if m.sender != stage}
    return [m for messages in slices.rounds for m in messages if m not in read]


def matrices(params: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def labels(params: Any) -> Any:
    return jax.tree.map(lambda leaf: "matrix" if leaf.ndim > 1 else "other", params)


FROZEN = {"first": True, "hidden": False, "last": False, "scale": False}


def warmup() -> Any:
    return optax.linear_schedule(0.01, 0.1, 3)


def clipped(tx: Any) -> Any:
    return optax.chain(optax.clip_by_global_norm(0.5), tx)


def every_second(step: Any, **extra_args: Any) -> Any:
    return step % 2 == 1


def accumulated(tx: Any, **options: Any) -> Any:
    return optax.MultiSteps(tx, 2, **options).gradient_transformation()


def decay(grad: Any, param: Any) -> Any:
    return grad - 0.1 * param


def muon_dimensions(params: Any) -> Any:
    return jax.tree.map(lambda _: optax.contrib.MuonDimensionNumbers(), params)


def after_an_update(tx: Any) -> Any:
    """`tx`, whose state has its final structure only after an update."""

    def init(params: Any) -> Any:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return tx.update(zeros, tx.init(params), params)[1]

    return optax.GradientTransformationExtraArgs(init, tx.update)


DOT_PRODUCTS = 36  # bytes a leaf: L-BFGS takes nine with a memory of two steps
SMALLER = (
    "In the smaller program of a stage, XLA fuses values that depend on a sum over all "
    "stages differently, which may change the last bit."
)
CANCELS = (
    f"{SMALLER} Here it changes a step length that is a small difference of large "
    "numbers, which amplifies the change."
)
DIRECTION = (
    f"{SMALLER} Here it scales terms of either sign in the sum for the direction, "
    "which amplifies the change if the terms cancel."
)
MEAN = (
    f"{SMALLER} The mean of the gradients is updated by its small difference from the "
    "newest gradient, which amplifies the change."
)
STEADY = (
    f"{SMALLER} Compared with equal gradients at every step: with others, the dot "
    "product of gradients and distances cancels, and the change may be 3e-6 of it."
)
CALLABLE = "It calls a function of all parameters, but no stage holds all parameters."
STRUCTURE = "The first update changes the structure of its state."


GROUPS: dict[str, tuple[Case, ...]] = {
    "Optimizers": (
        Case("adabelief", lambda: optax.adabelief(0.1)),
        Case("adadelta", lambda: optax.adadelta(0.1, weight_decay=0.01)),
        Case("adafactor", lambda: optax.adafactor(0.1, min_dim_size_to_factor=8)),
        Case(
            "adafactor",
            lambda: optax.adafactor(
                warmup(),
                min_dim_size_to_factor=8,
                momentum=0.9,
                weight_decay_rate=0.01,
                clipping_threshold=0.5,
            ),
            "momentum and decay",
        ),
        Case("adagrad", lambda: optax.adagrad(0.1)),
        Case("adam", lambda: optax.adam(0.1)),
        Case(
            "adam",
            lambda: optax.adam(warmup(), mu_dtype=jnp.bfloat16, nesterov=True),
            "bfloat16, Nesterov, schedule",
        ),
        Case("adamax", lambda: optax.adamax(0.1)),
        Case("adamaxw", lambda: optax.adamaxw(0.1, mask=matrices)),
        Case("adamw", lambda: optax.adamw(0.1, mask=matrices)),
        Case(
            "adamw",
            lambda: optax.adamw(warmup(), mask=matrices),
            "bfloat16 parameters",
            dtype=jnp.bfloat16,
        ),
        Case("adan", lambda: optax.adan(0.1, weight_decay=0.01)),
        Case("amsgrad", lambda: optax.amsgrad(0.1)),
        Case("fromage", lambda: optax.fromage(0.1)),
        Case("lamb", lambda: optax.lamb(0.1, weight_decay=0.01, mask=matrices)),
        Case("lars", lambda: optax.lars(0.1, weight_decay=0.01)),
        Case(
            "lbfgs",
            lambda: optax.lbfgs(0.1, memory_size=2, linesearch=None),
            "no line search",
            exchanges=True,
            most_sent=DOT_PRODUCTS,
            equal="bounded",
            reason=DIRECTION,
        ),
        Case(
            "lbfgs",
            lambda: optax.lbfgs(memory_size=2),
            equal="impossible",
            reason=CALLABLE,
            error="extra argument `value_fn` is a function",
            extra_args={"value_fn": jnp.sum},
        ),
        Case("lion", lambda: optax.lion(0.1)),
        Case("nadam", lambda: optax.nadam(0.1)),
        Case("nadamw", lambda: optax.nadamw(0.1)),
        Case(
            "noisy_sgd", lambda: optax.noisy_sgd(0.1, key=jax.random.key(0, impl="rbg"))
        ),
        Case("novograd", lambda: optax.novograd(0.1, weight_decay=0.01)),
        Case("optimistic_adam", lambda: optax.optimistic_adam(0.1, optimism=0.05)),
        Case("optimistic_adam_v2", lambda: optax.optimistic_adam_v2(0.1)),
        Case(
            "optimistic_gradient_descent",
            lambda: optax.optimistic_gradient_descent(0.1),
        ),
        Case(
            "polyak_sgd",
            lambda: optax.polyak_sgd(0.1),
            extra_args={"value": 0.5},
            exchanges=True,
        ),
        Case("radam", lambda: optax.radam(0.1, threshold=0.5)),
        Case("rmsprop", lambda: optax.rmsprop(0.1)),
        Case(
            "rmsprop",
            lambda: optax.rmsprop(
                0.1, centered=True, momentum=0.9, nesterov=True, bias_correction=True
            ),
            "centered, momentum",
        ),
        Case("rprop", lambda: optax.rprop(0.1)),
        Case("sgd", lambda: optax.sgd(0.1)),
        Case(
            "sgd",
            lambda: optax.sgd(
                warmup(), momentum=0.9, nesterov=True, accumulator_dtype=jnp.bfloat16
            ),
            "momentum",
        ),
        Case("sign_sgd", lambda: optax.sign_sgd(0.1)),
        Case("signum", lambda: optax.signum(0.1)),
        Case("sm3", lambda: optax.sm3(0.1)),
        Case("yogi", lambda: optax.yogi(0.1)),
    ),
    "Transformations": (
        Case("adaptive_grad_clip", lambda: optax.adaptive_grad_clip(0.01)),
        Case(
            "add_decayed_weights", lambda: optax.add_decayed_weights(0.1, mask=matrices)
        ),
        Case(
            "add_decayed_weights",
            lambda: optax.add_decayed_weights(warmup()),
            "schedule",
        ),
        Case("add_noise", lambda: optax.add_noise(0.1, 0.5, key=jax.random.key(0))),
        Case("apply_every", lambda: optax.apply_every(2)),
        Case("centralize", lambda: optax.centralize()),
        Case("clip", lambda: optax.clip(0.5)),
        Case("clip_by_block_rms", lambda: optax.clip_by_block_rms(0.5)),
        Case(
            "clip_by_global_norm",
            lambda: optax.clip_by_global_norm(0.5),
            exchanges=True,
        ),
        Case(
            "clip_by_global_norm",
            lambda: clipped(optax.sgd(0.1)),
            "NaN in a gradient",
            bad=float("nan"),
            exchanges=True,
        ),
        Case("ema", lambda: optax.ema(0.9)),
        Case("freeze", lambda: optax.freeze(FROZEN)),
        Case("identity", lambda: optax.identity()),
        Case("keep_params_nonnegative", lambda: optax.keep_params_nonnegative()),
        Case(
            "measure_with_ema",
            lambda: after_an_update(
                optax.monitor({"norm": optax.measure_with_ema(optax.tree.norm, 0.9)})
            ),
            "state made by an update",
            exchanges=True,
            equal="close",
            reason=SMALLER,
        ),
        Case(
            "monitor",
            lambda: optax.monitor({"norm": optax.tree.norm}),
            equal="impossible",
            reason=STRUCTURE,
            error="state with a different structure",
        ),
        Case(
            "monitor",
            lambda: after_an_update(
                optax.chain(optax.monitor({"norm": optax.tree.norm}), optax.sgd(0.1))
            ),
            "state made by an update",
            exchanges=True,
        ),
        Case(
            "normalize_by_update_norm",
            lambda: optax.normalize_by_update_norm(),
            exchanges=True,
        ),
        Case("scale", lambda: optax.scale(0.1)),
        Case("scale_by_adadelta", lambda: optax.scale_by_adadelta()),
        Case("scale_by_adam", lambda: optax.scale_by_adam()),
        Case("scale_by_adamax", lambda: optax.scale_by_adamax()),
        Case("scale_by_adan", lambda: optax.scale_by_adan()),
        Case("scale_by_amsgrad", lambda: optax.scale_by_amsgrad()),
        Case(
            "scale_by_backtracking_linesearch",
            lambda: optax.scale_by_backtracking_linesearch(3),
            equal="impossible",
            reason=CALLABLE,
            error="extra argument `value_fn` is a function",
            extra_args={"value_fn": jnp.sum},
        ),
        Case("scale_by_belief", lambda: optax.scale_by_belief()),
        Case(
            "scale_by_distance_over_gradients",
            lambda: optax.scale_by_distance_over_gradients(),
            broadcasts="a norm of shape (1,) multiplies a matrix",
        ),
        Case(
            "scale_by_factored_rms",
            lambda: optax.scale_by_factored_rms(min_dim_size_to_factor=8),
        ),
        Case(
            "scale_by_lbfgs",
            lambda: optax.scale_by_lbfgs(memory_size=2),
            exchanges=True,
            most_sent=DOT_PRODUCTS,
            equal="bounded",
            reason=DIRECTION,
        ),
        Case("scale_by_learning_rate", lambda: optax.scale_by_learning_rate(warmup())),
        Case("scale_by_lion", lambda: optax.scale_by_lion()),
        Case("scale_by_novograd", lambda: optax.scale_by_novograd()),
        Case(
            "scale_by_optimistic_gradient", lambda: optax.scale_by_optimistic_gradient()
        ),
        Case("scale_by_param_block_norm", lambda: optax.scale_by_param_block_norm()),
        Case("scale_by_param_block_rms", lambda: optax.scale_by_param_block_rms()),
        Case(
            "scale_by_polyak",
            lambda: optax.scale_by_polyak(),
            extra_args={"value": 0.5},
            exchanges=True,
        ),
        Case("scale_by_radam", lambda: optax.scale_by_radam(threshold=0.5)),
        Case("scale_by_rms", lambda: optax.scale_by_rms(bias_correction=True)),
        Case("scale_by_rprop", lambda: optax.scale_by_rprop(0.1)),
        Case("scale_by_rss", lambda: optax.scale_by_rss()),
        Case("scale_by_schedule", lambda: optax.scale_by_schedule(warmup())),
        Case("scale_by_sign", lambda: optax.scale_by_sign()),
        Case("scale_by_sm3", lambda: optax.scale_by_sm3()),
        Case("scale_by_stddev", lambda: optax.scale_by_stddev()),
        Case("scale_by_trust_ratio", lambda: optax.scale_by_trust_ratio()),
        Case("scale_by_yogi", lambda: optax.scale_by_yogi()),
        Case(
            "scale_by_zoom_linesearch",
            lambda: optax.scale_by_zoom_linesearch(3),
            equal="impossible",
            reason=CALLABLE,
            error="extra argument `value_fn` is a function",
            extra_args={"value_fn": jnp.sum},
        ),
        Case("set_to_zero", lambda: optax.set_to_zero()),
        Case(
            "snapshot",
            lambda: optax.chain(
                optax.sgd(0.1), optax.snapshot("norm", optax.tree.norm)
            ),
            exchanges=True,
        ),
        Case(
            "stateless",
            lambda: optax.stateless(functools.partial(jax.tree.map, decay)),
        ),
        Case(
            "stateless_with_tree_map",
            lambda: optax.stateless_with_tree_map(decay),
        ),
        Case("trace", lambda: optax.trace(0.9, nesterov=True)),
        Case("zero_nans", lambda: optax.zero_nans(), bad=float("nan")),
    ),
    "Wrappers": (
        Case("MultiSteps", lambda: accumulated(optax.adam(0.1))),
        Case(
            "MultiSteps",
            lambda: accumulated(clipped(optax.adam(0.1))),
            "global norm",
            exchanges=True,
            equal="bounded",
            reason=MEAN,
        ),
        Case(
            "MultiSteps",
            lambda: accumulated(optax.sgd(0.1), use_grad_mean=False),
            "sums",
        ),
        Case(
            "apply_if_finite",
            lambda: optax.apply_if_finite(optax.adam(0.1), 2),
            bad=float("nan"),
            exchanges=True,
        ),
        Case(
            "chain",
            lambda: optax.chain(optax.clip(0.5), optax.trace(0.9), optax.scale(-0.1)),
        ),
        Case(
            "conditionally_mask",
            lambda: optax.conditionally_mask(optax.adam(0.1), every_second),
        ),
        Case(
            "conditionally_transform",
            lambda: optax.conditionally_transform(optax.adam(0.1), every_second),
        ),
        Case(
            "flatten",
            lambda: optax.flatten(optax.adam(0.1)),
            equal="impossible",
            reason="It concatenates all parameters into one vector.",
            error="`concatenate` at .* mixes whole tensors",
        ),
        Case(
            "inject_hyperparams",
            lambda: optax.inject_hyperparams(optax.adamw)(warmup(), weight_decay=0.01),
        ),
        Case(
            "inject_stateful_hyperparams",
            lambda: optax.inject_stateful_hyperparams(optax.adamw)(
                warmup(), weight_decay=0.01
            ),
        ),
        Case(
            "lookahead",
            lambda: optax.lookahead(optax.sgd(0.1), 2, 0.5),
            equal="impossible",
            synced=True,
            reason="Its gradients have a different structure than its parameters.",
            error="pytree structure error|Expected dict, got LookaheadParams",
        ),
        Case("masked", lambda: optax.masked(optax.adam(0.1), matrices)),
        Case(
            "multi_transform",
            lambda: optax.multi_transform(
                {"matrix": optax.adam(0.1), "other": optax.sgd(0.1)}, labels
            ),
        ),
        Case(
            "named_chain",
            lambda: optax.named_chain(
                ("clip", optax.clip(0.5)), ("adam", optax.adam(0.1))
            ),
        ),
        Case(
            "partition",
            lambda: optax.partition(
                {"matrix": optax.adam(0.1), "other": optax.sgd(0.1)}, labels
            ),
        ),
        Case(
            "selective_transform",
            lambda: optax.selective_transform(optax.adam(0.1), freeze_mask=FROZEN),
        ),
        Case(
            "skip_large_updates",
            lambda: accumulated(
                optax.adam(0.1),
                should_skip_update_fn=functools.partial(
                    optax.skip_large_updates, max_squared_norm=10000.0
                ),
            ),
            bad=1e4,
            exchanges=True,
        ),
        Case(
            "skip_not_finite",
            lambda: accumulated(
                optax.adam(0.1), should_skip_update_fn=optax.skip_not_finite
            ),
            bad=float("inf"),
            exchanges=True,
        ),
        Case(
            "with_extra_args_support",
            lambda: optax.with_extra_args_support(optax.adam(0.1)),
        ),
    ),
    "optax.contrib": (
        Case("contrib.acprop", lambda: optax.contrib.acprop(0.1)),
        Case(
            "contrib.ademamix", lambda: optax.contrib.ademamix(0.1, weight_decay=0.01)
        ),
        Case("contrib.adopt", lambda: optax.contrib.adopt(0.1)),
        Case("contrib.cocob", lambda: optax.contrib.cocob(weight_decay=0.01)),
        Case(
            "contrib.dadapt_adamw",
            lambda: optax.contrib.dadapt_adamw(weight_decay=0.01),
            exchanges=True,
            equal="close",
            reason=SMALLER,
        ),
        Case(
            "contrib.differentially_private_aggregate",
            lambda: optax.contrib.differentially_private_aggregate(
                1.0, 0.5, key=jax.random.key(0)
            ),
            exchanges=True,
            batch=3,
        ),
        Case("contrib.dog", lambda: optax.contrib.dog(), exchanges=True),
        Case("contrib.dowg", lambda: optax.contrib.dowg(), exchanges=True),
        Case(
            "contrib.dpsgd",
            lambda: optax.contrib.dpsgd(0.1, 1.0, 0.5, seed=0, momentum=0.9),
            exchanges=True,
            batch=3,
        ),
        Case(
            "contrib.galore",
            lambda: optax.contrib.galore(0.1, rank=4, update_proj_gap=2),
        ),
        Case(
            "contrib.hutchinson_estimator_diag_hessian",
            lambda: optax.contrib.hutchinson_estimator_diag_hessian(),
            equal="impossible",
            reason=CALLABLE,
            error="extra argument `obj_fn` is a function",
            extra_args={"obj_fn": jnp.sum},
        ),
        Case("contrib.madgrad", lambda: optax.contrib.madgrad(0.1)),
        Case(
            "contrib.mechanize",
            lambda: optax.contrib.mechanize(optax.adam(0.1)),
            exchanges=True,
        ),
        Case(
            "contrib.momo",
            lambda: optax.contrib.momo(),
            extra_args={"value": 5.0},
            exchanges=True,
            equal="bounded",
            reason=CANCELS,
        ),
        Case(
            "contrib.momo_adam",
            lambda: optax.contrib.momo_adam(1.0),
            extra_args={"value": 500.0},
            exchanges=True,
            equal="bounded",
            reason=CANCELS,
        ),
        Case("contrib.muon", lambda: optax.contrib.muon(0.1, ns_steps=2)),
        Case("contrib.normalize", lambda: optax.contrib.normalize(), exchanges=True),
        Case(
            "contrib.prodigy",
            lambda: optax.contrib.prodigy(weight_decay=0.01),
            exchanges=True,
            equal="close",
            reason=STEADY,
            steady=True,
        ),
        Case(
            "contrib.reduce_on_plateau",
            lambda: optax.chain(
                optax.sgd(0.1), optax.contrib.reduce_on_plateau(patience=1)
            ),
            extra_args={"value": 0.5},
        ),
        Case(
            "contrib.reduce_on_plateau",
            lambda: optax.chain(
                optax.sgd(0.1), optax.contrib.reduce_on_plateau(patience=1)
            ),
            extra_args={"value": fo.OnStage(0.5, 2)},
            variant="loss on one stage",
            exchanges=True,
        ),
        Case(
            "contrib.sam",
            lambda: optax.contrib.sam(
                optax.sgd(0.1), optax.chain(optax.contrib.normalize(), optax.sgd(0.05))
            ),
            exchanges=True,
        ),
        Case(
            "contrib.sam",
            lambda: optax.contrib.sam(
                optax.sgd(0.1), optax.sgd(0.05), opaque_mode=True
            ),
            "opaque",
            equal="impossible",
            reason=CALLABLE,
            error="extra argument `grad_fn` is a function",
            extra_args={"grad_fn": jnp.sum},
        ),
        Case("contrib.scale_by_acprop", lambda: optax.contrib.scale_by_acprop()),
        Case("contrib.scale_by_ademamix", lambda: optax.contrib.scale_by_ademamix()),
        Case("contrib.scale_by_adopt", lambda: optax.contrib.scale_by_adopt()),
        Case("contrib.scale_by_cocob", lambda: optax.contrib.scale_by_cocob()),
        Case(
            "contrib.scale_by_galore",
            lambda: optax.contrib.scale_by_galore(rank=4, update_proj_gap=2),
        ),
        Case("contrib.scale_by_madgrad", lambda: optax.contrib.scale_by_madgrad(0.1)),
        Case(
            "contrib.scale_by_muon",
            lambda: optax.masked(
                optax.contrib.scale_by_muon(
                    ns_steps=2, weight_dimension_numbers=muon_dimensions
                ),
                matrices,
            ),
        ),
        Case(
            "contrib.scale_by_simplified_ademamix",
            lambda: optax.contrib.scale_by_simplified_ademamix(),
        ),
        Case(
            "contrib.schedule_free",
            lambda: optax.contrib.schedule_free(optax.sgd(0.1), 0.1),
        ),
        Case(
            "contrib.schedule_free_adamw",
            lambda: optax.contrib.schedule_free_adamw(
                0.1, warmup_steps=2, weight_decay=0.01
            ),
        ),
        Case(
            "contrib.schedule_free_sgd",
            lambda: optax.contrib.schedule_free_sgd(0.1, warmup_steps=2),
        ),
        Case(
            "contrib.simplified_ademamix",
            lambda: optax.contrib.simplified_ademamix(0.1),
        ),
        Case(
            "contrib.sophia",
            lambda: optax.contrib.sophia(0.1),
            equal="impossible",
            reason=CALLABLE,
            error="extra argument `obj_fn` is a function",
            extra_args={"obj_fn": jnp.sum},
        ),
        Case(
            "contrib.sophia",
            lambda: optax.contrib.sophia(
                0.1,
                update_interval=2,
                hessian_diagonal_fn=optax.stateless_with_tree_map(lambda g, p: g * g),
            ),
            "squared gradients",
        ),
        Case(
            "contrib.split_real_and_imaginary",
            lambda: optax.contrib.split_real_and_imaginary(optax.adam(0.1)),
            dtype=jnp.complex64,
        ),
    ),
    "Nested three deep": (
        Case(
            "MultiSteps",
            lambda: accumulated(
                optax.apply_if_finite(
                    clipped(optax.masked(optax.adam(0.1), matrices)), 2
                )
            ),
            "of apply_if_finite, chain, masked",
            bad=float("inf"),
            exchanges=True,
        ),
        Case(
            "apply_if_finite",
            lambda: optax.apply_if_finite(accumulated(clipped(optax.sgd(0.1))), 2),
            "of MultiSteps, chain, clip_by_global_norm",
            bad=float("inf"),
            exchanges=True,
        ),
        Case(
            "partition",
            lambda: optax.partition(
                {
                    "matrix": clipped(
                        optax.chain(optax.scale_by_adam(), optax.scale(-0.1))
                    ),
                    "other": optax.chain(optax.trace(0.9), optax.clip(0.5)),
                },
                labels,
            ),
            "of chains of chains",
            exchanges=True,
        ),
        Case(
            "inject_hyperparams",
            lambda: optax.inject_hyperparams(
                lambda rate, norm: optax.chain(
                    optax.clip_by_global_norm(norm),
                    optax.masked(optax.lamb(rate), matrices),
                )
            )(warmup(), 0.5),
            "around chain, masked, lamb",
            exchanges=True,
        ),
        Case(
            "inject_hyperparams",
            lambda: optax.chain(
                optax.zero_nans(),
                accumulated(optax.inject_hyperparams(optax.adamw)(warmup())),
            ),
            "in MultiSteps in chain",
        ),
        Case(
            "conditionally_transform",
            lambda: optax.conditionally_transform(
                clipped(optax.masked(optax.lion(0.1), matrices)), every_second
            ),
            "of chain, masked, lion",
            exchanges=True,
        ),
        Case(
            "named_chain",
            lambda: optax.named_chain(
                ("clip", optax.masked(optax.clip_by_global_norm(0.5), matrices)),
                (
                    "groups",
                    optax.partition(
                        {
                            "matrix": optax.chain(
                                optax.scale_by_adam(), optax.ema(0.9)
                            ),
                            "other": optax.set_to_zero(),
                        },
                        labels,
                    ),
                ),
            ),
            "of masked clip, partition, chain",
            exchanges=True,
        ),
        Case(
            "selective_transform",
            lambda: optax.selective_transform(
                optax.named_chain(
                    ("clip", optax.clip_by_global_norm(0.5)),
                    ("adam", optax.adamw(0.1, mask=matrices)),
                ),
                freeze_mask={
                    "first": False,
                    "hidden": True,
                    "last": False,
                    "scale": False,
                },
            ),
            "of named_chain, masked",
            exchanges=True,
        ),
        Case(
            "contrib.schedule_free",
            lambda: optax.contrib.schedule_free(
                clipped(optax.adamw(0.1, b1=0.0, mask=matrices)), 0.1
            ),
            "of chain, masked",
            exchanges=True,
        ),
        Case(
            "contrib.mechanize",
            lambda: optax.contrib.mechanize(
                optax.chain(optax.zero_nans(), optax.masked(optax.adam(0.1), matrices))
            ),
            "of chain, masked",
            exchanges=True,
        ),
        Case(
            "contrib.split_real_and_imaginary",
            lambda: optax.contrib.split_real_and_imaginary(
                clipped(optax.masked(optax.adam(0.1), matrices))
            ),
            "of chain, masked",
            dtype=jnp.complex64,
            exchanges=True,
        ),
        Case(
            "contrib.sam",
            lambda: accumulated(
                optax.contrib.sam(
                    clipped(optax.sgd(0.1)),
                    optax.chain(optax.contrib.normalize(), optax.sgd(0.05)),
                )
            ),
            "in MultiSteps",
            exchanges=True,
        ),
    ),
}


CASES = tuple(case for cases in GROUPS.values() for case in cases)

TYPES = {
    *("GradientTransformation", "GradientTransformationExtraArgs", "WrappedSchedule"),
}
FUNCTIONS = {
    *("apply_updates", "bias_correction", "global_norm", "incremental_update"),
    *("init_empty_state", "matrix_inverse_pth_root", "microbatch", "multi_normal"),
    *("nnls", "per_example_global_norm_clip", "per_example_layer_norm_clip"),
    *("periodic_update", "power_iteration", "safe_increment", "safe_int32_increment"),
    *("safe_norm", "safe_root_mean_squares", "scale_gradient", "tree_map_params"),
    *("update_infinity_moment", "update_moment", "update_moment_per_elem_norm"),
    *("value_and_grad_from_state", "contrib.schedule_free_eval_params"),
}


def public_names() -> dict[str, Any]:
    """The public names of `optax` and `optax.contrib`, and what they stand for."""
    modules = {"": optax, "contrib.": optax.contrib}
    return {
        f"{prefix}{name}": getattr(module, name)
        for prefix, module in modules.items()
        for name in dir(module)
        if not name.startswith("_")
    }


def category(name: str, value: Any) -> str | None:
    """What a public name is that is no transformation; None if nobody knows."""
    module = getattr(value, "__module__", None) or ""
    if inspect.ismodule(value):
        return "module"
    if name in FUNCTIONS:
        return "function"
    if module.startswith("optax.losses"):
        return "loss"
    if module in ("optax.schedules._schedule", "optax.schedules._join"):
        return "schedule"
    transforms = hasattr(value, "init") and hasattr(value, "update")
    is_type = isinstance(value, type) or typing.get_origin(value) is not None
    return "type" if is_type and (name in TYPES or not transforms) else None
