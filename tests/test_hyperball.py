"""Steps that keep the norm of parameters."""

import re
from typing import Any

import functional_opt as fo
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from recipe_runs import PARAMS, recipe, run, SCHEDULE
from rooms import library


def of_the_paper(param: Any, step: Any, rate: float) -> Any:
    """AdamH's rule for a matrix, with the step that is subtracted."""
    moved = param - rate * step * np.linalg.norm(param) / np.linalg.norm(step)
    return moved / np.linalg.norm(moved) * np.linalg.norm(param)


def test_against_numpy():
    stack = {"stack": jnp.stack([PARAMS["embed"], 2 * PARAMS["embed"]])}
    params: Any = {
        f"{i} {name}": leaf for i in range(3) for name, leaf in (PARAMS | stack).items()
    }
    groups = fo.Groups(
        (
            fo.Group(fo.Where("'0"), fo.Adam(b2=0.95)),
            fo.Group(fo.Where("'1"), fo.Muon(ns_steps=2)),
        ),
        rest=fo.SGD(momentum=0.9),
    )
    ours = recipe(optimizer=fo.Hyperball(groups), schedule=SCHEDULE).build()
    theirs = recipe(optimizer=groups, schedule=1.0, weight_decay=0.0).build()
    state, their_state = ours.init(params), theirs.init(params)
    update, their_update = jax.jit(ours.update), jax.jit(theirs.update)
    for count in range(4):
        grads = jax.tree.map(lambda x, i=count: jnp.sin((i + 2) * x), params)
        found, state = update(grads, state, params)
        plain, their_state = their_update(grads, their_state, params)
        rate = float(SCHEDULE(count))
        for name, param in params.items():
            start, end, step = map(
                np.asarray, (param, param + found[name], plain[name])
            )
            if name.endswith("norm"):
                np.testing.assert_allclose(found[name], rate * step, rtol=1e-5)
            elif name.endswith("stack"):
                expected = [
                    of_the_paper(*x, -rate) for x in zip(start, step, strict=True)
                ]
                np.testing.assert_allclose(end, expected, rtol=1e-5)
            else:
                expected = of_the_paper(start, step, -rate)
                np.testing.assert_allclose(end, expected, rtol=1e-5)


def test_what_is_not_on_the_ball_decays():
    own = fo.AdamW(weight_decay=0.5)
    ours = recipe(optimizer=fo.Hyperball(own), schedule=0.1)
    without = recipe(optimizer=fo.Hyperball(fo.Adam()), schedule=0.1)
    found, plain = run(ours.build(), 1).params, run(without.build(), 1).params
    fo.testing.assert_equal(found["body"], plain["body"])
    pulled = plain["norm"] - 0.1 * 0.5 * PARAMS["norm"]
    fo.testing.assert_equal(found["norm"], pulled, grade="bounded")
    rows = [x.split("  ")[-1].strip() for x in ours.explain(PARAMS).splitlines()[1:]]
    assert rows == ["0", "0", "0.5"]
    assert "(2, 2)  Hyperball(AdamW)  x 1" in ours.explain(PARAMS)
    assert "(2,)    AdamW             x 1" in ours.explain(PARAMS)


def test_the_outermost_wrapper_keeps_the_norm():
    def norms(optimizer: fo.AbstractOptimizer) -> Any:
        after = run(recipe(optimizer=optimizer, schedule=0.1).build(), 3).params
        return [float(jnp.linalg.norm(x["embed"])) for x in (PARAMS, after)]

    inner = fo.Groups((fo.Group(fo.Where("embed"), fo.Frozen()),), rest=fo.SGD())
    start, end = norms(fo.Hyperball(fo.CautiousDecay(fo.Cautious(fo.Lion()))))
    assert end == pytest.approx(start, rel=1e-6)
    start, end = norms(fo.Hyperball(inner))
    assert end == start
    assert "0: Frozen " in recipe(optimizer=fo.Hyperball(inner)).explain(PARAMS)


def test_a_parameter_of_zero_stays():
    ours = fo.Hyperball(fo.Adam()).build(0.1)
    params = {"a": jnp.zeros((2, 2))}
    updates, _ = ours.update({"a": jnp.ones((2, 2))}, ours.init(params), params)
    fo.testing.assert_equal(updates, params)


def test_without_a_step_nothing_moves():
    """To the last bit: at a learning rate of 0, and where the step is 0."""
    params: Any = {
        str(i): jnp.sin(7.0 * i + jnp.arange(30.0)).reshape(((2, 3, 5), (6, 5))[i % 2])
        for i in range(40)
    }
    zeros = jax.tree.map(jnp.zeros_like, params)
    for rate, grads in ((0.0, params), (jnp.float32(0.3), zeros)):
        ours = fo.Hyperball(fo.SGD()).build(rate)
        updates = jax.jit(ours.update)(grads, ours.init(params), params)[0]
        fo.testing.assert_equal(jax.tree.map(jnp.abs, updates), zeros)


def test_derivatives_by_the_learning_rate_where_gradients_are_zero():
    def end(rate: Any) -> Any:
        ours = fo.Hyperball(fo.SGD()).build(rate)
        params = {"still": jnp.ones((2, 2)), "moving": jnp.ones((2, 2))}
        for _ in range(3):
            grads = {"still": 0 * params["still"], "moving": jnp.eye(2)}
            updates, _ = ours.update(grads, ours.init(params), params)
            params = jax.tree.map(jnp.add, params, updates)
        return params["still"].sum() + params["moving"][0, 0]

    slope = (end(0.301) - end(0.299)) / 0.002
    assert float(jax.grad(end)(0.3)) == pytest.approx(float(slope), rel=1e-2)


