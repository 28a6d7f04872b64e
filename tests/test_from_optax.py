"""Optimizers made of factories: Optax's own, and those of other packages."""

import copy
import inspect
import pickle
from collections.abc import Callable
from typing import Any

import aura_optax
import functional_opt as fo
import jax
import jax.numpy as jnp
import optax
import pytest
import rollfast
import stam_optimizer
from annotated_types import Interval
from psgdax import psgd


PARAMS = {"w": jnp.array([[1.0, -2.0, 0.5], [3.0, 0.5, 1.5]]), "b": jnp.ones(3)}
FACTORIES: dict[str, Callable[..., optax.GradientTransformation]] = {
    "lamb": optax.lamb,
    "lars": optax.lars,
    "adafactor": optax.adafactor,
    "ademamix": optax.contrib.ademamix,
    "prodigy": optax.contrib.prodigy,
    "psgdax.kron": psgd.kron,
    "rollfast.adamw": rollfast.adamw,
    "rollfast.kron": rollfast.kron,
    "rollfast.prism": rollfast.prism,
    "aura_optax.adam_aura": aura_optax.adam_aura,
    "aura_optax.muon_aura": aura_optax.muon_aura,
    "stam": stam_optimizer.stam,
    "stam_lite": stam_optimizer.stam_lite,
}
MIXES = {"psgdax.kron", "rollfast.kron"}  # see docs/third_party.md
CLASSES = {name: fo.from_optax(factory) for name, factory in FACTORIES.items()}


@fo.from_optax(ranges={"max_delta": (0, 10)})
def clipped_sgd(learning_rate, max_delta: float = 1.0, momentum: float | None = None):
    """Clips, then steps.

    Args:
      learning_rate: the learning rate.
      max_delta: the largest entry of a gradient,
        in its units.
      momentum (float, optional): the decay rate.
    """
    sgd = optax.sgd(learning_rate, momentum)
    return optax.chain(optax.clip(max_delta), sgd)


def keys_in_schema(kind):
    schema = fo.Registry.of(kind).json_schema(kind)
    tables = [schema, *schema.get("$defs", {}).values()]
    found = [x["properties"] for x in tables if "properties" in x]
    return next(x for x in found if set(x) - {"name"} <= set(vars(kind())))


