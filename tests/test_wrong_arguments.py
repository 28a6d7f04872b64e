"""Wrong arguments of whatever is public raise one sentence: name, value, remedy."""

import dataclasses
import inspect
import re

import functional_opt as fo
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from class_examples import example
from module_strategies import kinds_of_the_library
from rooms import AbstractConfig


class Wrong:
    def __repr__(self):
        return "<wrong>"


WRONG = Wrong()
PARAMS = {"first": jnp.ones(2), "last": jnp.ones(2)}
PARTITION = fo.partition(PARAMS, {"first": 0, "last": 1})
KINDS = kinds_of_the_library()

# For parameters that are required beside the wrong one, by their names.
GIVEN = {
    "count": 0,
    "counts": [0],
    "data": {},
    "directory": "directory",
    "expected": 1.0,
    "found": 1.0,
    "grads": PARAMS,
    "module": fo.AdamW(),
    "params": PARAMS,
    "params_by_stage": PARTITION.split(PARAMS),
    "partition": PARTITION,
    "parts": (fo.Where(),),
    "path": "recipe.toml",
    "schedule": 0.1,
    "stage_of": {"first": 0, "last": 1},
    "stages": 0,
    "state": (),
    "step": 1,
    "target": "schedule.png",
    "total_steps": 10,
    "tree": PARAMS,
    "tx": optax.sgd(0.1),
    "value": 1,
}


def public_classes():
    return [value for value in vars(fo).values() if inspect.isclass(value)]


def configs():
    return [
        kind
        for kind in public_classes()
        if issubclass(kind, AbstractConfig) and not inspect.isabstract(kind)
    ]


def instances():
    yield from (example(kind, KINDS) for kind in configs() if kind is not fo.Frozen)
    yield fo.Where()
    yield fo.Registry.of(fo.AdamW)
    yield PARTITION
    yield fo.stage_local(optax.sgd(0.1), PARAMS, PARTITION)


def has_check(function):
    """Whether the library's own check is among what wraps a function."""
    while function is not None:
        code = getattr(function, "__code__", None)
        if code is not None and code.co_filename.endswith("_calls.py"):
            return True
        function = getattr(function, "__wrapped__", None)
    return False


def label(function):
    owner = getattr(function, "__self__", None)
    kind = owner if isinstance(owner, type) else type(owner)
    return f"{'' if owner is None else kind.__name__ + '.'}{function.__name__}"


def functions():
    """All public functions and methods whose arguments are checked."""
    for name in ("partition", "stage_local"):
        yield getattr(fo, name)
    for name in dir(fo.testing):
        yield getattr(fo.testing, name)
    for kind in public_classes():
        if has_check(kind.__init__):
            yield kind
    for instance in instances():
        for name in dir(type(instance)):
            method = getattr(type(instance), name)
            is_public = not name.startswith("_") or name == "__call__"
            if is_public and has_check(method):
                yield getattr(instance, name)


def is_checked(annotation):
    return str(annotation) not in ("Any", "PyTree", "type") and "PyTree" not in str(
        annotation
    )


def cases():
    for function in functions():
        parameters = inspect.signature(function).parameters.values()
        for parameter in parameters:
            many = parameter.kind in (
                parameter.VAR_KEYWORD,
                parameter.VAR_POSITIONAL,
            )
            if not many and is_checked(parameter.annotation):
                name = f"{label(function)}.{parameter.name}"
                yield pytest.param(function, parameter.name, id=name)


def assert_one_sentence(error, name):
    message = str(error.value)
    assert "\n" not in message
    assert f"{name}`" in message
    assert re.search(r"got .*<wrong>\.", message)
    assert len(message) < 400


@pytest.mark.parametrize("function, name", [*cases()])
def test_arguments(function, name):
    required = [
        x.name
        for x in inspect.signature(function).parameters.values()
        if x.default is x.empty and x.kind is not x.VAR_KEYWORD
    ]
    given = {x: GIVEN[x] for x in required if x != name} | {name: WRONG}
    with pytest.raises(TypeError) as error:
        function(**given)
    assert_one_sentence(error, name)


@pytest.mark.parametrize("kind", configs(), ids=lambda kind: kind.__name__)
def test_fields(kind):
    instance = example(kind, KINDS)
    for field in dataclasses.fields(kind):
        with pytest.raises(TypeError) as error:
            dataclasses.replace(instance, **{field.name: WRONG})
        assert_one_sentence(error, f"`{kind.__name__}.{field.name}")


@pytest.mark.parametrize("kind", configs(), ids=lambda kind: kind.__name__)
def test_unknown_fields(kind):
    with pytest.raises(TypeError) as error:
        kind(wrong_name=WRONG)
    assert_one_sentence(error, f"`{kind.__name__}` has no field `wrong_name")


@pytest.mark.parametrize("function", [*functions()], ids=label)
def test_unknown_arguments(function):
    with pytest.raises(TypeError) as error:
        function(**GIVEN, wrong_name=WRONG)
    message = str(error.value)
    assert "\n" not in message and "has no argument `" in message


@pytest.mark.parametrize("ten", [np.int64(10), np.uint8(10), jnp.int32(10)])
def test_integers_of_numpy_and_jax(ten):
    schedule = fo.Cosine(peak_value=1.0, decay_steps=ten)
    assert schedule == fo.Cosine(peak_value=1.0, decay_steps=10)
    assert schedule.resolve(ten) == schedule
    assert fo.Where(min_ndim=ten) == fo.Where(min_ndim=10)
    recipe = fo.Recipe(optimizer=fo.AdamW(), schedule=schedule, accumulate=ten)
    assert type(recipe.accumulate) is int
    recipe.build(ten)

    class Mine(fo.AbstractSchedule):
        period: int

        def __call__(self, count):
            return 1.0

    assert type(Mine(ten).period) is int


