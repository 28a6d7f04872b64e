"""Small updates of narrow parameters, which are not lost."""

from typing import Any

import functional_opt as fo
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recipe_runs import PARAMS, recipe, run
from rooms import library


def narrow(tree: Any) -> Any:
    return jax.tree.map(lambda x: x.astype("bfloat16"), tree)


def trained(
    optimizer: fo.AbstractOptimizer, params: Any, step: float, count: int
) -> Any:
    """Updates of one size, in a compiled loop."""
    transformation = optimizer.build(1.0)

    def update(carry: Any, _: Any) -> Any:
        params, state = carry
        grads = jax.tree.map(lambda x: jnp.full_like(x, -step), params)
        updates, state = transformation.update(grads, state, params)
        return (jax.tree.map(jnp.add, params, updates), state), None

    start = params, transformation.init(params)
    return jax.jit(lambda start: jax.lax.scan(update, start, length=count)[0])(start)[0]


@pytest.mark.parametrize("start", [1.0, -1.5])
@pytest.mark.parametrize("step", [2.0**-12, -(2.0**-10), 0.3 * 2**-8])
def test_stochastic_rounding_is_unbiased(start, step):
    """Of many entries; a sum of steps that would all be lost."""
    params = jnp.full(20_000, start, "bfloat16")
    assert step > 0.001 or (trained(fo.SGD(), params, step, 3) == params).all()
    found = trained(fo.StochasticRounding(fo.SGD()), params, step, 3)
    step = float(jnp.bfloat16(step))
    # One entry deviates by at most the distance of two neighbours, 2**-7.
    error = np.asarray(found, np.float64).mean() - (start + 3 * step)
    assert abs(error) < 5 * 2**-7 * 3**0.5 / 2 / 20_000**0.5
    assert len(np.unique(np.asarray(found, np.float32))) > 1


def test_rounding_of_what_needs_none():
    """Exact sums, numbers that are not finite, and other dtypes."""
    params = {
        "exact": jnp.array([1.0, 2.0], "bfloat16"),
        "special": jnp.array([jnp.inf, jnp.nan, -0.0], "bfloat16"),
        "wide": jnp.array([1.0, -1.0]),
        "half": jnp.array([1.0], "float16"),
    }
    for seed in range(3):
        optimizer = fo.StochasticRounding(fo.SGD(), seed=seed)
        found = trained(optimizer, params, 0.5, 1)
        fo.testing.assert_equal(found, trained(fo.SGD(), params, 0.5, 1))


def test_numbers_follow_from_seed_path_and_count():
    params = {"a": jnp.ones(500, "bfloat16"), "b": jnp.ones(500, "bfloat16")}

    def after(seed: int, count: int, params: Any = params) -> Any:
        optimizer = fo.StochasticRounding(fo.SGD(), seed=seed)
        return trained(optimizer, params, 2.0**-9, count)

    one = after(0, 1)
    fo.testing.assert_equal(one, after(0, 1))
    # A parameter has its numbers whatever others there are.
    fo.testing.assert_equal(one["b"], after(0, 1, {"b": params["b"]})["b"])
    for other in (after(1, 1)["a"], one["b"], after(0, 2)["a"] - one["a"] + 1):
        assert (one["a"] != other).any()


def test_kahan_summation_against_float64():
    start = narrow(jnp.array([1.0, -3.0, 1e-3, 100.0]))
    found = trained(fo.KahanSummation(fo.SGD()), start, 2.0**-11, 500)
    expected = np.asarray(start, np.float64) + 500 * 2.0**-11
    np.testing.assert_allclose(np.asarray(found, np.float64), expected, rtol=2**-8)
    lost = trained(fo.SGD(), start, 2.0**-11, 500)
    assert float(lost[0]) == 1.0 and float(lost[3]) == 100.0
    half = trained(fo.KahanSummation(fo.SGD()), jnp.float16(1), 2.0**-14, 512)
    assert float(half) == 1 + 2**-5


def test_state_is_a_count_or_one_compensation():
    params = narrow(PARAMS) | {"wide": jnp.ones(3)}
    none, rounded, kahan = (
        jax.tree.leaves(x.build(0.1).init(params))
        for x in (
            fo.Adam(),
            fo.StochasticRounding(fo.Adam()),
            fo.KahanSummation(fo.Adam()),
        )
    )
    assert len(rounded) == len(none) + 1 and len(kahan) == len(none) + 3
    assert sum(x.nbytes for x in rounded) == sum(x.nbytes for x in none) + 4
    own = sum(x.nbytes for x in jax.tree.leaves(narrow(PARAMS)))
    assert sum(x.nbytes for x in kahan) == sum(x.nbytes for x in none) + own


