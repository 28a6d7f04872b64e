"""What a recipe does beside the chain: skip, average, keep dtypes, freeze, tell."""

import re
from collections import Counter
from typing import Any, NamedTuple

import equinox as eqx
import functional_opt as fo
import jax
import jax.numpy as jnp
import optax
import pytest
from functional_opt._transformations.clipping import clip_by_global_norm
from hypothesis import example, given, settings, strategies as st
from test_recipe import is_matrix, moments


PARAMS = {
    "embed": jnp.array([[1.0, -2.0], [3.0, 0.5]]),
    "body": jnp.array([[0.3, 1.0, -0.7]]),
    "norm": jnp.array([1.0, 1.5]),
}
STAGES = {"embed": {0, 2}, "body": 1, "norm": 2}
SCHEDULE = fo.Cosine(peak_value=0.1, warmup_steps=2, decay_steps=6)
THEIR_SCHEDULE = optax.warmup_cosine_decay_schedule(0.0, 0.1, 2, 6)


def grads_of(params, bad=False):
    grads = jax.tree.map(lambda x: jnp.sin(3 * x), params)
    return grads | {"norm": jnp.where(bad, jnp.nan, grads["norm"])}


class Run(NamedTuple):
    params: Any
    state: Any
    updates: list[Any]
    history: list[Any]


def run(transformation, steps=6, bad=(), params: Any = PARAMS, grads_of=grads_of):
    """A few compiled steps; the gradients of the `bad` ones are not finite."""

    @jax.jit
    def step(params, state, bad):
        updates, state = transformation.update(grads_of(params, bad), state, params)
        return optax.apply_updates(params, updates), state, updates

    state, updates, history = transformation.init(params), [], []
    for count in range(steps):
        params, state, update = step(params, state, count in bad)
        updates.append(update)
        history.append(params)
    return Run(params, state, updates, history)


def recipe(**fields: Any) -> fo.Recipe:
    defaults: dict[str, Any] = dict(optimizer=fo.AdamW(b2=0.95), schedule=SCHEDULE)
    return fo.Recipe(**defaults | fields)


def everything(**fields: Any) -> fo.Recipe:
    return recipe(
        **dict(
            clip_norm=0.5,
            weight_decay=0.1,
            decay_where=fo.Where(min_ndim=2),
            accumulate=2,
            skip_nonfinite=True,
            ema_decay=0.75,
            state_dtype="bfloat16",
        )
        | fields
    )


OPTIONS = st.fixed_dictionaries(
    {},
    optional=dict(
        clip_norm=st.sampled_from([0.25, 100.0]),
        weight_decay=st.just(0.1),
        accumulate=st.sampled_from([1, 2]),
        skip_nonfinite=st.just(True),
        state_dtype=st.just("bfloat16"),
        track_norm=st.just(True),
    ),
)


def by_hand(
    clip_norm=None,
    weight_decay=1e-4,
    accumulate=1,
    skip_nonfinite=False,
    state_dtype=None,
    track_norm=False,
):
    chain = optax.adamw(
        THEIR_SCHEDULE, b2=0.95, weight_decay=weight_decay, mu_dtype=state_dtype
    )
    if clip_norm is not None:
        chain = optax.chain(optax.clip_by_global_norm(clip_norm), chain)
    if accumulate > 1:
        chain = optax.MultiSteps(chain, accumulate).gradient_transformation()
    return optax.apply_if_finite(chain, 1_000) if skip_nonfinite else chain


@settings(max_examples=10, deadline=None)
@given(OPTIONS, st.sets(st.integers(0, 4), max_size=2))
@example(dict(clip_norm=0.25, accumulate=2, skip_nonfinite=True), {1})
@example({}, set())
def test_any_options_are_the_chain_by_hand(options, bad):
    ours = run(recipe(**options).build(), steps=5, bad=bad)
    theirs = run(by_hand(**options), steps=5, bad=bad)
    fo.testing.assert_equal(ours.updates, theirs.updates)
    fo.testing.assert_equal(ours.params, theirs.params)
    fo.testing.assert_equal(moments(ours.state), moments(theirs.state))


