"""Optimizers in optimizers: what is written for none of them holds for all."""

import functools
import inspect
from typing import Any

import equinox as eqx
import functional_opt as fo
import jax
import jax.numpy as jnp
import optax
import pytest
from deep_models import mixed
from recipe_runs import grads_of, is_matrix, moments, PARAMS, recipe, run, SCHEDULE
from rooms import AbstractConfig


NORM = fo.Where("norm")
REST = {name: leaf for name, leaf in PARAMS.items() if name != "norm"}


class Doubled(fo.AbstractOptimizer):
    """A wrapper that knows nothing of decay, freezing, explanations or dtypes."""

    optimizer: fo.AbstractOptimizer

    def build(self, schedule):
        return optax.chain(self.optimizer.build(schedule), optax.scale(2.0))


class Listed(fo.AbstractOptimizer):
    """A wrapper whose optimizer is inside a tuple."""

    optimizers: tuple[fo.AbstractOptimizer, ...]

    def build(self, schedule):
        return optax.chain(*(inner.build(schedule) for inner in self.optimizers))


class Grafted(fo.AbstractOptimizer):
    """Two optimizers for the same parameters, which it does not declare."""

    length: fo.AbstractOptimizer
    direction: fo.AbstractOptimizer

    def build(self, schedule):
        return optax.chain(self.length.build(schedule), self.direction.build(1.0))


class ByRank(fo.AbstractPartitionedOptimizer):
    """Two optimizers, declared."""

    matrices: fo.AbstractOptimizer
    others: fo.AbstractOptimizer

    def parts(self):
        return {"matrices": self.matrices, "others": self.others}

    def labels(self, params):
        return jax.tree.map(lambda x: "matrices" if x.ndim == 2 else "others", params)

    def build(self, schedule):
        return self.build_parts(schedule)


def frozen_norm(rest):
    return fo.Groups((fo.Group(NORM, optimizer=fo.Frozen()),), rest=rest)


WRAPPERS = {
    "ScheduleFree": lambda x: fo.ScheduleFree(optimizer=x, b1=0.8),
    "Doubled": Doubled,
    "Listed": lambda x: Listed((x,)),
    "Doubled, ScheduleFree": lambda x: Doubled(fo.ScheduleFree(optimizer=x, b1=0.8)),
    "Groups": lambda x: fo.Groups((), rest=x),
}


def subclasses(cls):
    for sub in cls.__subclasses__():
        yield sub
        yield from subclasses(sub)


def methods(cls):
    """The methods that a class itself defines; Equinox wraps those in its `vars`."""
    own = {name: getattr(cls, name) for name in vars(cls) if not name.startswith("__")}
    return {name: method for name, method in own.items() if inspect.isfunction(method)}


def overridden(cls):
    """The concrete methods of its bases that a class defines again."""
    return [
        name
        for name in methods(cls)
        for base in cls.__mro__[1:]
        if inspect.isfunction(method := getattr(base, name, None))
        and not getattr(method, "__isabstractmethod__", False)
    ]


def of_the_library(cls):
    return [x for x in subclasses(cls) if x.__module__.startswith("functional_opt.")]


def test_no_concrete_method_is_overridden():
    """But `build_mpmd`, and those that only exist to be overridden."""
    allowed = {"build_mpmd", "_check", "_in_run", "phases"}
    found = {cls: set(overridden(cls)) for cls in of_the_library(AbstractConfig)}
    assert "phases" in found[fo.Cosine]
    for cls, names in found.items():
        assert names <= allowed, cls.__name__


def test_optimizers_implement_what_is_abstract_and_nothing_else():
    for cls in of_the_library(fo.AbstractOptimizer):
        if not inspect.isabstract(cls):
            public = {name for name in methods(cls) if not name.startswith("_")}
            is_partitioned = issubclass(cls, fo.AbstractPartitionedOptimizer)
            parts = {"parts", "labels"} if is_partitioned else set()
            assert public == {"build"} | parts, cls.__name__


