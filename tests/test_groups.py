import re
from typing import Any

import equinox as eqx
import functional_opt as fo
import jax
import jax.numpy as jnp
import optax
import pytest
from hypothesis import given, settings, strategies as st
from recipe_runs import moments


PARAMS = {
    "embed": jnp.array([[1.0, -2.0], [3.0, 0.5]]),
    "body": {"weight": jnp.array([[0.3, 1.0]]), "bias": jnp.array([0.1])},
    "norm": jnp.array([1.0, 1.5]),
}
SCHEDULE = fo.Cosine(peak_value=0.1, warmup_steps=2, decay_steps=6)
EMBED, NORM, BIAS = fo.Where("embed"), fo.Where("norm"), fo.Where("bias")


def is_matrix(params):
    return jax.tree.map(lambda x: jnp.ndim(x) >= 2, params)


def trained(transformation, params: Any = PARAMS, steps=4):
    """The parameters and the number of arrays in the state after a few steps."""

    @jax.jit
    def step(params, state):
        grads = jax.tree.map(lambda x: jnp.sin(3 * x), params)
        updates, state = transformation.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = transformation.init(params)
    for _ in range(steps):
        params, state = step(params, state)
    return params, state


def labels(params):
    return {
        "embed": "0",
        "body": {"weight": "rest", "bias": "1"},
        "norm": "2",
    }


def grouped():
    return fo.Groups(
        (
            fo.Group(EMBED, optimizer=fo.Lion(), schedule_scale=0.1),
            fo.Group(BIAS, optimizer=fo.SGD(momentum=0.5), weight_decay=0.3),
            fo.Group(NORM | EMBED, optimizer=fo.Frozen()),
        ),
        rest=fo.AdamW(b2=0.95),
    )


def scaled(factor):
    return lambda count: factor * SCHEDULE(count)


def test_is_partition_by_hand():
    by_hand = optax.partition(
        {
            "0": optax.lion(scaled(0.1)),
            "1": optax.chain(
                optax.sgd(SCHEDULE, momentum=0.5),
                optax.add_decayed_weights(scaled(-0.3)),
            ),
            "2": optax.set_to_zero(),
            "rest": optax.adamw(SCHEDULE, b2=0.95),
        },
        labels,
    )
    ours = trained(grouped().build(SCHEDULE))
    fo.testing.assert_equal(ours, trained(by_hand))
    params, _ = ours
    fo.testing.assert_equal(params["norm"], PARAMS["norm"])
    assert (params["embed"] != PARAMS["embed"]).all()


def test_decay_is_that_of_the_group_first():
    by_hand = optax.partition(
        {
            "0": optax.lion(scaled(0.1), weight_decay=0.2, mask=is_matrix),
            "1": optax.chain(
                optax.sgd(SCHEDULE, momentum=0.5),
                optax.add_decayed_weights(scaled(-0.3), is_matrix),
            ),
            "2": optax.set_to_zero(),
            "rest": optax.adamw(SCHEDULE, b2=0.95, weight_decay=0.2, mask=is_matrix),
        },
        labels,
    )
    recipe = fo.Recipe(
        optimizer=grouped(),
        schedule=SCHEDULE,
        weight_decay=0.2,
        decay_where=fo.Where(min_ndim=2),
    )
    ours, theirs = trained(recipe.build()), trained(by_hand)
    fo.testing.assert_equal(ours[0], theirs[0])
    fo.testing.assert_equal(moments(ours[1]), moments(theirs[1]))


def test_frozen_has_no_state():
    frozen = fo.Groups((fo.Group(EMBED, optimizer=fo.Frozen()),), rest=fo.Adam())
    rest = {name: leaf for name, leaf in PARAMS.items() if name != "embed"}
    sizes = [
        sorted(leaf.size for leaf in jax.tree.leaves(optimizer.build(0.1).init(params)))
        for optimizer, params in [(frozen, PARAMS), (fo.Adam(), rest)]
    ]
    assert sizes[0] == sizes[1]
    everything = fo.Recipe(optimizer=fo.Frozen(), schedule=0.1, weight_decay=0.5)
    params, state = trained(everything.build())
    fo.testing.assert_equal(params, PARAMS)
    assert moments(state) == []