def clipped_by(function, max_norm):
    """Both for gradients of each dtype, compiled once."""
    clip = function(max_norm)
    return jax.jit(lambda grads: clip.update(grads, clip.init(grads)))


CLIPS = [
    (clipped_by(clip_by_global_norm, norm), clipped_by(optax.clip_by_global_norm, norm))
    for norm in (0.3, 50.0)
]
NORM = jax.jit(optax.tree.norm)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.floats(width=16), min_size=3, max_size=3),
    st.sampled_from(CLIPS),
    st.sampled_from([jnp.float32, jnp.bfloat16]),
)
def test_clip_is_that_of_optax(numbers, clips, dtype):
    grads = {"a": jnp.array(numbers[:1], dtype), "b": jnp.array(numbers[1:], dtype)}
    (found, state), (expected, _) = (clip(grads) for clip in clips)
    fo.testing.assert_equal(found, expected)
    # XLA does not round to bfloat16 what is only an intermediate of one program.
    norm = state.norm.astype(dtype), NORM(grads).astype(dtype)
    fo.testing.assert_equal(*norm, grade="close")


def test_what_is_skipped_changes_nothing_but_its_count():
    skipping = recipe(skip_nonfinite=True, clip_norm=0.5, ema_decay=0.5)
    with_bad = run(skipping.build(), steps=6, bad={1, 4})
    without = run(skipping.build(), steps=4)
    fo.testing.assert_equal(with_bad.params, without.params)
    found, expected = map(skipping.metrics, (with_bad.state, without.state))
    assert found.steps_skipped == 2 and expected.steps_skipped == 0
    fo.testing.assert_equal(
        found._replace(steps_skipped=None), expected._replace(steps_skipped=None)
    )
    fo.testing.assert_equal(moments(with_bad.state), moments(without.state))
    assert not any(jax.tree.leaves(jax.tree.map(jnp.any, with_bad.updates[4])))


@pytest.mark.parametrize("accumulate, bad", [(1, ()), (2, (1,))])
def test_average_of_the_parameters(accumulate, bad):
    averaging = recipe(ema_decay=0.75, accumulate=accumulate, skip_nonfinite=True)
    transformation = averaging.build()
    ours = run(transformation, steps=6, bad=bad)
    average, last = PARAMS, PARAMS
    for params in ours.history:
        if not eqx.tree_equal(params, last):
            average = optax.incremental_update(params, average, 0.25)
        last = params
    assert (
        averaging.metrics(ours.state).updates_completed == (6 - len(bad)) // accumulate
    )
    found = averaging.eval_params(ours.state, ours.params)
    fo.testing.assert_equal(found, average, grade="close")
    start = averaging.eval_params(transformation.init(PARAMS), PARAMS)
    fo.testing.assert_equal(start, PARAMS)


def test_average_of_narrow_parameters_is_wide():
    narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
    averaging = recipe(ema_decay=0.999)
    ours = run(averaging.build(), params=narrow)
    dtypes = {x.dtype for x in moments(ours.state)}
    assert dtypes == {jnp.dtype("bfloat16"), jnp.dtype("float32")}
    found = averaging.eval_params(ours.state, ours.params)
    assert {x.dtype for x in jax.tree.leaves(found)} == {jnp.dtype("bfloat16")}


def test_schedule_free():
    fields: Any = dict(b1=0.0, b2=0.95)
    ours = recipe(optimizer=fo.ScheduleFree(optimizer=fo.AdamW(**fields), b1=0.8))
    theirs = optax.contrib.schedule_free(
        optax.adamw(THEIR_SCHEDULE, **fields), THEIR_SCHEDULE, b1=0.8
    )
    found, expected = run(ours.build()), run(theirs)
    fo.testing.assert_equal(found.params, expected.params)
    fo.testing.assert_equal(
        ours.eval_params(found.state, found.params),
        optax.contrib.schedule_free_eval_params(expected.state, expected.params),
    )
    with pytest.raises(
        ValueError, match=r"`Recipe.ema_decay` = 0\.5 and `ScheduleFree`"
    ):
        recipe(optimizer=fo.ScheduleFree(optimizer=fo.SGD()), ema_decay=0.5)


