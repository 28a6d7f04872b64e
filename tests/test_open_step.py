"""Stages that start and finish one by one, in any order, as in `step` bit for bit."""

import functools
import random
from typing import Any

import functional_opt as fo
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compilations import compilations
from jax.sharding import Mesh, NamedSharding, PartitionSpec


STAGES = 8
TIED = frozenset({0, 3, 7})
CLIP = optax.clip_by_global_norm(0.5)
CLIPPED = optax.chain(CLIP, optax.adamw(1e-2))
ACCUMULATED = fo.Recipe(
    optimizer=fo.Lion(), schedule=jnp.array(0.1), clip_norm=0.5, accumulate=3
)
DEVICES = jax.devices()
APART = DEVICES
SHARED = [DEVICES[stage % 3] for stage in range(STAGES)]
MESHES = [Mesh(np.array(DEVICES[k : k + 2]), ("data",)) for k in (0, 2, 4, 6) * 2]


def make_params(tied):
    keys = iter(jax.random.split(jax.random.key(0), 5 * STAGES + 1))
    blocks = [
        [jax.random.normal(next(keys), (4, 6)) for _ in range(5)] for _ in range(STAGES)
    ]
    embed = {"embed": jax.random.normal(next(keys), (6, 4), jnp.bfloat16)}
    return {"blocks": blocks} | (embed if tied else {})


class Setting:
    """A transformation split over stages on given devices."""

    def __init__(self, tx, homes, tied=True, **options):
        self.params = make_params(tied)
        owners = {"blocks": list(range(STAGES))} | ({"embed": TIED} if tied else {})
        self.partition = fo.partition(self.params, owners)
        self.homes = tuple(
            NamedSharding(home, PartitionSpec()) if isinstance(home, Mesh) else home
            for home in homes
        )
        is_recipe = isinstance(tx, fo.Recipe)
        split = tx.build_mpmd if is_recipe else functools.partial(fo.stage_local, tx)
        self.staged = split(self.params, self.partition, **options)
        self.pieces = self.place(self.partition.split(self.params))
        self.states = self.staged.init(self.pieces)

    def place(self, pieces):
        """Each piece in memory of its own, for steps that donate it."""
        copies = jax.tree.map(jnp.copy, pieces)
        return jax.device_put(copies, self.homes, may_alias=False)

    def grads(self, step):
        def wave(x):
            return jnp.sin(7 * x.astype(jnp.float32) + step).astype(x.dtype)

        waves = jax.tree.map(wave, self.params)
        pieces = list(self.partition.split_gradients(waves))
        pieces[5] = jax.tree.map(lambda x: None, pieces[5])
        return self.place(tuple(pieces))


SETTINGS = {
    "a norm, tied": (CLIPPED, APART, {"donate": "all"}),
    "on meshes": (CLIPPED, MESHES, {"donate": True}),
    "two rounds": (optax.chain(CLIPPED, CLIP), SHARED, {"donate": True}),
    "idle rounds": (ACCUMULATED, APART, {}),
    "separable": (optax.adam(1e-2), APART, {"tied": False}),
}


@functools.cache
def setting_of(name):
    tx, homes, options = SETTINGS[name]
    return Setting(tx, homes, **options)


def in_any_order(setting, states, pieces, grads, chance):
    """A step whose stages start in a random order, and finish once they can."""
    step = setting.staged.begin(states, pieces)
    waiting, unfinished = list(range(STAGES)), set(range(STAGES))
    results = {}
    chance.shuffle(waiting)
    while waiting:
        step.start(stage := waiting.pop(), grads[stage])
        for stage in chance.sample(sorted(unfinished), len(unfinished)):
            if not step.waits_for(stage) and (chance.random() < 0.5 or not waiting):
                results[stage] = step.finish(stage)
                unfinished.remove(stage)
    return tuple(zip(*(results[stage] for stage in range(STAGES)), strict=True))


@pytest.mark.parametrize("name", SETTINGS)
def test_any_order_is_the_step(name):
    setting, chance = setting_of(name), random.Random(0)
    given = setting.pieces, setting.states
    (pieces, states), expected = map(setting.place, given), [*map(setting.place, given)]
    for step in range(4):
        grads, same = setting.grads(step), setting.grads(step)
        new, after = setting.staged.step(same, expected[1], expected[0])
        with compilations() as names:
            pieces, states = in_any_order(setting, states, pieces, grads, chance)
        fo.testing.assert_equal((pieces, states), (new, after), grade="exact")
        assert shardings((pieces, states)) == shardings((new, after))
        assert names == []
        expected = new, after


ON_ONE_DEVICE = [DEVICES[0]] * STAGES
HALF = jax.tree.map(lambda x: x.astype(jnp.bfloat16), make_params(False))


