"""Weight decays and learning rates of groups that are schedules."""

from typing import Any

import functional_opt as fo
import jax
import jax.numpy as jnp
import optax
import pytest
from deep_models import deep, gradients, mixed, on_stages
from module_strategies import kinds_of_the_library
from recipe_runs import is_matrix, PARAMS, recipe, run, SCHEDULE, THEIR_SCHEDULE


DECAY = fo.Linear(init_value=0.5, end_value=0.1, transition_steps=4)
THEIR_DECAY = optax.linear_schedule(0.5, 0.1, 4)
REGISTRY = fo.Registry.of(*kinds_of_the_library())


class Fixed(fo.AbstractOptimizer):
    """A user's optimizer, whose own weight decay is a number."""

    weight_decay: float = 0.3
    mask: Any = None

    def build(self, schedule):
        return optax.adamw(schedule, weight_decay=self.weight_decay, mask=self.mask)


@pytest.mark.parametrize(
    "kind, theirs", [(fo.AdamW, optax.adamw), (fo.Lion, optax.lion)]
)
@pytest.mark.parametrize("mask", [None, fo.Where(min_ndim=2)])
def test_own_decay_is_optax(kind, theirs, mask):
    ours = run(kind(weight_decay=DECAY, mask=mask).build(SCHEDULE))
    expected = run(theirs(THEIR_SCHEDULE, weight_decay=THEIR_DECAY, mask=mask))
    fo.testing.assert_equal(ours, expected)


@pytest.mark.parametrize("own", [fo.Adam(), fo.AdamW(weight_decay=0.7)])
@pytest.mark.parametrize("decay", [DECAY, THEIR_DECAY])
def test_decay_of_a_recipe_is_optax(own, decay):
    ours = recipe(optimizer=own, weight_decay=decay, decay_where=fo.Where(min_ndim=2))
    expected = optax.adamw(THEIR_SCHEDULE, weight_decay=THEIR_DECAY, mask=is_matrix)
    fo.testing.assert_equal(run(ours.build()).params, run(expected).params)


@pytest.mark.parametrize("optimizer", [fo.SGD(), Fixed(), fo.Adafactor(), fo.RMSProp()])
def test_decay_beside_an_optimizer_that_has_none_or_a_number(optimizer):
    """The product of two schedules, at the count of completed updates."""
    without = recipe(optimizer=optimizer, weight_decay=0.0).build()
    decayed = recipe(optimizer=optimizer, weight_decay=DECAY).build()
    state, their_state = decayed.init(PARAMS), without.init(PARAMS)
    update, their_update = jax.jit(decayed.update), jax.jit(without.update)
    for count in range(6):
        grads = jax.tree.map(jnp.cos, PARAMS)
        found, state = update(grads, state, PARAMS)
        plain, their_state = their_update(grads, their_state, PARAMS)
        pull = float(SCHEDULE(count)) * float(DECAY(count))
        expected = jax.tree.map(lambda u, p, c=pull: u - c * p, plain, PARAMS)
        # The product of rate and decay is rounded in float64 here.
        fo.testing.assert_equal(found, expected, grade="close")


def test_own_mask_of_an_optimizer_whose_decay_is_a_number():
    ours = recipe(optimizer=Fixed(mask=is_matrix), weight_decay=DECAY, schedule=0.1)
    theirs = optax.adamw(0.1, weight_decay=THEIR_DECAY, mask=is_matrix)
    found, expected = run(ours.build()).params, run(theirs).params
    # Optax adds the decay before it multiplies by the rate.
    fo.testing.assert_equal(found, expected, grade="close")


def test_a_schedule_and_a_decay_of_each_group():
    group = fo.Group(
        fo.Where("embed"), optimizer=fo.Lion(), schedule=DECAY, weight_decay=SCHEDULE
    )
    ours = recipe(optimizer=fo.Groups((group,), rest=fo.AdamW()), weight_decay=DECAY)
    theirs = optax.partition(
        {
            "own": optax.lion(THEIR_DECAY, weight_decay=THEIR_SCHEDULE),
            "rest": optax.adamw(THEIR_SCHEDULE, weight_decay=THEIR_DECAY),
        },
        {"embed": "own", "body": "rest", "norm": "rest"},
    )
    fo.testing.assert_equal(run(ours.build()).params, run(theirs).params)
    rows = [line.split()[-2:] for line in ours.explain(PARAMS).splitlines()[1:]]
    assert rows == [["1", "Linear"], ["Linear", "Cosine"], ["1", "Linear"]]


