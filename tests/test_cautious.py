"""Cautious steps and cautious decays."""

import dataclasses
from typing import Any

import functional_opt as fo
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from catalogue import OPTIMIZERS
from recipe_runs import moments, PARAMS, recipe, run
from rooms import library


MATRICES = fo.Where(min_ndim=2)


def each(*optimizers: fo.AbstractOptimizer) -> tuple[fo.Groups, Any]:
    """Each of the optimizers for a parameter of its own, and these parameters."""
    groups = (
        fo.Group(fo.Where(f"'{i} "), optimizer)
        for i, optimizer in enumerate(optimizers)
    )
    params = {
        f"{i} {key}": x for i in range(len(optimizers)) for key, x in ROWS.items()
    }
    return fo.Groups(tuple(groups)), params


ROWS = {"matrix": PARAMS["embed"], "row": PARAMS["body"], "vector": PARAMS["norm"]}


def first_update(transformation: Any, params: Any) -> Any:
    grads = jax.tree.map(lambda x: jnp.sin(2 * x), params)
    return jax.jit(transformation.update)(grads, transformation.init(params), params)[0]


def test_cautious_steps_against_numpy():
    """With gradients that do not depend on the parameters, moments are the same."""
    groups, params = each(fo.Adam(), fo.SGD(momentum=0.9), fo.Lion(weight_decay=0.0))
    bare = recipe(optimizer=groups, schedule=0.1).build()
    cautious = fo.Cautious(groups, min_fraction=0.4)
    ours = recipe(optimizer=cautious, schedule=0.1).build()
    state, their_state = ours.init(params), bare.init(params)
    update, their_update = jax.jit(ours.update), jax.jit(bare.update)
    smallest, masked = 1.0, 0
    for i in range(6):
        grads = jax.tree.map(lambda x, i=i: jnp.sin(i + 3 * x), params)
        found, state = update(grads, state, params)
        plain, their_state = their_update(grads, their_state, params)
        for step, whole, grad in zip(
            *map(jax.tree.leaves, (found, plain, grads)), strict=True
        ):
            whole, grad = np.asarray(whole), np.asarray(grad)
            mask = (whole * grad < 0).astype(np.float32)
            expected = whole * mask / max(mask.mean(), 0.4)
            np.testing.assert_allclose(step, expected, rtol=1e-6)
            masked += int((mask == 0).sum())
            smallest = min(smallest, mask.mean())
    assert masked > 0 and smallest < 0.4
    assert len(moments(state)) == len(moments(their_state))


def test_decay_is_not_masked():
    groups, params = each(fo.AdamW(weight_decay=0.5), fo.Adam(), fo.Muon())
    plain = recipe(optimizer=fo.Cautious(groups), schedule=0.1, weight_decay=0.0)
    decayed = recipe(optimizer=fo.Cautious(groups), schedule=0.1, weight_decay=0.5)
    own = recipe(optimizer=fo.Cautious(groups), schedule=0.1)
    without, found, kept = (
        first_update(x.build(), params) for x in (plain, decayed, own)
    )
    expected = jax.tree.map(lambda u, x: u - 0.1 * 0.5 * x, without, params)
    fo.testing.assert_equal(found, expected, grade="bounded")
    expected = without | {key: x for key, x in found.items() if key.startswith("0 ")}
    fo.testing.assert_equal(kept, expected)


def test_entries_decay_where_the_step_comes_closer_to_zero():
    groups, params = each(fo.AdamW(weight_decay=0.3), fo.Lion(), fo.SGD(), fo.Scion())
    options: Any = dict(schedule=0.1, decay_where=MATRICES)
    ours = recipe(optimizer=fo.CautiousDecay(groups), weight_decay=0.5, **options)
    bare = recipe(optimizer=groups, weight_decay=0.0, **options)
    found, plain = (first_update(x.build(), params) for x in (ours, bare))
    decays = 0
    for name, step in plain.items():
        agrees = np.asarray(step * params[name]) <= 0
        agrees &= params[name].ndim == 2
        expected = step - jnp.where(agrees, 0.1 * 0.5 * params[name], 0)
        fo.testing.assert_equal(found[name], expected, grade="bounded")
        decays += int(agrees.sum())
    assert 0 < decays < sum(x.size for x in params.values() if x.ndim == 2)


def test_an_entry_without_a_step_decays():
    ours = fo.CautiousDecay(fo.AdamW(weight_decay=0.5)).build(0.1)
    params, grads = jnp.array([2.0, -2.0]), jnp.zeros(2)
    updates: Any = ours.update(grads, ours.init(params), params)[0]
    np.testing.assert_allclose(updates, [-0.1, 0.1], rtol=1e-6)


