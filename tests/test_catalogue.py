"""Every optimizer of Optax is a class, and says what it needs and where it works."""

import inspect
from typing import Any

import functional_opt as fo
import jax
import jax.numpy as jnp
import jsonschema
import optax
import pytest
from catalogue import (
    EXAMPLES,
    extra_args,
    FUNCTIONS,
    KINDS,
    NUMBERS_ONLY,
    OPTIMIZERS,
    OTHER_FIELDS,
    public_function,
    REFUSED,
    THEIRS,
)
from optax_cases import category, public_names
from rooms import library


PARAMS = {"w": jnp.array([[1.0, -2.0], [3.0, 0.5]]), "b": jnp.array([0.1, -0.3])}
LIBRARY = library()
SCHEMA = jsonschema.Draft202012Validator(LIBRARY.json_schema(fo.AbstractOptimizer))
# Some optimizers only work alone, with gradients or parameters of other shapes.
TOGETHER = [name for name, kind in FUNCTIONS.items() if kind.__name__ in OPTIMIZERS]


def is_optimizer(name: str, value: Any) -> bool:
    """Whether a public name of Optax is one of its optimizers, or a wrapper of one."""
    if category(name, value) is not None or "scale_by_" in name:
        return False
    function = getattr(value, "func", value)
    if name.startswith("contrib.") or function.__module__.endswith(".alias"):
        return True
    first = next(iter(inspect.signature(value).parameters), "")
    return first.endswith(("learning_rate", "optimizer"))


def test_every_optimizer_of_optax_has_its_place():
    public = public_names()
    names = {name for name, value in public.items() if is_optimizer(name, value)}
    assert {"adam", "nadam", "lookahead", "contrib.sam"} <= names
    for name in names:
        assert (name in FUNCTIONS) + (name in REFUSED) == 1, (
            f"write a class for `{name}`, or a reason why it has none, in catalogue.py"
        )
    assert names == FUNCTIONS.keys() | REFUSED.keys()
    assert all(reason.endswith(".") for reason in REFUSED.values())


@pytest.mark.parametrize("name", FUNCTIONS)
def test_fields_are_those_of_optax(name):
    theirs = dict(inspect.signature(public_function(name)).parameters)
    for rate in ("learning_rate", "max_learning_rate"):
        theirs.pop(rate, None)  # An argument of `build`.
    other = OTHER_FIELDS.get(name, {})
    assert all(reason for _, reason in other.values())
    ours = inspect.signature(FUNCTIONS[name]).parameters
    kept = [key for key in theirs if key not in other or other[key][0] is not ...]
    renamed = {"base_optimizer": "optimizer"} if name == "contrib.schedule_free" else {}
    assert list(ours) == [renamed.get(key, key) for key in kept]
    for key, parameter in zip(kept, ours.values(), strict=True):
        default = other[key][0] if key in other else theirs[key].default
        assert parameter.default == default, key
        assert parameter.kind is inspect.Parameter.KEYWORD_ONLY


def trained(tx: Any, extra: dict[str, Any]) -> Any:
    @jax.jit
    def step(state, params):
        grads = jax.tree.map(lambda x: jnp.sin(2 * x), params)
        updates, state = tx.update(grads, state, params, **extra)
        return state, optax.apply_updates(params, updates)

    state, params = tx.init(PARAMS), PARAMS
    with jax.numpy_rank_promotion("allow"):
        for _ in range(3):
            state, params = step(state, params)
    return params


