"""What a state tells of its run, and what each parameter gets."""

from collections import Counter
from typing import Any

import equinox as eqx
import functional_opt as fo
import jax
import jax.numpy as jnp
import optax
import pytest
from recipe_runs import (
    by_hand,
    frozen_groups,
    grads_of,
    PARAMS,
    recipe,
    run,
    THEIR_SCHEDULE,
)


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
    norm = optax.tree.norm(mean)
    fo.testing.assert_equal(metrics.gradient_norm, norm)
    assert {jnp.result_type(x) for x in metrics if x is not None} == {
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
    with pytest.raises(ValueError, match="`state` is not the state of a rec"):
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