def test_schedule_free_beside_others():
    groups = fo.Groups(
        (
            fo.Group(
                fo.Where("body"), optimizer=fo.ScheduleFree(optimizer=fo.SGD(), b1=0.8)
            ),
        ),
        rest=fo.SGD(),
    )
    ours = recipe(optimizer=groups)
    found = run(ours.build())
    params = ours.eval_params(found.state, found.params)
    rest = {name: leaf for name, leaf in found.params.items() if name != "body"}
    fo.testing.assert_equal(params, rest | {"body": params["body"]})
    assert (params["body"] != found.params["body"]).all()


@pytest.mark.parametrize(
    "optimizer, theirs",
    [
        (fo.AdamW(), optax.adamw(0.1, mu_dtype="bfloat16")),
        (
            fo.SGD(momentum=0.9),
            optax.sgd(0.1, momentum=0.9, accumulator_dtype="bfloat16"),
        ),
        (fo.Lion(), optax.lion(0.1, mu_dtype="bfloat16")),
    ],
    ids=lambda x: type(x).__name__,
)
def test_dtype_is_that_of_the_optimizers_own_field(optimizer, theirs):
    ours = recipe(optimizer=optimizer, schedule=0.1, state_dtype="bfloat16")
    found, expected = run(ours.build()), run(theirs)
    fo.testing.assert_equal(found.params, expected.params)
    fo.testing.assert_equal(moments(found.state), moments(expected.state))


class RMS(fo.AbstractOptimizer):
    def build(self, schedule):
        return optax.with_extra_args_support(optax.rmsprop(schedule, momentum=0.9))


def test_dtype_of_any_other_optimizer():
    inner = optax.rmsprop(0.1, momentum=0.9)

    def cast(state, dtype):
        return jax.tree.map(lambda x: x.astype(dtype) if x.ndim else x, state)

    def update(updates, state, params=None):
        updates, state = inner.update(updates, cast(state, jnp.float32), params)
        return updates, cast(state, jnp.bfloat16)

    theirs = optax.GradientTransformation(
        lambda params: cast(inner.init(params), jnp.bfloat16), update
    )
    ours = recipe(optimizer=RMS(), schedule=0.1, state_dtype="bfloat16")
    found, expected = run(ours.build()), run(theirs)
    assert {x.dtype for x in moments(found.state)} == {jnp.dtype("bfloat16")}
    fo.testing.assert_equal(found.params, expected.params)


@pytest.mark.parametrize("optimizer", [fo.AdamW(), RMS()], ids=["adamw", "rms"])
def test_narrow_parameters_are_updated_in_the_dtype_of_the_state(optimizer):
    narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
    inner = optimizer.build(0.1)

    def cast(tree, dtype):
        return jax.tree.map(lambda x: x.astype(dtype), tree)

    def update(updates, state, params=None):
        wide = cast(updates, jnp.float32), state, cast(params, jnp.float32)
        updates, state = inner.update(*wide)
        return cast(updates, jnp.bfloat16), state

    theirs = optax.GradientTransformation(
        lambda params: inner.init(cast(params, jnp.float32)), update
    )
    ours = recipe(optimizer=optimizer, schedule=0.1, state_dtype="float32")
    found, expected = run(ours.build(), params=narrow), run(theirs, params=narrow)
    assert {x.dtype for x in moments(found.state)} == {jnp.dtype("float32")}
    fo.testing.assert_equal(found.params, expected.params)


def frozen_groups():
    return fo.Groups(
        (fo.Group(fo.Where("norm"), optimizer=fo.Frozen()),), rest=fo.AdamW(b2=0.95)
    )


