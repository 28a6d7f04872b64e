"""What a checkpoint holds besides leaves, and restoring a part of it."""

import logging

import equinox as eqx
import functional_opt as fo
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest


PARAMS = {"embed": jnp.ones((8, 4)), "b": jnp.ones(4), "c": jnp.ones((4, 8))}
PARTITION = fo.partition(PARAMS, {"embed": 0, "b": 0, "c": 1})
REGISTRY = fo.Registry.of(fo.AdamW, fo.Lion, fo.Cosine)


def recipe_of(**fields):
    fields = {"optimizer": fo.AdamW(), "schedule": 1e-3, "clip_norm": 1.0, **fields}
    return fo.Recipe(**fields)


RECIPE = recipe_of()


def state_of(recipe, params=PARAMS):
    return recipe.build().init(params)


class Normed(eqx.Module):
    linear: eqx.nn.Linear
    norm: eqx.nn.BatchNorm

    def __init__(self, key):
        self.linear = eqx.nn.Linear(4, 4, key=key)
        self.norm = eqx.nn.BatchNorm(4, "batch", mode="ema")


def make_extra(factor):
    _, norms = eqx.nn.make_with_state(Normed)(jax.random.key(0))
    scale = jax.tree.map(lambda x: x + factor if x.ndim else x, norms)
    return {
        "norms": scale,
        "rng": jax.random.key(factor),
        "keys": jax.random.split(jax.random.key(factor, impl="rbg"), 3),
        "data": {"file": "part-17.txt", "position": 2**40 + factor, "epochs": [1, 2.5]},
        "window": (jnp.arange(3) * factor, np.arange(4) * factor, None, True, ""),
        "sampler": np.uint64(2**63 + factor),
        "loss": 0.25 * factor,
        "nothing": None,
        "empty": {},
    }


def test_extra_comes_back_under_its_names(tmp_path):
    checkpoints = fo.Checkpoints(tmp_path)
    extra = make_extra(3)
    checkpoints.save(1, PARAMS, (), extra=extra)
    restored = checkpoints.restore(PARAMS, (), extra={"norms": make_extra(0)["norms"]})
    step, params, state = restored
    assert (step, state) == (1, ())
    fo.testing.assert_equal(params, PARAMS)
    assert list(restored.extra) == list(extra)
    found = dict(restored.extra)
    others = [eqx.filter(x, eqx.is_array, inverse=True) for x in (found, extra)]
    assert len({str(jax.tree.leaves(tree)) for tree in others}) == 1
    assert jax.tree.structure(found) == jax.tree.structure(extra)
    fo.testing.assert_equal(*(eqx.filter(x, eqx.is_array) for x in (found, extra)))
    assert jax.random.key_impl(found["keys"]) == jax.random.key_impl(extra["keys"])
    assert type(found["sampler"]) is np.uint64
    assert type(found["window"][1]) is np.ndarray
    assert isinstance(found["window"][0], jax.Array)
    assert type(found["data"]["position"]) is int


def test_extra_that_only_python_knows_needs_a_value_of_its_structure(tmp_path):
    checkpoints = fo.Checkpoints(tmp_path)
    checkpoints.save(1, PARAMS, (), extra=make_extra(3))
    restored = checkpoints.restore(PARAMS, ())
    assert restored.extra["loss"] == 0.75
    with pytest.raises(
        ValueError, match=r"`extra\['norms'\]` contains a `State`.*extra="
    ):
        restored.extra["norms"]
    for extra, words in [
        ({"seed": 1}, r"`extra\['seed'\]` is not in the checkpoint, which has"),
        ({"loss": jnp.ones(2)}, r"`extra\['loss'\]` is float32\[2\] here, and 0.75"),
        ({"data": {"file": ""}}, r"`extra\['data'\]\['epochs'\]\[0\]` is 1 in the"),
    ]:
        with pytest.raises(ValueError, match=words):
            checkpoints.restore(PARAMS, (), extra=extra)


def test_extra_that_cannot_be_saved(tmp_path):
    checkpoints = fo.Checkpoints(tmp_path)
    with pytest.raises(
        ValueError, match=r"`extra\['f'\]\[1\]` is <.*no checkpoint can"
    ):
        checkpoints.save(1, PARAMS, (), extra={"f": [1, object()]})
    assert checkpoints.steps == ()