def test_state_is_a_count_for_schedules_only():
    inner = fo.SGD().build(0.1).init(PARAMS)
    for rate, more in ((0.1, 0), (SCHEDULE, 2)):
        state = fo.Hyperball(fo.SGD()).build(rate).init(PARAMS)
        assert len(jax.tree.leaves(state)) == len(jax.tree.leaves(inner)) + more


def attention(optimizer: fo.AbstractOptimizer) -> fo.QKClip:
    return fo.QKClip(optimizer, query=fo.Where("query"), key=fo.Where("key"))


def in_group(optimizer: fo.AbstractOptimizer) -> fo.Groups:
    group = fo.Group(fo.Where("a"), fo.Cautious(optimizer))
    return fo.Groups((group,), rest=fo.SGD())


OWN_PARAMS: Any = [
    lambda x: fo.ScheduleFree(optimizer=x),
    lambda x: fo.Mechanize(base_optimizer=x),
    lambda x: fo.Lookahead(fast_optimizer=x, sync_period=2, slow_step_size=0.5),
]
DETERMINING: Any = [
    fo.Hyperball,
    attention,
    fo.KahanSummation,
    fo.StochasticRounding,
]


@pytest.mark.parametrize("around", OWN_PARAMS)
@pytest.mark.parametrize("determining", DETERMINING)
def test_what_determines_parameters_is_not_inside_what_changes_them(
    around, determining
):
    name = type(determining(fo.SGD())).__name__
    other = type(around(fo.SGD())).__name__
    with pytest.raises(
        ValueError, match=rf"`{other}` cannot hold `{name}`, which"
    ) as e:
        around(in_group(determining(fo.SGD())))
    if "Omit one of them" in str(e.value):
        with pytest.raises(ValueError, match=rf"`{name}.optimizer` .* hold `{other}`"):
            determining(around(fo.SGD()))
    else:
        assert f"Write `{name}({other}(...))` instead." in str(e.value)
        determining(around(fo.SGD()))
    clip = fo.ClipByNorm(1.0)
    message = rf"clip_update` = {re.escape(repr(clip))} would undo what `{name}`"
    with pytest.raises(ValueError, match="`Recipe." + message):
        recipe(optimizer=in_group(determining(fo.SGD())), clip_update=clip)
    with pytest.raises(ValueError, match="`Group." + message):
        fo.Group(fo.Where("a"), determining(fo.SGD()), clip_update=clip)


@pytest.mark.parametrize("optimizer", [fo.ScheduleFreeAdamW(), fo.ScheduleFreeSGD()])
def test_averages_are_refused(optimizer):
    for determining in (fo.Hyperball, attention):
        with pytest.raises(ValueError, match=r"`\w+.optimizer` cannot .* Omit one"):
            determining(optimizer)


def test_clips_of_updates_inside_are_refused():
    group = fo.Group(fo.Where("a"), fo.SGD(), clip_update=fo.ClipByNorm(1.0))
    with pytest.raises(
        ValueError, match=r"a `Group.clip_update` would change the norms"
    ):
        fo.Hyperball(fo.Groups((group,), rest=fo.SGD()))


def test_wrappers_of_users_declare_what_they_undo():
    class Doubled(fo.AbstractOptimizer):
        UNDOES = "its factor"
        optimizer: fo.AbstractOptimizer

        def build(self, schedule):
            return self.optimizer.build(schedule)

    Doubled(fo.Adam())
    with pytest.raises(ValueError, match=r"`Doubled` cannot .*: its factor would undo"):
        Doubled(fo.Hyperball(fo.Adam()))


class Tripled(fo.AbstractOptimizer):
    """Declares nothing."""

    optimizer: fo.AbstractOptimizer

    def build(self, schedule):
        return optax.chain(self.optimizer.build(schedule), optax.scale(3.0))


class Same(Tripled):
    UNDOES = None

    def build(self, schedule):
        return self.optimizer.build(schedule)


@pytest.mark.parametrize(
    "inside",
    [Tripled(fo.AdamW(weight_decay=0.1)), fo.GaLore(base_optimizer=fo.Adam(), rank=2)],
)
def test_norms_are_kept_around_what_changes_updates(inside):
    params = {
        f"layer {i}": jnp.cos(jnp.arange(24.0) + i).reshape(4, 6) for i in range(40)
    }
    norms = jax.tree.map(jnp.linalg.norm, params)
    tx = fo.Recipe(optimizer=fo.Hyperball(inside), schedule=0.1).build()
    state = tx.init(params)

    @jax.jit
    def step(params, state):
        updates, state = tx.update(jax.tree.map(jnp.sin, params), state, params)
        return optax.apply_updates(params, updates), state

    first = params
    for _ in range(3):
        params, state = step(params, state)
    moved = jax.tree.map(lambda x, y: float(jnp.abs(x - y).max()), first, params)
    assert min(moved.values()) > 0.01
    for name, norm in norms.items():
        assert jnp.linalg.norm(params[name]) == pytest.approx(float(norm), rel=1e-5)


def test_wrappers_that_declare_nothing_are_refused_outside():
    for determining in (fo.Hyperball, attention, fo.KahanSummation):
        name = type(determining(fo.SGD())).__name__
        with pytest.raises(ValueError, match="set its class variable `UNDOES`") as e:
            Tripled(determining(fo.SGD()))
        assert f"Write `{name}(Tripled(...))` instead." in str(e.value)
        determining(Tripled(fo.SGD()))
        Same(determining(fo.SGD()))


def test_files():
    optimizer = fo.Hyperball(fo.NorMuon(ns_steps=3), where=fo.Where("kernel"))
    document = library().encode(optimizer)
    assert library().decode(document, fo.AbstractOptimizer) == optimizer