def trained(tx, steps=2):
    @jax.jit
    def step(params, state):
        grads = jax.tree.map(jnp.cos, params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    found = PARAMS, tx.init(PARAMS)
    with jax.numpy_rank_promotion("allow"):  # both of Kron scale rows by a vector
        for _ in range(steps):
            found = step(*found)
    return found


@pytest.mark.parametrize("name", CLASSES)
def test_fields_are_the_parameters(name):
    parameters = dict(inspect.signature(FACTORIES[name]).parameters)
    del parameters["learning_rate"]
    ours = inspect.signature(CLASSES[name]).parameters
    assert list(ours) == list(parameters)
    made = CLASSES[name]()
    assert CLASSES[name].__doc__ and issubclass(CLASSES[name], fo.AbstractOptimizer)
    for key, parameter in parameters.items():
        if isinstance(parameter.default, float | bool | str):
            assert getattr(made, key) == parameter.default
            assert type(getattr(made, key)) is type(parameter.default)


@pytest.mark.parametrize("name", CLASSES)
def test_build_is_the_factory(name):
    ours, theirs = CLASSES[name]().build(0.1), FACTORIES[name](0.1)
    assert isinstance(ours, optax.GradientTransformationExtraArgs)
    fo.testing.assert_equal(trained(ours), trained(theirs))


@pytest.mark.parametrize("name", CLASSES)
def test_values(name):
    one, other = CLASSES[name](), CLASSES[name]()
    assert one == other and hash(one) == hash(other)
    assert fo.from_optax(FACTORIES[name]) is CLASSES[name]
    assert pickle.loads(pickle.dumps(one)) == copy.deepcopy(one) == copy.copy(one)


@pytest.mark.parametrize("name", CLASSES)
def test_files(name):
    registry = fo.Registry.of(CLASSES[name])
    recipe = fo.Recipe(optimizer=CLASSES[name](), schedule=0.1)
    assert registry.decode(registry.encode(recipe)) == recipe
    properties = keys_in_schema(CLASSES[name])
    assert set(properties) >= {"b1"} & set(vars(recipe.optimizer))


@pytest.mark.parametrize("name", CLASSES)
def test_recipes_and_stages(name):
    """The decay of a recipe, a schedule and two stages, for any class."""
    schedule = fo.Linear(init_value=0.1, end_value=0.0, transition_steps=4)
    recipe = fo.Recipe(optimizer=CLASSES[name](), schedule=schedule, weight_decay=0.1)
    params = {"a": jax.ShapeDtypeStruct((4, 3), "float32")} | {
        key: jax.ShapeDtypeStruct(x.shape, x.dtype) for key, x in PARAMS.items()
    }
    with jax.numpy_rank_promotion("allow"):  # both of Kron scale rows by a vector
        staged = fo.testing.assert_stage_local_equal(
            recipe.build(),
            params,
            fo.partition(params, {"a": 0, "w": 1, "b": 1}),
            steps=2,
            grade="bounded",  # some multiply matrices, and products cancel
        )
    assert (staged.rounds > 0) is (name in MIXES | {"prodigy"})


def test_decorator():
    optimizer = clipped_sgd(max_delta=0.5)
    assert pickle.loads(pickle.dumps(optimizer)) == optimizer
    theirs = optax.chain(optax.clip(0.5), optax.sgd(0.1))
    fo.testing.assert_equal(trained(optimizer.build(0.1)), trained(theirs))
    keys = keys_in_schema(clipped_sgd)
    meant = keys["max_delta"]["description"]
    assert meant == "the largest entry of a gradient, in its units."
    assert keys["momentum"]["description"] == "the decay rate."
    with pytest.raises(ValueError, match=r"`clipped_sgd.max_delta` must be in \[0, 10"):
        clipped_sgd(max_delta=11.0)
    with pytest.raises(TypeError, match=r"has no field `learning_rate`.*`build`"):
        clipped_sgd(learning_rate=0.1)


def test_hyperparameters_are_leaves():
    lamb = CLASSES["lamb"](weight_decay=0.1)
    assert jax.tree.leaves(lamb) == [0.9, 0.999, 1e-6, 0.0, 0.1]
    made = jax.jit(lambda optimizer: optimizer.build(0.1).init(PARAMS))(lamb)
    fo.testing.assert_equal(made, optax.lamb(0.1).init(PARAMS))


def test_ranges():
    lamb = fo.from_optax(
        optax.lamb, name="Lamb", ranges={"b1": Interval(ge=0, lt=1), "b2": (0, 1)}
    )
    assert lamb.__name__ == "Lamb" and lamb(b2=1.0).b2 == 1.0
    with pytest.raises(ValueError, match=r"`Lamb.b1` must be in \[0, 1\), got 1.0"):
        lamb(b1=1.0)
    assert "exclusiveMaximum" in str(keys_in_schema(lamb)["b1"])
    ademamix = fo.from_optax(optax.contrib.ademamix, ranges={"alpha": (0, 9)})
    assert callable(ademamix(alpha=fo.Constant(1.0)).alpha)
    with pytest.raises(ValueError, match=r"must be in \[0, 9\]"):
        ademamix(alpha=10.0)


def test_optimizers_inside():
    mechanize = fo.from_optax(optax.contrib.mechanize)
    optimizer = mechanize(base_optimizer=fo.AdamW(weight_decay=0.3))
    theirs = optax.contrib.mechanize(optax.adamw(0.1, weight_decay=0.3))
    fo.testing.assert_equal(trained(optimizer.build(0.1)), trained(theirs))
    registry = fo.Registry.of(mechanize, fo.AdamW)
    assert registry.decode(registry.encode(optimizer)) == optimizer
    text = fo.Recipe(optimizer=optimizer, schedule=0.1).explain(PARAMS)
    assert "mechanize(AdamW)" in text


def test_schedules_for_a_factory_of_numbers():
    """As `optax.inject_hyperparams` does it."""
    stam = CLASSES["stam"]()
    rates = [0.1, 0.05]
    ours = trained(stam.build(lambda count: jnp.array(rates)[count]))[0]
    state, params = stam_optimizer.stam(0.1).init(PARAMS), PARAMS
    for rate in rates:
        grads = jax.tree.map(jnp.cos, params)
        tx: Any = stam_optimizer.stam(rate)
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    # Not jitted, each operation is rounded by itself, and updates nearly cancel.
    fo.testing.assert_equal(ours, params, grade="bounded")


@pytest.mark.parametrize(
    "make, value, text",
    [
        (CLASSES["psgdax.kron"], {"scanned_layers": {"w": 1}}, "exists in Python only"),
        (CLASSES["lamb"], {"mask": lambda params: params}, "a function exists"),
        (CLASSES["rollfast.adamw"], {"key": jnp.zeros(2, "uint32")}, "0-d arrays"),
    ],
)
def test_what_files_refuse(make, value, text):
    with pytest.raises(fo.ConfigError, match=text) as found:
        fo.Registry.of(make).encode(make(**value))
    assert next(iter(value)) in str(found.value)


@pytest.mark.parametrize(
    "make, error",
    [
        (lambda: fo.from_optax(optax.chain), r"`\*args` of `chain`.*Wrap it"),
        (lambda: fo.from_optax(optax.lamb, ranges={"b9": (0, 1)}), "'b9', which is"),
        (lambda: fo.from_optax(optax.lamb, ranges={"mask": (0, 1)}), "not a number"),
        (lambda: fo.from_optax(optax.lamb, learning_rate="lr"), "got 'lr'.*b1"),
        (lambda: fo.from_optax(lambda rate, x=1: optax.sgd(rate)), "requires `name`"),
        (lambda: fo.from_optax(optax.identity), "no parameter `learning_rate`"),
        (
            lambda: fo.from_optax(lambda rate, build=1: optax.sgd(rate), name="A"),
            "parameter `build`, which cannot be a field",
        ),
    ],
)
def test_factories_that_do_not_fit(make, error):
    with pytest.raises(ValueError, match=error):
        make()