def test_the_final_save_at_the_step_of_a_periodic_one(tmp_path):
    checkpoints = fo.Checkpoints(tmp_path, recipe=RECIPE, registry=REGISTRY)
    state, extra = state_of(RECIPE), make_extra(2)
    for _ in range(2):
        checkpoints.save(3, PARAMS, state, extra=extra)
    staged = RECIPE.build_mpmd(PARAMS, PARTITION)
    pieces, states = PARTITION.split(PARAMS), staged.split_state(state)
    checkpoints.save(3, pieces, states, staged, extra=extra, wait=False)
    assert {path.name for path in tmp_path.iterdir()} == {"3"}
    changed = PARAMS | {"c": PARAMS["c"].at[1, 2].set(-0.0)}
    for params, besides, path in [
        (changed, extra, r"params\['c'\]"),
        ({**PARAMS, "d": jnp.ones(1)}, extra, r"params\['d'\]"),
        ({"embed": PARAMS["embed"]}, extra, r"params\['b'\]"),
        (PARAMS, {}, "extra"),
        (PARAMS, {**extra, "loss": 0.0}, r"extra\['loss'\]"),
    ]:
        with pytest.raises(ValueError, match=f"holds this step .* value of `{path}`"):
            checkpoints.save(3, params, state, extra=besides)
    with pytest.raises(ValueError, match="with another value of `recipe`"):
        fo.Checkpoints(tmp_path).save(3, PARAMS, state, extra=extra)


def test_what_changed_in_a_recipe_that_fits(tmp_path, caplog):
    fo.Checkpoints(tmp_path, recipe=RECIPE).save(1, PARAMS, state_of(RECIPE))
    later = recipe_of(clip_norm=2.0, optimizer=fo.AdamW(b2=0.9), schedule=1e-4)
    with caplog.at_level(logging.WARNING, "functional_opt"):
        found = fo.Checkpoints(tmp_path, recipe=later).restore(PARAMS, state_of(later))
    assert found.recipe_changes == (
        "optimizer.b2 was 0.999, is 0.9",
        "schedule.value was 0.001, is 0.0001",
        "clip_norm was 1.0, is 2.0",
    )
    assert "; ".join(found.recipe_changes) in caplog.text
    assert "training can continue" in caplog.text
    same = fo.Checkpoints(tmp_path, recipe=RECIPE).restore(PARAMS, state_of(RECIPE))
    assert same.recipe_changes == ()


def test_rules_are_compared_as_fields(tmp_path):
    def recipe(path):
        rule = fo.Where(path) & ~fo.Where(min_ndim=2)
        group = fo.Group(rule, fo.AdamW(b2=0.9))
        return recipe_of(optimizer=fo.Groups((group,), rest=fo.AdamW()))

    fo.Checkpoints(tmp_path, recipe=recipe("b")).save(1, PARAMS, state_of(recipe("b")))
    for path, expected in [
        ("b", ()),
        ("'b'", ("optimizer.groups[0].where.parts[0].path was 'b', is \"'b'\"",)),
    ]:
        checkpoints = fo.Checkpoints(tmp_path, recipe=recipe(path))
        found = checkpoints.restore(PARAMS, state_of(recipe(path)))
        assert found.recipe_changes == expected


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"clip_norm": None}, "clip_norm was 1.0, is None"),
        ({"optimizer": fo.Lion()}, "optimizer was AdamW, is Lion"),
        ({"accumulate": 2}, "accumulate was 1, is 2"),
        ({"ema_decay": 0.9}, "ema_decay was None, is 0.9"),
    ],
)
def test_what_changed_in_a_recipe_that_does_not_fit(tmp_path, fields, words):
    fo.Checkpoints(tmp_path, recipe=RECIPE).save(1, PARAMS, state_of(RECIPE))
    later = recipe_of(**fields)
    checkpoints = fo.Checkpoints(tmp_path, recipe=later)
    text = f"The recipe has changed: {words}. Training cannot continue from this"
    with pytest.raises(ValueError, match=r"`state.*" + text):
        checkpoints.restore(PARAMS, state_of(later))
    fo.testing.assert_equal(checkpoints.restore_params(PARAMS), PARAMS)