def optimizers():
    """One of each class that the library shows."""
    given: dict[Any, Any] = {
        fo.ScheduleFree: fo.ScheduleFree(optimizer=fo.SGD(momentum=0.9)),
        fo.Groups: frozen_groups(),
    }
    kinds = [kind for kind in vars(fo).values() if isinstance(kind, type)]
    return [
        given.get(kind) or kind()
        for kind in kinds
        if issubclass(kind, fo.AbstractOptimizer) and kind is not fo.AbstractOptimizer
    ]


@pytest.mark.parametrize("optimizer", optimizers(), ids=lambda x: type(x).__name__)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("params_dtype", ["bfloat16", "float32"])
def test_dtypes_stay_from_step_to_step(optimizer, dtype, params_dtype):
    params = jax.tree.map(lambda x: x.astype(params_dtype), PARAMS)
    transformation = recipe(optimizer=optimizer, state_dtype=dtype).build()
    state = jax.eval_shape(transformation.init, params)
    updates, after = jax.eval_shape(transformation.update, params, state, params)
    assert eqx.tree_equal(after, state)
    assert {x.dtype for x in jax.tree.leaves(updates)} == {jnp.dtype(params_dtype)}
    if dtype == "float32":
        floats = [x for x in moments(state) if jnp.issubdtype(x.dtype, jnp.floating)]
        assert {x.dtype for x in floats} <= {jnp.dtype("float32")}


def test_what_is_frozen_is_left_out_of_all():
    """The gradient of the frozen is huge or NaN: no matter."""

    def grads_with_frozen(params, bad):
        grads = grads_of(params)
        return grads | {"norm": jnp.where(bad, jnp.nan, 1e6 * params["norm"])}

    rest = {name: leaf for name, leaf in PARAMS.items() if name != "norm"}
    options: dict[str, Any] = dict(
        clip_norm=0.5, accumulate=2, skip_nonfinite=True, ema_decay=0.5
    )
    ours = recipe(optimizer=frozen_groups(), **options)
    found = run(ours.build(), bad={1}, grads_of=grads_with_frozen)
    expected = run(
        recipe(**options).build(),
        params=rest,
        grads_of=lambda params, _: jax.tree.map(lambda x: jnp.sin(3 * x), params),
    )
    fo.testing.assert_equal(found.params, expected.params | {"norm": PARAMS["norm"]})
    fo.testing.assert_equal(moments(found.state), moments(expected.state))
    fo.testing.assert_equal(ours.metrics(found.state), ours.metrics(expected.state))
    averaged = ours.eval_params(found.state, found.params)
    fo.testing.assert_equal(averaged["norm"], PARAMS["norm"])


def test_metrics_of_a_run():
    ours = recipe(clip_norm=0.5, accumulate=2, skip_nonfinite=True)
    transformation = ours.build()
    start = ours.metrics(transformation.init(PARAMS))
    assert (start.updates_completed, start.steps_skipped) == (0, 0)
    fo.testing.assert_equal(start.learning_rate, jnp.float32(THEIR_SCHEDULE(0)))
    found = run(transformation, steps=7, bad={2})
    metrics = ours.metrics(found.state)
    assert (metrics.updates_completed, metrics.steps_skipped) == (3, 1)
    rate = jax.jit(THEIR_SCHEDULE)(jnp.int32(2))
    fo.testing.assert_equal(metrics.learning_rate, rate)
    # The third update is made of the gradients at the parameters before steps 5 and 6.
    pair = [grads_of(found.history[step]) for step in (4, 5)]
    mean = jax.tree.map(lambda x, y: (x + y) / 2, *pair)
    assert metrics.gradient_norm == pytest.approx(optax.tree.norm(mean), rel=1e-6)
    assert {jnp.result_type(x) for x in metrics} == {
        jnp.dtype("int32"),
        jnp.dtype("float32"),
    }


