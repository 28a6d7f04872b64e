"""The clip of query and key weights by the largest attention logits."""

from typing import Any

import functional_opt as fo
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from recipe_runs import PARAMS, recipe, run
from rooms import library


def attention(optimizer: fo.AbstractOptimizer, **fields: Any) -> fo.QKClip:
    return fo.QKClip(optimizer, query=fo.Where("query"), key=fo.Where("key"), **fields)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 0.25])
def test_heads_above_the_threshold_are_scaled(alpha):
    params = {"query": jnp.full((3, 4), 2.0), "key": jnp.full((3, 2), 3.0)}
    params["v"] = jnp.ones(())
    logits = {"query": jnp.array([10.0, 400.0]), "key": jnp.float32(200.0), "v": None}
    tx = attention(fo.SGD(), alpha=alpha).build(0.5)
    grads = jax.tree.map(jnp.ones_like, params)
    update = jax.jit(tx.update)
    updates: Any = update(grads, tx.init(params), params, max_logits=logits)[0]
    after: Any = optax.apply_updates(params, updates)
    np.testing.assert_allclose(after["query"][:, :2], 1.5)
    np.testing.assert_allclose(after["query"][:, 2:], 1.5 * 0.25**alpha, rtol=1e-6)
    np.testing.assert_allclose(after["key"], 2.5 * 0.5 ** (1 - alpha), rtol=1e-6)
    np.testing.assert_allclose(after["v"], 0.5)


def test_stacked_layers_and_another_axis():
    params = {"query": jnp.ones((2, 4, 3)), "key": jnp.ones((2, 4, 3))}
    logits = jnp.array([[1.0, 400.0], [100.0, 900.0]])
    tx = attention(fo.SGD(), heads_axis=1).build(0.1)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates: Any = tx.update(zeros, tx.init(params), params, max_logits=logits)[0]
    expected = np.repeat([[0, -1 / 2], [0, -2 / 3]], 2, axis=1)[..., None]
    for update in updates.values():
        np.testing.assert_allclose(
            update, np.broadcast_to(expected, (2, 4, 3)), rtol=1e-6
        )


def test_steps_of_heads_below_are_the_same_bits():
    """In narrow numbers too, with the state of the optimizer inside and no more."""
    params = {
        "query": jnp.linspace(-1, 1, 24).reshape(6, 4),
        "key": jnp.linspace(-2, 1, 8).reshape(2, 4).astype("bfloat16"),
    }
    inner, ours = fo.Adam().build(0.1), attention(fo.Adam()).build(0.1)
    logits = jax.tree.map(lambda x: jnp.full(2, 99.0), params)
    found = jax.jit(ours.update)(params, ours.init(params), params, max_logits=logits)
    expected = jax.jit(inner.update)(params, inner.init(params), params)
    fo.testing.assert_equal(found, expected)


@pytest.mark.parametrize(
    "extra, message",
    [
        ({}, "`QKClip` needs the largest attention logits"),
        ({"max_logits": {"query": 1.0, "key": None}}, r"no entry at `\['key'\]`"),
        ({"max_logits": "a"}, "`max_logits` must be an array or a number.*got 'a'"),
        (
            {"max_logits": {"key": [None, "b"]}},
            r"`max_logits` at `\['key'\]\[1\]` must",
        ),
        ({"max_logits": jnp.ones(3)}, r"has shape \(3,\), but .* \(6, 4\) .* axis -1"),
        ({"max_logits": jnp.ones((6, 2, 2))}, r"pass \(heads,\), or \(layers, heads\)"),
    ],
)
def test_wrong_logits(extra, message):
    params = {"query": jnp.ones((6, 4)), "key": jnp.ones((6, 4))}
    tx = attention(fo.SGD()).build(0.1)
    with pytest.raises((TypeError, ValueError), match=message):
        tx.update(params, tx.init(params), params, **extra)
    with pytest.raises(ValueError, match="`QKClip` scales the parameters: pass them"):
        tx.update(params, tx.init(params), max_logits=1.0)