@pytest.mark.parametrize("name", WRAPPERS)
def test_frozen_inside_a_wrapper(name):
    """It does not move, count in the norm, decay or cause a skip."""

    def with_frozen(params, bad):
        grads = grads_of(params)
        return grads | {"norm": jnp.where(bad, jnp.nan, 1e6 * params["norm"])}

    wrap = WRAPPERS[name]
    options: dict[str, Any] = dict(
        clip_norm=0.5, skip_nonfinite=True, weight_decay=0.1, accumulate=2
    )
    ours = recipe(optimizer=wrap(frozen_norm(fo.AdamW(b1=0.0))), **options)
    alone = recipe(optimizer=wrap(fo.AdamW(b1=0.0)), **options)
    found = run(ours.build(), steps=5, bad={1}, grads_of=with_frozen)
    expected = run(
        alone.build(),
        steps=5,
        params=REST,
        grads_of=lambda params, _: jax.tree.map(lambda x: jnp.sin(3 * x), params),
    )
    fo.testing.assert_equal(found.params, expected.params | {"norm": PARAMS["norm"]})
    fo.testing.assert_equal(moments(found.state), moments(expected.state))
    fo.testing.assert_equal(ours.metrics(found.state), alone.metrics(expected.state))


def test_frozen_inside_schedule_free_without_a_recipe():
    params = {"norm": jnp.linspace(0.1, 3.0, 64), "head": jnp.ones(4)}
    optimizer = fo.ScheduleFree(optimizer=frozen_norm(fo.SGD()))
    after = run(optimizer.build(0.01), params=params, grads_of=lambda x, _: x, steps=50)
    fo.testing.assert_equal(after.params["norm"], params["norm"])
    assert (after.params["head"] != params["head"]).all()


@pytest.mark.parametrize("name", WRAPPERS)
def test_decay_reaches_the_optimizer_inside(name):
    wrap, mask = WRAPPERS[name], fo.Where(min_ndim=2)
    ours = recipe(optimizer=wrap(fo.Lion()), weight_decay=0.3, decay_where=mask)
    theirs = recipe(optimizer=wrap(fo.Lion(weight_decay=0.3, mask=mask)))
    found, expected = run(ours.build()), run(theirs.build())
    fo.testing.assert_equal(found.params, expected.params)
    assert ours.explain(PARAMS) == theirs.explain(PARAMS)


def test_decay_of_a_wrapper_replaces_that_of_the_optimizer_inside():
    class Decaying(fo.AbstractOptimizer):
        optimizer: fo.AbstractOptimizer
        weight_decay: float

        def build(self, schedule):
            decay = optax.add_decayed_weights(-0.1 * self.weight_decay)
            return optax.chain(self.optimizer.build(schedule), decay)

    both = Decaying(fo.AdamW(weight_decay=0.25), 0.5)
    assert recipe(optimizer=both).explain(PARAMS).splitlines()[1].endswith(" 0.75")
    ours = recipe(optimizer=both, schedule=0.1, weight_decay=0.3)
    theirs = optax.chain(
        optax.adamw(0.1, weight_decay=0.0), optax.add_decayed_weights(-0.1 * 0.3)
    )
    fo.testing.assert_equal(run(ours.build()).params, run(theirs).params)
    masked = recipe(
        optimizer=both, schedule=0.1, weight_decay=0.3, decay_where=~fo.Where("body")
    )
    decays = [line.split()[-1] for line in masked.explain(PARAMS).splitlines()[1:]]
    assert decays == ["0", "0.3", "0.3"]


MUON: dict[str, Any] = dict(adam_learning_rate=1e-2, adam_b1=0.8)


def test_decay_of_muon_is_at_the_rate_of_each_part():
    ours = recipe(optimizer=fo.Muon(**MUON), weight_decay=0.3)
    theirs = optax.contrib.muon(
        SCHEDULE, weight_decay=0.3, adam_weight_decay=0.3, **MUON
    )
    found, expected = run(ours.build()), run(theirs)
    fo.testing.assert_equal(found.params, expected.params)
    masked = recipe(
        optimizer=fo.Muon(**MUON), weight_decay=0.3, decay_where=fo.Where("norm|embed")
    )
    lines = masked.explain(PARAMS).splitlines()
    assert lines == [
        "path       shape   optimizer           schedule  decay",
        "['body']   (1, 3)  muon: MuonMatrices  x 1       0",
        "['embed']  (2, 2)  muon: MuonMatrices  x 1       0.3",
        "['norm']   (2,)    adam: AdamW         0.01      0.3",
    ]