def test_a_python_value_in_a_recipe(tmp_path):
    recipe = recipe_of(optimizer=fo.AdamW(mask=lambda params: params))
    checkpoints = fo.Checkpoints(tmp_path, recipe=recipe, registry=REGISTRY)
    checkpoints.save(1, PARAMS, ())
    (change,) = checkpoints.restore(PARAMS, ()).recipe_changes
    assert change.startswith("optimizer.mask is the Python value `")
    assert change.endswith("`, and cannot be compared")
    with pytest.raises(ValueError, match="does not hold a recipe that can be built"):
        checkpoints.saved_recipe()


def test_the_saved_recipe(tmp_path):
    recipe = recipe_of(schedule=fo.Cosine(peak_value=1e-3, decay_steps=100))
    checkpoints = fo.Checkpoints(tmp_path, recipe=recipe, registry=REGISTRY)
    checkpoints.save(1, PARAMS, state_of(recipe))
    assert fo.Checkpoints(tmp_path, registry=REGISTRY).saved_recipe() == recipe
    with pytest.raises(ValueError, match="does not hold a recipe"):
        fo.Checkpoints(tmp_path).saved_recipe(step=1)


def test_parameters_alone_with_a_fresh_state(tmp_path):
    checkpoints = fo.Checkpoints(tmp_path)
    params = jax.tree.map(lambda x: 3 * x, PARAMS)
    checkpoints.save(1, params, state_of(RECIPE), extra=make_extra(1))
    fo.testing.assert_equal(checkpoints.restore_params(PARAMS), params)
    other = recipe_of(optimizer=fo.Lion(), ema_decay=0.9)
    staged = other.build_mpmd(PARAMS, PARTITION)
    pieces = checkpoints.restore_params(PARTITION.split(PARAMS), staged)
    fo.testing.assert_equal(PARTITION.merge(pieces), params)
    states = staged.init(pieces)
    fo.testing.assert_equal(staged.merge_state(states), state_of(other, params))
    with pytest.raises(ValueError, match=r"`params\['b'\]` is float32\[5\] here"):
        checkpoints.restore_params(PARAMS | {"b": jnp.ones(5)})


def test_match_by_path(tmp_path, caplog):
    checkpoints = fo.Checkpoints(tmp_path)
    checkpoints.save(1, PARAMS, optax.adam(1e-3).init(PARAMS))
    params = {"embed": jnp.zeros((8, 4)), "b": jnp.zeros(5), "new": jnp.zeros(2)}
    state = optax.sgd(1e-3, momentum=0.9).init(params)
    restored = checkpoints.restore(params, state, match="by path")
    expected = {**params, "embed": PARAMS["embed"]}
    fo.testing.assert_equal(restored.params, expected)
    fo.testing.assert_equal(restored.state, state)
    report = restored.report
    assert report is not None
    assert report.loaded == ("params['embed']",)
    assert report.reinitialized == ("params['b']",)
    traces = tuple(f"state[0].trace['{name}']" for name in ("b", "embed", "new"))
    assert report.missing == ("params['new']", *traces)
    assert report.unexpected[:2] == ("params['c']", "state[0].count")
    assert len(report.unexpected) == 8
    assert "1 re-initialized\n  params['b']" in str(report)
    assert "params['new']" in caplog.text
    complete = checkpoints.restore(
        PARAMS, optax.adam(1e-3).init(PARAMS), match="by path"
    )
    assert complete.report is not None and complete.report.is_complete
    caplog.clear()
    found = checkpoints.restore_params(params, match="by path")
    fo.testing.assert_equal(found, expected)
    assert "re-initialized" in caplog.text
    shape = {**params, "new": jax.ShapeDtypeStruct((2,), "float32")}
    with pytest.raises(ValueError, match=r"`params\['new'\]` is only a shape here"):
        checkpoints.restore_params(shape, match="by path")


def test_match_by_path_in_stages(tmp_path):
    checkpoints = fo.Checkpoints(tmp_path)
    checkpoints.save(1, PARAMS, state_of(RECIPE))
    later = recipe_of(ema_decay=0.9)
    staged = later.build_mpmd(PARAMS, PARTITION)
    pieces = PARTITION.split(jax.tree.map(jnp.zeros_like, PARAMS))
    states = staged.init(pieces)
    restored = checkpoints.restore(pieces, states, staged, match="by path")
    fo.testing.assert_equal(PARTITION.merge(restored.params), PARAMS)
    assert restored.report is not None
    assert any(".ema" in path for path in restored.report.missing)
    assert not any(path.startswith("params") for path in restored.report.missing)