@pytest.mark.parametrize("logit", [jnp.inf, -jnp.inf, jnp.nan])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_logits_that_are_not_finite_scale_nothing(logit, dtype):
    params = {"query": jnp.ones((2, 4), dtype), "key": jnp.ones((2, 4), dtype)}
    logits = jnp.array([logit, 400.0], dtype)
    ours = recipe(optimizer=attention(fo.SGD()), schedule=0.5, skip_nonfinite=True)
    tx = ours.build()
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates = jax.jit(tx.update)(zeros, tx.init(params), params, max_logits=logits)[0]
    halved = jnp.array([[0.0, 0.0, -0.5, -0.5]] * 2, dtype)
    fo.testing.assert_equal(updates, {"query": halved, "key": halved})


def test_frozen_weights_stay():
    """Alone as in a recipe; their logits are not needed."""
    groups = fo.Groups((fo.Group(fo.Where("key"), fo.Frozen()),), rest=fo.SGD())
    params = {"query": jnp.ones((2, 4)), "key": jnp.ones((2, 4))}
    logits = {"query": jnp.float32(400.0), "key": None}
    for tx in (
        attention(groups).build(0.5),
        recipe(optimizer=attention(groups), schedule=0.5).build(),
    ):
        state = tx.init(params)
        updates: Any = tx.update(params, state, params, max_logits=logits)[0]
        fo.testing.assert_equal(updates["key"], jnp.zeros((2, 4)))
        np.testing.assert_allclose(params["query"] + updates["query"], 0.25)


@pytest.mark.parametrize("kind", [fo.KahanSummation, fo.StochasticRounding])
def test_rounding_is_outside_in_either_order(kind):
    params = {"query": jnp.ones((2, 4), "bfloat16"), "key": jnp.ones((2, 4), "float16")}
    outer = kind(attention(fo.Adam()))
    groups = fo.Groups(
        (fo.Group(fo.Where("query"), kind(fo.Adam())),), rest=kind(fo.Adam())
    )
    logits = {"max_logits": jnp.float32(100.001)}

    def end(optimizer: fo.AbstractOptimizer) -> Any:
        ours = recipe(optimizer=optimizer, schedule=2.0**-12)
        grads = jax.tree.map(jnp.ones_like, params)
        options: Any = dict(grads_of=lambda *_: grads, extra_args=logits)
        return run(ours.build(), 20, params=params, **options).params

    expected = end(outer)
    fo.testing.assert_equal(end(attention(kind(fo.Adam()))), expected)
    fo.testing.assert_equal(end(attention(groups)), expected)
    assert (expected["query"] != params["query"]).any()


def test_a_weight_has_one_role():
    ours = fo.QKClip(fo.SGD(), query=fo.Where("query"), key=fo.Where("key|query"))
    params = {"query": jnp.ones((2, 4)), "key": jnp.ones((2, 4))}
    with pytest.raises(
        ValueError, match=r"`QKClip.key` both select `\['query'\]`, but"
    ):
        ours.build(0.1).init(params)


def test_axes_that_parameters_do_not_have():
    params = {"query": jnp.ones((6, 4)), "key": jnp.ones((6, 4))}
    tx = attention(fo.SGD(), heads_axis=2).build(0.1)
    with pytest.raises(ValueError, match="with its heads on axis 2"):
        tx.update(params, tx.init(params), params, max_logits=jnp.ones(2))


def test_rules_that_find_nothing():
    with pytest.raises(ValueError, match="query"):
        attention(fo.SGD()).build(0.1).init(PARAMS)


def test_recipes_ask_for_the_logits():
    optimizer = fo.QKClip(
        fo.Muon(consistent_rms=0.2), query=fo.Where("embed"), key=fo.Where("body")
    )
    ours = recipe(optimizer=optimizer, weight_decay=0.1)
    text = ours.explain(PARAMS)
    assert "QKClip(muon: MuonMatrices)" in text and "`max_logits`" in text
    partition = fo.partition(PARAMS, {"embed": 0, "body": 1, "norm": 1})
    with pytest.raises(ValueError, match="`QKClip` requires the extra argument `max_l"):
        ours.build_mpmd(PARAMS, partition)
    logits = fo.OnStage(jnp.float32(200.0), 1)
    staged = ours.build_mpmd(PARAMS, partition, extra_args={"max_logits": logits})
    assert staged.rounds == 1


def test_files():
    optimizer = attention(fo.Muon(), threshold=50.0, heads_axis=1)
    document = library().encode(optimizer)
    assert library().decode(document, fo.AbstractOptimizer) == optimizer