@pytest.mark.parametrize("name", TOGETHER)
def test_build_is_optax(name):
    function = THEIRS.get(name, public_function(name))
    kind = FUNCTIONS[name].__name__
    given: list[Any] = [(0.1, 0.1), (fo.Constant(0.1), 0.1)]
    expected: dict[Any, Any] = {0.1: trained(function(0.1), extra_args(kind))}
    if name in NUMBERS_ONLY:
        # Another path in ours, whose rounding may be another.
        same = trained(EXAMPLES[kind].build(lambda _: 0.1), extra_args(kind))
        fo.testing.assert_equal(same, expected[0.1], grade="bounded")
        given = given[:1]
    else:
        rate = optax.linear_schedule(0.1, 0.2, 2)
        expected[rate] = trained(function(rate), extra_args(kind))
        given.append((rate, rate))
    for ours, theirs in given:
        found = trained(EXAMPLES[kind].build(ours), extra_args(kind))
        grade = "exact" if ours is theirs or ours == theirs else "bounded"
        fo.testing.assert_equal(found, expected[theirs], grade)


def test_the_schema_is_one():
    SCHEMA.check_schema(SCHEMA.schema)


@pytest.mark.parametrize("name", KINDS)
def test_files(name, tmp_path):
    try:
        data = LIBRARY.encode(EXAMPLES[name], fo.AbstractOptimizer)
    except fo.ConfigError as error:
        text = "hessian_diagonal_fn: a `GradientTransformation` exists in Python only"
        assert name == "Sophia" and str(error) == text
        return
    if name not in ("Groups", "Lookahead", "Mechanize", "ScheduleFree"):
        SCHEMA.validate(data)
    for suffix in ("toml", "yaml", "json"):
        path = tmp_path / f"optimizer.{suffix}"
        LIBRARY.save(EXAMPLES[name], path)
        assert LIBRARY.load(path) == EXAMPLES[name]


NEEDED = [name for name, x in OPTIMIZERS.items() if x.extra_args()]
PARTITION = fo.partition(PARAMS, {"w": 0, "b": 1})


@pytest.mark.parametrize("name", NEEDED)
def test_extra_arguments_are_announced(name):
    recipe = fo.Recipe(optimizer=OPTIMIZERS[name], schedule=1.0)
    inside = fo.Groups(
        (fo.Group(fo.Where("w"), optimizer=OPTIMIZERS[name]),), rest=fo.SGD()
    )
    ((arg, extra),) = OPTIMIZERS[name].extra_args().items()
    line = f"\n{name} requires the extra argument `{arg}`: {extra.meaning}"
    assert line in recipe.explain(PARAMS)
    assert line in fo.Recipe(optimizer=inside, schedule=1.0).explain(PARAMS)
    message = rf"^`{name}` requires the extra argument `{arg}`, the l.*'{arg}': "
    for split in (
        lambda **given: OPTIMIZERS[name].build_mpmd(1.0, PARAMS, PARTITION, **given),
        lambda **given: inside.build_mpmd(1.0, PARAMS, PARTITION, **given),
        lambda **given: recipe.build_mpmd(PARAMS, PARTITION, **given),
    ):
        with pytest.raises(ValueError, match=message):
            split()
        assert isinstance(split(extra_args={arg: jnp.float32(1.0)}), fo.Staged)


def test_only_those_that_require_extra_arguments_announce_them():
    assert set(NEEDED) == {"PolyakSGD", "Momo", "MomoAdam", "QKClip"}
    assert "requires" not in fo.Recipe(optimizer=fo.Adam(), schedule=1.0).explain(
        PARAMS
    )