def test_scale_of_a_group_scales_all_rates_inside_it():
    inner = Doubled(fo.Muon(weight_decay=0.2, **MUON))
    group = fo.Group(fo.Where(), optimizer=inner, schedule_scale=0.5)
    ours = recipe(optimizer=fo.Groups((group,)), schedule=0.2)
    scaled = optax.contrib.muon(
        0.1, weight_decay=0.2, adam_b1=0.8, adam_learning_rate=0.5e-2
    )
    theirs = optax.chain(scaled, optax.scale(2.0))
    fo.testing.assert_equal(run(ours.build()).params, run(theirs).params)
    last = ours.explain(PARAMS).splitlines()[-1].split()
    assert last[2:] == ["0:", "Doubled(adam:", "AdamW)", "0.005", "0"]


@pytest.mark.parametrize(
    "optimizer",
    [
        fo.Muon(ns_steps=2, weight_decay=0.1, adam_weight_decay=0.2, **MUON),
        fo.Muon(ns_coeffs="dion", ns_steps=6, mu_dtype="bfloat16"),
    ],
)
def test_parts_of_muon_are_muon(optimizer):
    found = run(optimizer.build_parts(SCHEDULE))
    expected = run(optimizer.build(SCHEDULE))
    fo.testing.assert_equal(found.params, expected.params)


@pytest.mark.parametrize("name", WRAPPERS)
def test_dtype_of_the_state_reaches_the_optimizer_inside(name):
    ours = recipe(optimizer=WRAPPERS[name](fo.AdamW()), state_dtype="bfloat16")
    state = ours.build().init(PARAMS)
    moments = [mu for _, mu in optax.tree.get_all_with_path(state, "mu")]
    found = [leaf.dtype for leaf in jax.tree.leaves(moments)]
    assert found == [jnp.dtype("bfloat16")] * 3


def test_declared_parts():
    ours = recipe(
        optimizer=Doubled(ByRank(fo.Lion(), fo.SGD())), weight_decay=0.1, schedule=0.1
    )
    by_hand = optax.chain(
        optax.partition(
            {
                True: optax.lion(0.1, weight_decay=0.1),
                False: optax.chain(optax.sgd(0.1), optax.add_decayed_weights(-0.01)),
            },
            is_matrix,
        ),
        optax.scale(2.0),
    )
    fo.testing.assert_equal(run(ours.build()).params, run(by_hand).params)
    assert "Doubled(others: SGD)" in ours.explain(PARAMS)
    frozen = recipe(optimizer=ByRank(fo.Frozen(), fo.SGD()), clip_norm=0.5)
    found = run(frozen.build())
    fo.testing.assert_equal(found.params["embed"], PARAMS["embed"])


@pytest.mark.parametrize(
    "use, purpose",
    [
        (lambda x: recipe(optimizer=x, weight_decay=0.1).build(), "a weight decay"),
        (lambda x: recipe(optimizer=x).explain(PARAMS), "`Recipe.explain`"),
        (
            lambda x: (
                recipe(optimizer=Grafted(frozen_norm(x), fo.SGD())).build().init(PARAMS)
            ),
            "`Frozen` inside it",
        ),
    ],
)
def test_several_optimizers_that_are_not_declared(use, purpose):
    message = (
        "^`Grafted` holds 2 optimizers .* and does not declare which parameters each "
        f"of them updates, which {purpose} requires. Make it an "
    )
    with pytest.raises(ValueError, match=message):
        use(Grafted(fo.Adam(), fo.SGD()))