def test_metrics_that_were_not_asked_for():
    metrics = recipe().metrics(recipe().build().init(PARAMS))
    assert metrics.gradient_norm is None and metrics.steps_skipped is None
    tracking = recipe(track_norm=True)
    found = run(tracking.build(), steps=1)
    norm = tracking.metrics(found.state).gradient_norm
    fo.testing.assert_equal(norm, jax.jit(optax.tree.norm)(grads_of(PARAMS)))
    with pytest.raises(ValueError, match="`state` is no state of a recipe's"):
        recipe().metrics(optax.adamw(0.1).init(PARAMS))


def primitives(function, *arguments):
    counts = Counter()

    def count(jaxpr):
        for eqn in jaxpr.eqns:
            counts[eqn.primitive.name] += 1
            for inner in jax.tree.leaves(
                list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
            ):
                if hasattr(inner, "eqns"):
                    count(inner)

    count(jax.make_jaxpr(function)(*arguments).jaxpr)
    return counts


@pytest.mark.parametrize("options", [dict(clip_norm=0.5), {}])
def test_metrics_cost_no_reduction(options):
    ours, theirs = recipe(**options).build(), by_hand(**options)
    found, expected = (
        primitives(tx.update, PARAMS, tx.init(PARAMS), PARAMS) for tx in (ours, theirs)
    )
    assert found["reduce_sum"] == expected["reduce_sum"] == 3 * len(options)
    compiled = [
        jax.jit(tx.update).lower(PARAMS, tx.init(PARAMS), PARAMS).compile().as_text()
        for tx in (ours, theirs)
    ]
    counts = [str(text).count(" reduce(") for text in compiled]
    assert counts[0] == counts[1]
    assert bool(counts[0]) == bool(options)


def test_metrics_send_nothing():
    partition = fo.partition(PARAMS, {"embed": 0, "body": 1, "norm": 2})
    options: dict[str, Any] = dict(clip_norm=0.5, skip_nonfinite=True)
    sent = [
        str(fo.stage_local(transformation, PARAMS, partition)).split("\n\n")[0]
        for transformation in (recipe(**options).build(), by_hand(**options))
    ]
    ours, theirs = ([line.split()[-2:] for line in text.splitlines()] for text in sent)
    assert ours == theirs


def test_everything_stage_by_stage():
    groups = fo.Groups(
        (fo.Group(fo.Where("embed"), optimizer=fo.Lion(), schedule_scale=0.1),),
        rest=fo.AdamW(),
    )
    ours = everything(optimizer=groups)
    partition = fo.partition(PARAMS, STAGES)
    grads = [
        grads_of(jax.tree.map(lambda x, i=i: x + i, PARAMS), i == 2) for i in range(5)
    ]
    staged = fo.testing.assert_stage_local_equal(
        ours.build(), PARAMS, partition, grads=grads
    )
    assert staged.rounds == 2  # The tied gradients, and then norm and finiteness.
    pieces = partition.split(PARAMS)
    states = staged.init(pieces)
    for tree in grads:
        pieces, states = staged.step(partition.split_gradients(tree), states, pieces)
    merged = staged.merge_state(states)
    with jax.transfer_guard("disallow"):
        metrics = ours.metrics(merged)
        by_stage = [ours.metrics(state) for state in states]
        averaged = [
            ours.eval_params(state, piece)
            for state, piece in zip(states, pieces, strict=True)
        ]
    assert (metrics.updates_completed, metrics.steps_skipped) == (2, 1)
    for found in by_stage:
        fo.testing.assert_equal(found, metrics)
    fo.testing.assert_equal(
        partition.merge(averaged), ours.eval_params(merged, partition.merge(pieces))
    )


def test_frozen_and_schedule_free_stage_by_stage():
    partition = fo.partition(PARAMS, STAGES)
    free = fo.Groups(
        (fo.Group(fo.Where("norm"), optimizer=fo.Frozen()),),
        rest=fo.ScheduleFree(optimizer=fo.AdamW(b1=0.0)),
    )
    ours = recipe(optimizer=free, clip_norm=0.5)
    staged = fo.testing.assert_stage_local_equal(ours.build(), PARAMS, partition)
    pieces = partition.split(PARAMS)
    states = staged.init(pieces)
    averaged = [ours.eval_params(*pair) for pair in zip(states, pieces, strict=True)]
    fo.testing.assert_equal(partition.merge(averaged), PARAMS, grade="close")