@pytest.mark.parametrize(
    "optimizer, name, field",
    [
        (fo.LBFGS(), "value_fn", "linesearch"),
        (fo.Sophia(), "obj_fn", "hessian_diagonal"),
    ],
    ids=["LBFGS", "Sophia"],
)
def test_functions_of_all_parameters_are_refused(optimizer, name, field):
    kind = type(optimizer).__name__
    recipe = fo.Recipe(optimizer=optimizer, schedule=1.0)
    assert f"{kind} requires the extra argument `{name}`: the loss as" in (
        recipe.explain(PARAMS)
    )
    message = (
        rf"`{kind}` calls `{name}`, the loss as .* no stage has\. Set `{kind}\.{field}"
    )
    with pytest.raises(fo.CrossStageError, match=message):
        recipe.build_mpmd(PARAMS, PARTITION)
    with pytest.raises(fo.CrossStageError, match=message):
        optimizer.build_mpmd(1.0, PARAMS, PARTITION, extra_args={name: jnp.sum})
    place = r"^`Groups.groups\[0\].optimizer` cannot be or hold"
    with pytest.raises(ValueError, match=rf"{place} `{kind}`, which calls .*its own\."):
        fo.Groups((fo.Group(fo.Where("w"), optimizer=optimizer),))
    extra = {"value": 2.0, "grad": PARAMS, name: lambda x: jnp.sum(x["w"] ** 2)}
    tx = recipe.build()
    given = {key: extra[key] for key in optimizer.extra_args()}
    updates: Any
    updates, _ = tx.update(PARAMS, tx.init(PARAMS), PARAMS, **given)
    assert jnp.abs(updates["w"]).max() > 0


@pytest.mark.parametrize("name", sorted(EXAMPLES.keys() - OPTIMIZERS.keys()))
def test_what_works_alone_is_refused_elsewhere(name):
    optimizer = EXAMPLES[name]
    match = f"cannot be or hold `{name}`: its? .* Use `{name}.build`"
    for inside in (optimizer, fo.ScheduleFree(optimizer=optimizer)):
        with pytest.raises(ValueError, match=rf"^`Recipe.optimizer` {match}"):
            fo.Recipe(optimizer=inside, schedule=0.1)
        with pytest.raises(ValueError, match=rf"^`Groups.rest` {match}"):
            fo.Groups((), rest=inside)
    assert name in ("DPSGD", "Lookahead")


def test_private_gradients_stage_by_stage():
    optimizer = EXAMPLES["DPSGD"]
    grads = jax.tree.map(lambda x: jnp.stack([jnp.sin(x), jnp.cos(x)]), PARAMS)
    theirs = optax.contrib.differentially_private_aggregate(1.0, 0.5, key=0)
    theirs = optax.chain(theirs, optax.scale_by_learning_rate(0.1))
    found = optimizer.build(0.1).update(grads, optimizer.build(0.1).init(PARAMS))[0]
    expected = theirs.update(grads, theirs.init(PARAMS))[0]
    fo.testing.assert_equal(found, expected)
    fo.testing.assert_stage_local_equal(
        optimizer.build(0.1), PARAMS, PARTITION, grads=[grads] * 2
    )


def test_paired_parameters_are_refused_on_stages():
    params = optax.LookaheadParams.init_synced(PARAMS)
    partition = fo.partition(params, lambda *_: 0)
    with pytest.raises(fo.CrossStageError, match=r"`Lookahead` cannot be split.*pairs"):
        EXAMPLES["Lookahead"].build_mpmd(0.1, params, partition)
    grads: Any = PARAMS
    theirs = optax.lookahead(optax.sgd(0.1), 2, 0.5)
    found = []
    for tx in (EXAMPLES["Lookahead"].build(0.1), theirs):
        state: Any = tx.init(params)
        updates: Any = None
        for _ in range(2):
            updates, state = tx.update(grads, state, params)
        found.append(updates)
    fo.testing.assert_equal(*found)


@pytest.mark.parametrize("optimizer", [fo.Prodigy(), fo.DAdaptAdamW()])
def test_estimates_need_a_first_learning_rate(optimizer):
    """With a rate of 0, Optax divides 0 by 0, and every parameter is not a number."""
    warmup = fo.Cosine(peak_value=1.0, warmup_steps=2, decay_steps=5)
    name = type(optimizer).__name__
    with pytest.raises(ValueError, match=f"`{name}` requires .* greater than 0.*0 / 0"):
        fo.Recipe(optimizer=optimizer, schedule=warmup).build()
    for tx in (optimizer.build(1.0), fo.Prodigy(safeguard_warmup=True).build(warmup)):
        params = trained(tx, {})
        assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(params))
