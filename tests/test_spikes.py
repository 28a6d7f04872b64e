"""Gradients that are skipped because the loss or their norm rises."""

from typing import Any

import functional_opt as fo
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from deep_models import deep, gradients, mixed, on_stages
from module_strategies import kinds_of_the_library
from recipe_runs import PARAMS, recipe


REGISTRY = fo.Registry.of(*kinds_of_the_library())
CALM = [2.0, 2.1, 1.9, 2.05, 1.95, 2.0, 2.1]


def observe(spikes, losses, grads: Any = None, **fields: Any):
    """Which of several gradients change the parameters."""
    ours = recipe(optimizer=fo.SGD(), schedule=0.1, skip_spikes=spikes, **fields)
    transformation = ours.build()
    update = jax.jit(transformation.update)
    state, params = transformation.init(PARAMS), PARAMS
    taken = []
    for number, loss in enumerate(losses):
        given = PARAMS if grads is None else grads[number]
        updates, state = update(given, state, params, value=loss)
        taken.append(bool(jnp.any(updates["body"] != 0)))
    return taken, ours.metrics(state)


def by_numpy(values, window, sigma):
    """OLMo-core's rule in a few lines, where the minimum is Levanter's."""
    taken = []
    for number, value in enumerate(values):
        last = np.array(values[max(0, number - window) : number])
        if len(last) < max(2, window // 2):
            taken.append(True)
        else:
            taken.append(bool(value - last.mean() <= sigma * last.std(ddof=1)))
    return taken


@pytest.mark.parametrize("window, sigma", [(2, 6.0), (4, 2.0), (16, 1.0)])
def test_losses_against_numpy(window, sigma):
    generator = np.random.default_rng(window)
    losses = generator.lognormal(size=60).round(3).tolist()
    spikes = fo.SkipSpikes(window=window, sigma=sigma, of="loss")
    taken, metrics = observe(spikes, losses)
    expected = by_numpy(losses, window, sigma)
    assert taken == expected and not all(expected)
    assert metrics.spikes_skipped == expected.count(False)
    assert metrics.updates_completed == expected.count(True)


def test_norms_against_numpy():
    generator = np.random.default_rng(0)
    scales = generator.lognormal(size=40).tolist()
    grads = [jax.tree.map(lambda x, s=s: s * x, PARAMS) for s in scales]
    taken, _ = observe(fo.SkipSpikes(window=8, sigma=1.5), scales, grads)
    expected = by_numpy(scales, 8, 1.5)
    assert taken == expected and not all(expected)


def test_either():
    losses = [*CALM, 9.0, 2.0, 2.0]
    scales = [1.0] * 8 + [9.0, 1.0]
    grads = [jax.tree.map(lambda x, s=s: s * x, PARAMS) for s in scales]
    spikes = fo.SkipSpikes(window=6, of="either")
    taken, metrics = observe(spikes, losses, grads)
    assert taken == [True] * 7 + [False, False, True]
    assert metrics.spikes_skipped == 2


def test_equal_observations_are_no_spikes():
    grads = [jax.tree.map(lambda x: 1e4 * x, PARAMS)] * 20
    taken, _ = observe(fo.SkipSpikes(window=7), [0.1] * 20, grads)
    assert all(taken)


def test_a_value_that_is_not_finite_is_skipped_and_forgotten():
    losses = [*CALM, np.nan, 2.0, np.inf, 2.0, 50.0]
    taken, metrics = observe(fo.SkipSpikes(window=6, of="loss"), losses)
    assert taken == [True] * 7 + [False, True, False, True, False]
    assert metrics.spikes_skipped == 3


def test_a_gradient_that_is_not_finite_is_counted_once():
    grads = [PARAMS] * 5 + [jax.tree.map(lambda x: x * jnp.nan, PARAMS)] + [PARAMS]
    taken, metrics = observe(fo.SkipSpikes(window=4), CALM, grads, skip_nonfinite=True)
    assert taken == [True] * 5 + [False, True]
    assert (metrics.steps_skipped, metrics.spikes_skipped) == (1, 0)


def test_counts_do_not_end():
    """Beyond twice the window, the oldest observation is still the one replaced."""
    losses = [1.0 + 0.1 * (i % 3) for i in range(50)]
    taken, _ = observe(fo.SkipSpikes(window=3, of="loss"), [*losses, 100.0])
    assert taken == [True] * 50 + [False]


def test_accumulation_goes_on_after_a_spike():
    losses = [*CALM[:6], 50.0, 2.0, 2.0]
    spikes = fo.SkipSpikes(window=4, of="loss")
    _, metrics = observe(spikes, losses, accumulate=2)
    assert (metrics.updates_completed, metrics.spikes_skipped) == (4, 1)


def test_a_loss_is_required():
    transformation = recipe(skip_spikes=fo.SkipSpikes(of="loss")).build()
    with pytest.raises(ValueError, match="the extra argument `value`"):
        transformation.update(PARAMS, transformation.init(PARAMS), PARAMS)


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(window=1), "`SkipSpikes.window` must be at least 2, got 1"),
        (dict(sigma=0.0), r"`SkipSpikes.sigma` must be greater than 0, got 0\.0"),
        (dict(of="loss "), "`SkipSpikes.of` must be 'norm', 'loss' or 'either'"),
    ],
)
def test_wrong_values(fields, message):
    with pytest.raises((TypeError, ValueError), match=message):
        fo.SkipSpikes(**fields)


@pytest.mark.parametrize("suffix", ["toml", "yaml", "json"])
def test_files(tmp_path, suffix):
    path = tmp_path / f"recipe.{suffix}"
    ours = recipe(skip_spikes=fo.SkipSpikes(window=64, of="either"))
    REGISTRY.save(ours, path)
    assert REGISTRY.load(path, fo.Recipe) == ours


@pytest.mark.parametrize("of", ["norm", "either"])
def test_one_decision_on_eight_stages(of):
    params = mixed(deep())
    partition = on_stages(params)
    frozen = fo.Group(fo.Where("layer 1[23]"), fo.Frozen())
    ours = recipe(
        optimizer=fo.Groups((frozen,), rest=fo.AdamW()),
        clip_norm=0.5,
        weight_decay=0.1,
        skip_nonfinite=True,
        skip_spikes=fo.SkipSpikes(window=4, of=of),
        ema_decay=0.9,
        state_dtype="float32",
    )
    grads = gradients(params, steps=6, bad=(2,))
    grads[5]["layer 41"] *= 1000  # A spike on the last stage alone.
    grads[5]["layer 12"] *= 1e6  # Frozen: not observed.
    loss = {"value": fo.OnStage(jnp.float32(1.0), 7)} if of == "either" else None
    staged = fo.testing.assert_stage_local_equal(
        ours.build(), params, partition, grads=grads, extra_args=loss
    )
    assert staged.rounds == 1
    assert max(int(line.split()[-2]) for line in str(staged).splitlines()[1:9]) < 150
    pieces, states = partition.split(params), None
    states = staged.init(pieces)
    extra = {} if loss is None else {"value": jnp.float32(1.0)}
    for tree in grads:
        pieces, states = staged.step(
            partition.split_gradients(tree), states, pieces, **extra
        )
    for state in states:
        metrics = ours.metrics(state)
        assert (metrics.steps_skipped, metrics.spikes_skipped) == (1, 1)