@pytest.mark.parametrize("kind", [fo.StochasticRounding, fo.KahanSummation])
def test_in_recipes(kind):
    """Wrappers and decays act inside, in float32 if the state is."""
    optimizer = fo.Cautious(kind(fo.AdamW()))
    options: Any = dict(schedule=3e-4, weight_decay=0.1, state_dtype="float32")
    ours = recipe(optimizer=optimizer, accumulate=2, skip_nonfinite=True, **options)
    found = run(ours.build(), 40, params=narrow(PARAMS), bad=(3,))
    lost = recipe(optimizer=fo.Cautious(fo.AdamW()), **options)
    plain = run(lost.build(), 20, params=narrow(PARAMS))
    fo.testing.assert_equal(plain.params["embed"], narrow(PARAMS)["embed"])
    moved = [
        x != y
        for x, y in zip(
            *map(jax.tree.leaves, (found.params, narrow(PARAMS))), strict=True
        )
    ]
    # Kahan's sums come due after more updates.
    assert kind is fo.KahanSummation or any(x.any() for x in moved)
    compensations = [x for x in jax.tree.leaves(found.state) if x.dtype == "bfloat16"]
    assert any((x != 0).any() for x in compensations) or kind is fo.StochasticRounding


@pytest.mark.parametrize("kind", [fo.StochasticRounding, fo.KahanSummation])
def test_clips_of_rounded_updates_are_refused(kind):
    clip = fo.ClipByNorm(1.0)
    message = rf"`\w+.clip_update` = ClipByNorm.* Write `{kind.__name__}\(Groups"
    with pytest.raises(ValueError, match=message):
        recipe(optimizer=fo.Cautious(kind(fo.SGD())), clip_update=clip)
    with pytest.raises(ValueError, match=message):
        fo.Group(fo.Where("a"), kind(fo.SGD()), clip_update=clip)


def test_checkpoints_of_other_stages(tmp_path):
    """A run that goes on with other stages rounds by the same numbers."""
    params = narrow(PARAMS)
    optimizer = fo.KahanSummation(fo.StochasticRounding(fo.Adam()))
    ours = recipe(optimizer=optimizer, schedule=1e-3)
    expected = run(ours.build(), 4, params=params)
    first = fo.partition(params, {"embed": {0, 2}, "body": 1, "norm": 2})
    second = fo.partition(params, {"embed": 0, "body": 0, "norm": 1})
    staged = ours.build_mpmd(params, first)
    half = run(ours.build(), 2, params=params)
    pieces, states = first.split(half.params), staged.split_state(half.state)
    checkpoints = fo.Checkpoints(tmp_path, recipe=ours, registry=library())
    checkpoints.save(2, pieces, states, staged)
    other = ours.build_mpmd(params, second)
    blank = second.split(params)
    _, pieces, states = checkpoints.restore(blank, other.init(blank), other)[:3]
    for _ in range(2):
        grads = second.split_gradients(
            jax.tree.map(lambda x: jnp.sin(3 * x), second.merge(pieces))
        )
        pieces, states = other.step(grads, states, pieces)
    fo.testing.assert_equal(second.merge(pieces), expected.params)
    fo.testing.assert_equal(other.merge_state(states), expected.state)


def test_seeds_that_keys_do_not_take():
    fields = {fo.Quad: "seed", fo.Skew: "seed", fo.Kron: "seed", fo.NoisySGD: "key"}
    for kind, field in fields.items():
        message = rf"`{kind.__name__}\.{field}` must be in \[0, 4294967296\), got"
        with pytest.raises(ValueError, match=message):
            kind(**{field: 2**32})
    with pytest.raises(ValueError, match=r"`StochasticRounding\.seed` must be in"):
        fo.StochasticRounding(fo.SGD(), seed=2**70)
    last = fo.StochasticRounding(fo.SGD(), seed=2**32 - 1)
    trained(last, jnp.ones(3, "bfloat16"), 2.0**-9, 1)


def test_files():
    optimizer = fo.StochasticRounding(fo.KahanSummation(fo.Adam()), seed=3)
    document = library().encode(optimizer)
    assert document["seed"] == 3
    assert library().decode(document, fo.AbstractOptimizer) == optimizer


def test_kahan_summation_of_no_parameters():
    everything = fo.Groups(
        (fo.Group(fo.Where(""), fo.SGD()),), rest=fo.KahanSummation(fo.AdamW())
    )
    params = narrow(PARAMS)
    found = run(recipe(optimizer=everything).build(), params=params)
    expected = run(recipe(optimizer=fo.SGD()).build(), params=params)
    fo.testing.assert_equal(found.params, expected.params)