def test_length_of_the_run():
    fractions = fo.Cosine(
        peak_value=0.1,
        warmup_steps=fo.Fraction(0.25),
        decay_steps=fo.Fraction(1.0),
    )
    ours = recipe(schedule=fractions)
    message = "`Cosine.warmup_steps` is Fraction(value=0.25), a part of a run whose "
    for build in (
        ours.build,
        lambda: ours.build_mpmd(PARAMS, fo.partition(PARAMS, STAGES)),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            build()
    known = recipe(schedule=fo.Cosine(peak_value=0.1, warmup_steps=2, decay_steps=8))
    assert ours.resolve(8) == known
    fo.testing.assert_equal(run(ours.build(8)), run(known.build()))
    with pytest.raises(
        ValueError, match=r"`Cosine` takes 8 updates, but the run has 5"
    ):
        known.build(5)
    partition = fo.partition(PARAMS, {"embed": 0, "body": 1, "norm": 1})
    assert ours.build_mpmd(PARAMS, partition, total_steps=8).rounds == 0


def test_lengths_in_an_optimizer_are_found():
    class Annealed(fo.AbstractOptimizer):
        momentum: fo.AbstractSchedule

        def build(self, schedule):
            return fo.SGD().build(schedule)

    ours = recipe(
        optimizer=Annealed(
            fo.CosineDecay(init_value=0.9, decay_steps=fo.Fraction(0.5))
        ),
        schedule=0.1,
    )
    with pytest.raises(ValueError, match=r"`CosineDecay.decay_steps` is Fraction"):
        ours.build()
    assert ours.resolve(10).optimizer == Annealed(
        fo.CosineDecay(init_value=0.9, decay_steps=5)
    )


def test_explanation():
    groups = fo.Groups(
        (
            fo.Group(fo.Where("embed"), optimizer=fo.Lion(), schedule_scale=0.1),
            fo.Group(fo.Where("norm"), optimizer=fo.Frozen()),
        ),
        rest=fo.AdamW(weight_decay=0.3),
    )
    assert recipe(optimizer=groups).explain(PARAMS).splitlines() == [
        "path       shape   optimizer    schedule  decay",
        "['body']   (1, 3)  rest: AdamW  x 1       0.3",
        "['embed']  (2, 2)  0: Lion      x 0.1     0.001",
        "['norm']   (2,)    1: Frozen    x 0       0",
    ]
    by_rank = recipe(weight_decay=0.1, decay_where=fo.Where(min_ndim=2))
    lines = by_rank.explain(jax.eval_shape(lambda: PARAMS)).splitlines()
    assert [line.split()[-1] for line in lines[1:]] == ["0.1", "0.1", "0"]


def test_explanation_of_a_model():
    model = eqx.nn.MLP(2, 2, 2, 1, key=jax.random.key(0))
    lines = recipe().explain(model).splitlines()
    assert [line.split()[0] for line in lines[1:]] == [
        f"layers[{index}].{name}" for index in (0, 1) for name in ("weight", "bias")
    ]


def test_decay_that_finds_nothing_in_groups():
    ours = recipe(
        optimizer=frozen_groups(), weight_decay=0.1, decay_where=fo.Where("kernel")
    )
    for use in (ours.build().init, ours.explain):
        with pytest.raises(ValueError, match=r"`Where\(path='kernel'.*finds no param"):
            use(PARAMS)


def test_mask_of_a_user_sees_groups():
    groups = fo.Groups(
        (fo.Group(fo.Where("embed"), optimizer=fo.AdamW(mask=is_matrix)),),
        rest=fo.SGD(),
    )
    fo.testing.assert_stage_local_equal(
        groups.build(0.1), PARAMS, fo.partition(PARAMS, STAGES), steps=1
    )