DECAYING = {
    name: dataclasses.replace(optimizer, weight_decay=0.5)
    for name, optimizer in OPTIMIZERS.items()
    if "weight_decay" in {field.name for field in dataclasses.fields(optimizer)}
}
# Their weight decay is not per unit of the learning rate that they are given.
OF_THE_STEP = {
    *("AdaDelta", "COCOB", "DAdaptAdamW", "DoG", "DoWG", "Lamb", "Lars", "MADGRAD"),
    *(
        "Momo",
        "MomoAdam",
        "Novograd",
        "Prodigy",
        "ScheduleFreeAdamW",
        "ScheduleFreeSGD",
    ),
}


@pytest.mark.parametrize("name", sorted(OF_THE_STEP))
def test_a_weight_decay_of_the_step_is_refused(name):
    message = f"cannot change the weight decay 0.5 of `{name}`, which is .* Set it to 0"
    with pytest.raises(ValueError, match=message):
        fo.CautiousDecay(DECAYING[name]).build(0.1)


def test_where_all_entries_decay_nothing_changes():
    """A decay is taken out of every optimizer and put back as it was."""
    names = sorted(DECAYING.keys() - OF_THE_STEP - {"Mechanize"})
    assert len(names) > 12
    groups = fo.Groups(
        tuple(fo.Group(fo.Where(f"'{name}'"), DECAYING[name]) for name in names)
    )
    params: Any = {name: jnp.full((1, 1), 2.0) for name in names}
    plain, ours = (
        run(recipe(optimizer=x, schedule=0.01).build(), 2, grads_of=same, params=params)
        for x in (groups, fo.CautiousDecay(groups))
    )
    fo.testing.assert_equal(ours.params, plain.params, grade="bounded")


def same(params, _):
    return params


def test_both_in_either_order_and_in_groups():
    decaying = fo.AdamW(weight_decay=0.5)
    group = fo.Group(fo.Where(), fo.Adam(), weight_decay=0.5)
    inside = fo.CautiousDecay(fo.Groups((group,)))
    one, other, grouped, plain = (
        recipe(optimizer=x, schedule=0.1)
        for x in (
            fo.Cautious(fo.CautiousDecay(decaying)),
            fo.CautiousDecay(fo.Cautious(decaying)),
            fo.Cautious(inside),
            fo.Cautious(decaying),
        )
    )
    expected = run(one.build()).params
    for ours in (other, grouped):
        fo.testing.assert_equal(run(ours.build()).params, expected)
    assert (expected["embed"] != run(plain.build()).params["embed"]).any()
    lines = grouped.explain(PARAMS).splitlines()[1:]
    assert "Cautious(CautiousDecay(0: AdamW))" in lines[0]
    assert [line.split()[-1] for line in lines] == ["0.5"] * 3


@pytest.mark.parametrize("kind", [fo.Cautious, fo.CautiousDecay])
def test_complex_parameters_are_refused(kind):
    params = {"a": jnp.ones(2, "complex64")}
    with pytest.raises(ValueError, match=f"`{kind.__name__}` does not support complex"):
        kind(fo.AdamW()).build(0.1).init(params)


@pytest.mark.parametrize(
    "optimizer, reason",
    [
        (fo.ScheduleFreeSGD(), "the average .*`ScheduleFree.optimizer=Cautious"),
        (fo.Mechanize(base_optimizer=fo.ScheduleFreeAdamW()), "the average"),
        (
            fo.DPSGD(l2_norm_clip=1.0, noise_multiplier=0.0, seed=0),
            "a gradient of each",
        ),
    ],
)
def test_optimizers_whose_steps_have_no_signs_of_their_own(optimizer, reason):
    with pytest.raises(ValueError, match=rf"`Cautious.optimizer` cannot be.*{reason}"):
        fo.Cautious(optimizer)


def test_files():
    optimizer = fo.CautiousDecay(fo.Cautious(fo.Muon(), min_fraction=0.5))
    document = library().encode(optimizer)
    assert document["optimizer"]["min_fraction"] == 0.5
    assert library().decode(document, fo.AbstractOptimizer) == optimizer


def test_what_is_not_a_number_is_seen():
    transformation = fo.Cautious(fo.Adam()).build(0.1)
    state = transformation.init(PARAMS)
    bad = jax.tree.map(lambda x: x * jnp.nan, PARAMS)
    for grads in (bad, PARAMS):
        updates, state = transformation.update(grads, state, PARAMS)
        assert all(jnp.isnan(x).all() for x in jax.tree.leaves(updates))