def test_forgetting_the_stages(tmp_path):
    staged = RECIPE.build_mpmd(PARAMS, PARTITION)
    pieces = PARTITION.split(PARAMS)
    states = staged.init(pieces)
    checkpoints = fo.Checkpoints(tmp_path)
    with pytest.raises(ValueError, match=r"pieces of 2 stages, .* as `staged`"):
        checkpoints.save(1, pieces, states)
    with pytest.raises(ValueError, match=r"pieces of 2 stages, .* as `staged`"):
        checkpoints.restore(pieces, states)
    sgd = fo.stage_local(optax.sgd(0.1), PARAMS, PARTITION)
    with pytest.raises(ValueError, match=r"pieces of 2 stages, .* as `staged`"):
        checkpoints.save(1, pieces, sgd.init(pieces))
    assert checkpoints.steps == ()

    # Whole trees that look like it, but for one thing.
    two = (PARAMS, {**PARAMS, "b": None})
    checkpoints.save(1, two, optax.adam(1e-3).init(two))
    layers = [{"w": jnp.ones(2), "b": None}, {"w": jnp.ones(2), "b": None}]
    checkpoints.save(2, layers, optax.sgd(0.1).init(layers))


def test_pieces_that_do_not_show_are_named_first_at_restore(tmp_path):
    """Every stage owns all: no piece has a hole."""
    partition = fo.partition(PARAMS, lambda path, leaf: {0, 1})
    staged = fo.stage_local(optax.adam(1e-3), PARAMS, partition)
    pieces = partition.split(PARAMS)
    states = staged.init(pieces)
    checkpoints = fo.Checkpoints(tmp_path)
    checkpoints.save(1, pieces, states)
    with pytest.raises(ValueError, match="pieces were saved without `staged`"):
        checkpoints.restore(pieces, states, staged)
    restored = checkpoints.restore(pieces, states)
    fo.testing.assert_equal(restored.params, pieces)


def blank_of(leaf):
    if isinstance(leaf, np.generic):
        return leaf.dtype.type(0)
    zeros = np.zeros_like(leaf)
    return jnp.asarray(zeros) if isinstance(leaf, jax.Array) else zeros


NARROW = ["int2", "uint2", "int4", "uint4", "float4_e2m1fn", "float6_e2m3fn"]
NARROW += [name for name in dir(ml_dtypes) if name.startswith("float8_")]


@pytest.mark.parametrize("name", sorted(set(NARROW)))
def test_narrow_dtypes(tmp_path, name):
    dtype = np.dtype(getattr(ml_dtypes, name))
    host = np.array([0, 1, 1, 0, 1], np.float32).astype(dtype)
    leaves = {"host": host, "scalar": host[1], "device": host}
    try:
        leaves["device"] = jnp.asarray(host)
    except (TypeError, jax.errors.JaxRuntimeError):
        pass  # JAX does not have this one.
    checkpoints = fo.Checkpoints(tmp_path)
    checkpoints.save(1, leaves, ())
    blank = {key: blank_of(leaf) for key, leaf in leaves.items()}
    found = checkpoints.restore(blank, ()).params
    for key, leaf in leaves.items():
        assert found[key].dtype == leaf.dtype
        assert type(found[key]) is type(leaf)
        assert np.asarray(found[key]).tobytes() == np.asarray(leaf).tobytes()


@pytest.mark.parametrize("dtype", ["<U4", "datetime64[s]", "object"])
def test_dtypes_that_cannot_be_saved(tmp_path, dtype):
    params = {"a": np.zeros(2, dtype)}
    with pytest.raises(ValueError, match=r"`params\['a'\]` has dtype .*, which no"):
        fo.Checkpoints(tmp_path).save(1, params, ())


def test_a_big_endian_array(tmp_path):
    params = {"a": np.arange(3, dtype=">f8")}
    checkpoints = fo.Checkpoints(tmp_path)
    checkpoints.save(1, params, ())
    found = checkpoints.restore({"a": np.zeros(3, ">f8")}, ()).params["a"]
    assert found.dtype == params["a"].dtype
    assert found.tobytes() == params["a"].tobytes()


def test_keys_that_cannot_be_sorted(tmp_path):
    with pytest.raises(ValueError, match="`extra` holds a dict whose keys cannot be"):
        fo.Checkpoints(tmp_path).save(1, PARAMS, (), extra={"a": {1: 2, "b": 3}})
