"""Recipes stage by stage, and the length of their run."""

import re

import functional_opt as fo
import jax
import pytest
from recipe_runs import (
    everything,
    grads_of,
    is_matrix,
    PARAMS,
    recipe,
    run,
    STAGES,
)


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
    # Taking the average out of a mean, and what was put into it, is rounded twice.
    fo.testing.assert_equal(partition.merge(averaged), PARAMS, grade="close")


def test_length_of_the_run():
    fractions = fo.Cosine(
        peak_value=0.1,
        warmup_steps=fo.Fraction(0.25),
        decay_steps=fo.Fraction(1.0),
    )
    ours = recipe(schedule=fractions)
    message = "`Cosine.warmup_steps` is Fraction(value=0.25), which depends on the "
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


def test_accumulated_clip_stage_by_stage():
    ours = recipe(clip_norm=0.5, accumulate=2, ema_decay=0.9)
    fo.testing.assert_stage_local_equal(
        ours.build(), PARAMS, fo.partition(PARAMS, STAGES), steps=10
    )


def test_mask_of_a_user_sees_groups():
    groups = fo.Groups(
        (fo.Group(fo.Where("embed"), optimizer=fo.AdamW(mask=is_matrix)),),
        rest=fo.SGD(),
    )
    fo.testing.assert_stage_local_equal(
        groups.build(0.1), PARAMS, fo.partition(PARAMS, STAGES), steps=1
    )