@pytest.mark.parametrize(
    "homes, options",
    [(APART, {"grads": HALF}), (MESHES, {}), (ON_ONE_DEVICE, {})],
    ids=["other dtype", "meshes", "one device"],
)
def test_all_programs_are_compiled_when_the_first_stage_starts(homes, options):
    setting = Setting(CLIPPED, homes, tied=False, **options)
    pieces, states = setting.pieces, setting.states
    grads = setting.place(setting.partition.split(options.get("grads", setting.params)))
    with compilations() as names:
        step = setting.staged.begin(states, pieces)
    assert names == []
    with compilations() as names:
        step.start(STAGES - 1, grads[STAGES - 1])
    assert any("stage_results" in name for name in names)
    with compilations() as names:
        for stage in range(STAGES - 1):
            step.start(stage, grads[stage])
        found = [step.finish(stage) for stage in range(STAGES)]
        assert names == []
        expected = setting.staged.step(grads, states, pieces)
    assert names == []
    fo.testing.assert_equal(tuple(zip(*found, strict=True)), expected, grade="exact")


def test_a_stage_with_other_gradients_is_compiled_again():
    setting = Setting(CLIPPED, APART, tied=False)
    grads = list(setting.place(setting.partition.split(setting.params)))
    grads[3] = jax.tree.map(lambda x: None, grads[3])
    with compilations() as names:
        step = setting.staged.begin(setting.states, setting.pieces)
        for stage in range(STAGES):
            step.start(stage, grads[stage])
        found = [step.finish(stage) for stage in range(STAGES)]
    for program in ("jit(stage_messages)", "jit(stage_results)"):
        assert names.count(program) == STAGES + 1
    expected = setting.staged.step(grads, setting.states, setting.pieces)
    fo.testing.assert_equal(tuple(zip(*found, strict=True)), expected, grade="exact")


def shardings(tree):
    return [x.sharding for x in jax.tree.leaves(tree)]


def test_what_a_stage_waits_for():
    def before(setting, *started):
        step = setting.staged.begin(setting.states, setting.pieces)
        grads = setting.grads(0)
        for stage in started:
            step.start(stage, grads[stage])
        return [step.waits_for(stage) for stage in (3, 6)]

    separable = setting_of("separable")
    assert before(separable, 6) == [{3}, frozenset()]
    everyone = frozenset(range(STAGES))
    tied = setting_of("a norm, tied")
    assert before(tied, 6, 3) == [everyone - {6, 3}] * 2
    idle = setting_of("idle rounds")
    assert before(idle) == [TIED, {6}]
    assert before(idle, 7, 0, 3) == [frozenset(), {6}]


def test_mistakes():
    setting = setting_of("a norm, tied")
    staged, grads = setting.staged, setting.grads(0)
    pieces, states = setting.place(setting.pieces), setting.place(setting.states)
    step = staged.begin(states, pieces)
    with pytest.raises(ValueError, match="Stage 8 is not a stage of this process"):
        step.start(STAGES, grads[0])
    for stage in range(STAGES - 2):
        step.start(stage, grads[stage])
    with pytest.raises(ValueError, match="Stage 2 has already started in this step"):
        step.start(2, grads[2])
    text = r"Stage 1 cannot finish before stages 6, 7 have started"
    with pytest.raises(ValueError, match=text):
        step.finish(1)
    with pytest.raises(ValueError, match=r"`grads\[6\]` does not match stage 6"):
        step.start(6, {"blocks": 3})
    name: Any = "6"
    for call in (lambda x: step.start(x, grads[6]), step.waits_for, step.finish):
        with pytest.raises(
            TypeError, match=r"`stage` of `OpenStep.\w+` must be an int"
        ):
            call(name)
    step.start(6, grads[6])
    step.start(7, grads[7])
    step.finish(1)
    with pytest.raises(ValueError, match="Stage 1 has already finished"):
        step.finish(1)
    again = staged.begin(states, pieces)
    for stage in (0, 3, 7):
        again.start(stage, grads[stage])
    with pytest.raises(ValueError, match=r"of `params\[1\]` has been deleted"):
        again.start(1, grads[1])
    with pytest.raises(ValueError, match="An earlier call for this step has failed"):
        again.start(2, grads[2])


def test_not_inside_a_larger_program():
    params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    partition = fo.partition(params, {"a": 0, "b": 1})
    staged = fo.stage_local(CLIP, params, partition)
    pieces = partition.split(params)
    with pytest.raises(ValueError, match="`begin` was called inside a transformation"):
        jax.jit(lambda pieces: staged.begin(staged.init(pieces), pieces))(pieces)