def test_several_optimizers_may_do_without_a_declaration():
    grafted = Grafted(fo.Adam(), fo.SGD())
    ours = recipe(optimizer=grafted, schedule=0.1, clip_norm=0.5)
    theirs = optax.chain(
        optax.clip_by_global_norm(0.5), optax.adam(0.1), optax.sgd(1.0)
    )
    fo.testing.assert_equal(run(ours.build()).params, run(theirs).params)


def test_labels_without_a_part():
    class Misspelt(fo.AbstractPartitionedOptimizer):
        def parts(self):
            return {"all": fo.SGD()}

        def labels(self, params):
            return jax.tree.map(lambda _: "al", params)

        def build(self, schedule):
            return self.build_parts(schedule)

    with pytest.raises(ValueError, match=r"^`Misspelt.labels` has 'al', .*\['all'\]"):
        recipe(optimizer=Misspelt()).explain(PARAMS)


RECIPES: dict[str, Any] = {
    "decay_where": dict(weight_decay=0.1, decay_where=fo.Where(min_ndim=2)),
    "Groups": dict(
        optimizer=fo.Groups(
            (fo.Group(fo.Where("embed"), optimizer=fo.Lion(), weight_decay=0.1),),
            rest=fo.AdamW(mask=fo.Where("norm")),
        )
    ),
    "Frozen": dict(optimizer=Doubled(frozen_norm(fo.AdamW()))),
    "ScheduleFree": dict(
        optimizer=fo.ScheduleFree(optimizer=frozen_norm(fo.AdamW(b1=0.0)))
    ),
    "Muon": dict(optimizer=fo.Muon(), weight_decay=0.1),
    "everything": dict(
        optimizer=frozen_norm(fo.AdamW()),
        clip_norm=0.5,
        weight_decay=0.1,
        decay_where=fo.Where(min_ndim=2),
        accumulate=2,
        skip_nonfinite=True,
        ema_decay=0.75,
        state_dtype="bfloat16",
    ),
}


@pytest.mark.parametrize("name", RECIPES)
def test_map_params(name):
    transformation = recipe(**RECIPES[name]).build()
    state = transformation.init(PARAMS)
    mapped = optax.tree.map_params(
        transformation, lambda leaf: leaf + 1, state, transform_non_params=lambda x: x
    )
    for (path, leaf), other in zip(
        jax.tree.leaves_with_path(state), jax.tree.leaves(mapped), strict=True
    ):
        is_param = jnp.ndim(leaf) > 0 and "ns_coeffs" not in str(path)
        fo.testing.assert_equal(other, leaf + 1 if is_param else leaf)


def layers(count):
    """A deep model with matrices, scales, biases and scalars."""
    shapes = [(6, 4), (4,), (4, 4), ()]
    return {
        f"layer {i:02d}": jax.random.normal(jax.random.key(i), shapes[i % 4])
        for i in range(count)
    }


def nested():
    frozen = fo.Group(fo.Where(r"layer [01]0"), optimizer=fo.Frozen())
    scaled = fo.Group(
        fo.Where(r"layer 2"), optimizer=Doubled(fo.Muon(ns_steps=1)), schedule_scale=0.5
    )
    own = fo.Group(fo.Where(r"layer 3"), optimizer=fo.Lion(), weight_decay=0.2)
    return fo.Groups(
        (frozen, scaled, own), rest=ByRank(fo.AdamW(), fo.SGD(momentum=0.9))
    )