@settings(max_examples=15, deadline=None)
@given(st.lists(st.sampled_from(["embed", "weight", "bias", "norm"]), min_size=1))
def test_first_group_has_it(order):
    """Each group has another scale: by what a step is, one sees whose it was."""
    owned = list(dict.fromkeys(order))
    optimizer = fo.Groups(
        tuple(
            fo.Group(fo.Where(name), optimizer=fo.SGD(), schedule_scale=2.0**place)
            for place, name in enumerate(owned)
        ),
        rest=fo.Frozen(),
    )
    transformation = optimizer.build(1.0)
    ones = jax.tree.map(jnp.ones_like, PARAMS)
    updates, _ = transformation.update(ones, transformation.init(PARAMS), PARAMS)
    for path, update in jax.tree_util.tree_leaves_with_path(updates):
        text = jax.tree_util.keystr(path)
        places = [place for place, name in enumerate(owned) if name in text]
        expected = -(2.0 ** places[0]) if places else 0.0
        assert (update == expected).all()


def test_groups_in_groups():
    inner = fo.Groups((fo.Group(BIAS, optimizer=fo.SGD()),), rest=fo.Lion())
    outer = fo.Groups(
        (fo.Group(EMBED, optimizer=fo.Frozen()),),
        rest=inner,
    )
    by_hand = optax.partition(
        {"0": optax.set_to_zero(), "1": optax.sgd(0.1), "2": optax.lion(0.1)},
        {"embed": "0", "body": {"weight": "2", "bias": "1"}, "norm": "2"},
    )
    fo.testing.assert_equal(trained(outer.build(0.1))[0], trained(by_hand)[0])


def test_stages():
    partition = fo.partition(
        PARAMS, {"embed": {0, 2}, "body": {"weight": 1, "bias": 0}, "norm": 2}
    )
    transformation = grouped().build(SCHEDULE)
    fo.testing.assert_stage_local_equal(transformation, PARAMS, partition)


def test_is_a_value():
    assert fo.Group(EMBED, fo.Adam()) == fo.Group(EMBED, optimizer=fo.Adam())
    assert grouped() == grouped() and hash(grouped()) == hash(grouped())
    assert grouped() != fo.Groups(grouped().groups)
    assert fo.Registry.of(fo.Groups, fo.Group)["groups"] is fo.Groups


@pytest.mark.parametrize(
    "make, message",
    [
        (
            lambda: fo.Groups((fo.Group(EMBED, optimizer=fo.Adam()),)),
            "No group finds `['body']['bias']`, `['body']['weight']`, `['norm']`, and "
            "`Groups.rest` is None. Set `rest` to the optimizer of these parameters",
        ),
        (
            lambda: fo.Groups(
                (fo.Group(fo.Where("head"), optimizer=fo.Adam()),), rest=fo.Adam()
            ),
            "`Where(path='head', min_ndim=0)` finds no parameter. There are",
        ),
        (
            lambda: fo.Groups(
                (
                    fo.Group(fo.Where(min_ndim=1), optimizer=fo.Adam()),
                    fo.Group(NORM, optimizer=fo.SGD()),
                )
            ),
            "`Groups.groups[1]` has no parameter: the groups before it have all "
            "parameters that `Where(path='norm', min_ndim=0)` finds.",
        ),
    ],
)
def test_groups_that_do_not_fit_the_parameters(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make().build(0.1).init(PARAMS)


def test_wrong_fields():
    with pytest.raises(TypeError, match=r"`Groups.groups` must be a tuple, each item"):
        fo.Groups((fo.Adam(),))  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match=r"`Group.where` must be a Where, an AllOf"):
        fo.Group("embed", optimizer=fo.Adam())  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"`Group.schedule_scale` must be at least 0"):
        fo.Group(EMBED, optimizer=fo.Adam(), schedule_scale=-1.0)


def test_paths_of_a_model():
    model = eqx.filter(
        eqx.nn.MLP(2, 2, 2, 2, key=jax.random.key(0)), eqx.is_inexact_array
    )
    optimizer = fo.Groups(
        (fo.Group(fo.Where(r"layers\[0\]"), optimizer=fo.Frozen()),), rest=fo.SGD()
    )
    trains, _ = trained(optimizer.build(0.1), model, steps=1)
    assert eqx.tree_equal(trains.layers[0], model.layers[0])
    assert not eqx.tree_equal(trains.layers[1], model.layers[1])