HABITS = [
    (
        lambda: fo.AdamW(1e-3),  # pyright: ignore[reportCallIssue]
        "`AdamW` takes no positional arguments, got 1. Write `AdamW(b1=...)`. Pass the "
        "learning rate to `build`, or to `Recipe` as its `schedule`.",
    ),
    (
        lambda: fo.AdamW(learning_rate=1e-3),  # pyright: ignore[reportCallIssue]
        "`AdamW` has no field `learning_rate`, got 0.001. Pass the learning rate to "
        "`build`, or to `Recipe` as its `schedule`.",
    ),
    (
        lambda: fo.Recipe(optimizer=fo.AdamW(), schedule=0.1, clipnorm=1.0),  # pyright: ignore[reportCallIssue]
        "`Recipe` has no field `clipnorm`, got 1.0. Did you mean `clip_norm`?",
    ),
    (
        lambda: fo.Recipe(fo.AdamW(), 0.1),  # pyright: ignore[reportCallIssue]
        "`Recipe` takes no positional arguments, got 2. Write "
        "`Recipe(optimizer=..., schedule=...)`.",
    ),
    (
        lambda: fo.Recipe(),  # pyright: ignore[reportCallIssue]
        "`Recipe` requires `optimizer` and `schedule`.",
    ),
    (
        lambda: fo.Recipe(optimizer=fo.AdamW(), schedule=0.1, decay_where="bias"),  # pyright: ignore[reportArgumentType]
        "`Recipe.decay_where` must be a Where, an AllOf, an AnyOf, a Not or None, got "
        "'bias'. Did you mean `Where('bias')`?",
    ),
    (
        lambda: fo.Recipe(optimizer=fo.AdamW(), schedule=0.1).build(1e4),  # pyright: ignore[reportArgumentType]
        "`total_steps` of `Recipe.build` must be an int or None, got 10000.0. Did you "
        "mean `10000`?",
    ),
    (
        lambda: fo.AdamW().build_mpmd(0.1, PARAMS, {"first": 0}),  # pyright: ignore[reportArgumentType]
        "`partition` of `AdamW.build_mpmd` must be a StagePartition, got "
        "{'first': 0}. Make one with `fo.partition(params, stage_of)`.",
    ),
    (
        lambda: fo.Adam().build(fo.Cosine),  # pyright: ignore[reportArgumentType]
        "`schedule` of `Adam.build` must be a function of the update count, a float or "
        "a 0-d float array, got the class `Cosine`.",
    ),
]


@pytest.mark.parametrize("call, message", HABITS, ids=range(len(HABITS)))
def test_habits_of_optax(call, message):
    with pytest.raises(TypeError) as error:
        call()
    assert str(error.value) == message


def test_an_optax_transformation_is_not_an_optimizer():
    with pytest.raises(TypeError) as error:
        fo.Recipe(optimizer=optax.adam(0.1), schedule=0.1)  # pyright: ignore[reportArgumentType]
    assert "`Recipe.optimizer` must be an optimizer" in str(error.value)
    assert str(error.value).endswith(
        "Pass a module such as `AdamW(...)`. `from_optax(factory)` makes a class of "
        "any function that returns an Optax transformation."
    )


def test_a_number_is_a_constant_also_in_the_state():
    one = fo.Recipe(optimizer=fo.AdamW(), schedule=3e-4)
    other = fo.Recipe(optimizer=fo.AdamW(), schedule=fo.Constant(3e-4))
    assert one == other
    schedule = optax.constant_schedule(3e-4)
    function = fo.Recipe(optimizer=fo.AdamW(), schedule=schedule)
    states = [recipe.build(10).init(PARAMS) for recipe in (one, function)]
    fo.testing.assert_equal(states[0], states[1])
    with pytest.raises(fo.ConfigError, match="a function exists in Python only"):
        fo.Registry.of(fo.AdamW).encode(function)


def test_stages_that_are_no_prefix():
    for stages, text in (
        ({"first": 0}, "it has no stage for `['last']`. Add its stage."),
        ({**GIVEN["stage_of"], "more": 0}, "`['more']` is not in `params`. Remove it."),
    ):
        with pytest.raises(ValueError) as error:
            fo.partition(PARAMS, stages)
        assert str(error.value).endswith(text)
        assert "\n" not in str(error.value)


def test_signatures_are_readable():
    text = str(inspect.signature(fo.Recipe))
    assert "optimizer: AbstractOptimizer" in text
    assert "clip_norm: float | Array | None = None" in text
    assert "accumulate: int = 1" in text and not re.search(r"\bAny\b", text)
    for kind in configs():
        for method in (kind, kind.__init__):
            text = str(inspect.signature(method))
            assert not re.search(r"\b(Annotated|Any|jaxlib|functional_opt)\b", text)


def test_testing_and_the_package_show_only_what_is_their_own():
    assert dir(fo.testing) == ["assert_equal", "assert_stage_local_equal"]
    with pytest.raises(AttributeError, match="no attribute 'version'"):
        fo.version  # pyright: ignore[reportAttributeAccessIssue]  # noqa: B018