def test_forty_leaves_on_eight_stages():
    """Wrappers in groups in wrappers, with every option, one gradient not finite."""
    params = mixed(layers(40))
    partition = fo.partition(params, lambda path, _: int(path[0].key[-2:]) // 5)
    ours = recipe(
        optimizer=Doubled(nested()),
        schedule=0.1,
        clip_norm=0.5,
        weight_decay=0.1,
        decay_where=fo.Where(min_ndim=1),
        accumulate=2,
        skip_nonfinite=True,
        state_dtype="float32",
    )
    grads = [
        jax.tree.map(lambda x, i=i: jnp.sin((i + 1) * x), params) for i in range(3)
    ]
    grads[1]["layer 00"] *= jnp.nan  # of a frozen parameter
    grads[2]["layer 39"] *= jnp.inf
    staged = fo.testing.assert_stage_local_equal(
        ours.build(), params, partition, grads=grads
    )
    assert staged.rounds == 1
    states = staged.init(partition.split(params))
    pieces = partition.split(params)
    for tree in grads:
        pieces, states = staged.step(partition.split_gradients(tree), states, pieces)
    metrics = ours.metrics(states[0])
    assert (metrics.updates_completed, metrics.steps_skipped) == (1, 1)
    after = partition.merge(pieces)
    fo.testing.assert_equal(after["layer 10"], params["layer 10"])
    assert (after["layer 12"] != params["layer 12"]).any()


class OneStep:
    """A stage-local program written by hand: signs, with nothing to exchange."""

    def __init__(self, tx, partition):
        self.tx, self.partition = tx, partition

    def init(self, params_by_stage):
        return tuple(map(self.tx.init, params_by_stage))

    def update(self, grads_by_stage, states, params_by_stage, **extra_args):
        pairs = [
            self.tx.update(*piece)
            for piece in zip(grads_by_stage, states, params_by_stage, strict=True)
        ]
        updates, states = zip(*pairs, strict=True)
        return updates, states

    def step(self, grads_by_stage, states, params_by_stage, **extra_args):
        updates, states = self.update(grads_by_stage, states, params_by_stage)
        return tuple(map(eqx.apply_updates, params_by_stage, updates)), states

    def merge_state(self, states):
        return states[0]

    def split_state(self, state, params_by_stage=None):
        return (state,) * self.partition.num_stages


class Signs(fo.AbstractOptimizer):
    def build(self, schedule):
        return optax.with_extra_args_support(optax.sign_sgd(schedule))

    def build_mpmd(self, schedule, params, partition, **options):
        return OneStep(self.build(schedule), partition)


def test_an_optimizer_with_a_stage_local_program_of_its_own():
    partition = fo.partition(PARAMS, {"embed": 0, "body": 1, "norm": 2})
    optimizer = Signs()
    staged = optimizer.build_mpmd(0.1, PARAMS, partition)
    assert isinstance(staged, fo.Staged)
    same = fo.testing.assert_stage_local_equal(
        optimizer.build(0.1), PARAMS, partition, staged=staged
    )
    assert same is staged
    wrong = OneStep(optimizer.build(0.2), partition)
    with pytest.raises(AssertionError, match="These leaves differ"):
        fo.testing.assert_stage_local_equal(
            optimizer.build(0.1), PARAMS, partition, staged=wrong
        )
    within = recipe(optimizer=optimizer).build_mpmd(PARAMS, partition)
    assert isinstance(within, fo.StageLocal)


@pytest.mark.parametrize("kind", [fo.AbstractOptimizer, fo.Recipe])
def test_build_mpmd_takes_what_stage_local_takes(kind):
    def keywords(function):
        return {
            name: parameter.default
            for name, parameter in inspect.signature(function).parameters.items()
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY
        }

    theirs = keywords(fo.stage_local)
    assert theirs.items() <= keywords(kind.build_mpmd).items()


def test_build_mpmd_passes_its_keywords_on():
    partition = fo.partition(PARAMS, {"embed": 0, "body": 1, "norm": 2})
    wide = jax.tree.map(lambda x: x.astype("bfloat16"), PARAMS)
    asked = []

    def state_stage_of(path, leaf):
        asked.append(path)

    options: dict[str, Any] = dict(
        meshes=jax.devices()[:1] * 3, grads=wide, state_stage_of=state_stage_of
    )
    sgd = fo.SGD(momentum=0.9)
    for build in (
        functools.partial(sgd.build_mpmd, 0.1),
        recipe(optimizer=sgd).build_mpmd,
    ):
        asked.clear()
        staged = build(PARAMS, partition, **options)
        assert asked
        pieces = partition.split(PARAMS)
        given = partition.split_gradients(wide)
        staged.update(given, staged.init(pieces), pieces)