def test_a_rate_of_a_group_is_a_number_or_a_function():
    rates = (0.2, fo.Constant(0.2), optax.constant_schedule(0.2))
    found = [
        run(
            recipe(
                optimizer=fo.Groups((fo.Group(fo.Where(), fo.Adam(), schedule=rate),))
            ).build()
        ).params
        for rate in rates
    ]
    expected = run(optax.adam(optax.constant_schedule(0.2))).params
    for params in found:
        fo.testing.assert_equal(params, expected)


def test_rates_inside_a_group_stay():
    group = fo.Group(fo.Where(), fo.Muon(adam_learning_rate=0.3), schedule=DECAY)
    ours = recipe(optimizer=fo.Groups((group,)))
    theirs = optax.contrib.muon(THEIR_DECAY, adam_learning_rate=0.3)
    fo.testing.assert_equal(run(ours.build()).params, run(theirs).params)


def test_both_rates_of_a_group():
    message = r"^`Group.schedule_scale` = 0.5 scales .* `Group.schedule` = Constant"
    with pytest.raises(ValueError, match=message):
        fo.Group(fo.Where("a"), fo.Lion(), schedule=0.1, schedule_scale=0.5)
    fo.Group(fo.Where("a"), fo.Lion(), schedule=0.1, schedule_scale=1.0)


def test_negative_decays_are_refused():
    for make in (
        fo.AdamW,
        fo.Lion,
        lambda weight_decay: recipe(weight_decay=weight_decay),
    ):
        with pytest.raises(
            ValueError, match=r"weight_decay` must be at least 0, got -0.1"
        ):
            make(weight_decay=-0.1)


def test_durations_of_decays_and_groups_are_parts_of_the_run():
    half = fo.Linear(init_value=0.5, end_value=0.0, transition_steps=fo.Fraction(0.5))
    group = fo.Group(fo.Where("embed"), fo.Lion(), schedule=half, weight_decay=half)
    ours = recipe(optimizer=fo.Groups((group,), rest=fo.AdamW()), weight_decay=half)
    known = ours.resolve(8)
    assert known.weight_decay == half.resolve(8)
    found = known.optimizer.groups[0]  # pyright: ignore[reportAttributeAccessIssue]
    assert found.schedule == found.weight_decay == half.resolve(8)
    with pytest.raises(ValueError, match=r"`Linear.transition_steps` is Fraction"):
        ours.build()


@pytest.mark.parametrize("field", ["weight_decay", "optimizer"])
def test_a_decay_longer_than_the_run(field):
    long = fo.Linear(init_value=0.5, end_value=0.0, transition_steps=20)
    fields: dict[str, Any] = {
        "weight_decay": dict(weight_decay=long),
        "optimizer": dict(optimizer=fo.AdamW(weight_decay=long)),
    }
    with pytest.raises(
        ValueError, match="`Linear` takes 20 updates, but the run has 8"
    ):
        recipe(**fields[field]).build(8)


@pytest.mark.parametrize("suffix", ["toml", "yaml", "json"])
def test_files(tmp_path, suffix):
    group = fo.Group(fo.Where("a"), fo.Lion(weight_decay=DECAY), schedule=SCHEDULE)
    ours = recipe(optimizer=fo.Groups((group,), rest=fo.AdamW()), weight_decay=DECAY)
    path = tmp_path / f"recipe.{suffix}"
    REGISTRY.save(ours, path)
    assert REGISTRY.load(path, fo.Recipe) == ours


def test_files_refuse_functions():
    with pytest.raises(fo.ConfigError, match="weight_decay"):
        REGISTRY.encode(recipe(weight_decay=THEIR_DECAY))


def test_on_eight_stages():
    params = mixed(deep())
    groups = (
        fo.Group(fo.Where("layer 1"), fo.Lion(), schedule=DECAY, weight_decay=DECAY),
        fo.Group(fo.Where("layer 2"), Fixed(), schedule_scale=0.1),
        fo.Group(fo.Where("layer 30"), fo.Frozen()),
    )
    ours = recipe(
        optimizer=fo.Groups(groups, rest=fo.AdamW()),
        clip_norm=0.5,
        weight_decay=SCHEDULE,
        decay_where=fo.Where(min_ndim=1),
        skip_nonfinite=True,
        state_dtype="float32",
        ema_decay=0.9,
    )
    staged = fo.testing.assert_stage_local_equal(
        ours.build(),
        params,
        on_stages(params, tied=("layer 00", "layer 11")),
        grads=gradients(params, steps=4, bad=(2,)),
    )
    assert staged.rounds == 2  # The tied gradients, and then norm and finiteness.
