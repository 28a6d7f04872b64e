"""Stages of equal structure share one program, and no others do."""

import functional_opt as fo
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from rooms import Canonical, STEP


CLIPPED = optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(1e-2))
X = jnp.arange(4.0)


def relu(sign):
    """A function with a rule of its own for derivatives."""

    @jax.custom_jvp
    def relu(x):
        return jnp.maximum(x, 0.0)

    relu.defjvps(lambda g, ans, x: sign * g)
    return relu


def named(name, function):
    function.__name__ = name
    return jax.jit(function)


def on_devices(*numbers):
    mesh = Mesh(np.array(jax.devices())[list(numbers)], ("x",))
    where = NamedSharding(mesh, PartitionSpec("x"))
    return lambda x: jax.lax.with_sharding_constraint(x, where)


TABLE = np.arange(4.0, dtype=np.float32)
OTHER_TABLE = np.float32(TABLE + 1)
SAME_TABLE = jnp.asarray(TABLE)

# For each a function that makes a function: what it makes twice is the same.
SAME = {
    "arithmetic": lambda: lambda x: jnp.tanh(x) * 2 + x,
    "array": lambda: lambda x: x + SAME_TABLE,
    "jit": lambda: jax.jit(lambda x: x + 1),
    "cond": lambda: lambda x: jax.lax.cond(x[0] > 0, jnp.sin, jnp.cos, x),
    "scan": lambda: lambda x: jax.lax.scan(lambda c, y: (c + y, c), x[0], x),
    "sharding": lambda: on_devices(0, 1),
}
DIFFERENT = {
    "literal": (lambda x: x * 2.0, lambda x: x * 3.0),
    "sign of zero": (lambda x: x * 0.0, lambda x: x * -0.0),
    "array": (
        lambda x: x + TABLE,
        lambda x: x + OTHER_TABLE,
    ),
    "array on a device": (lambda x: x + SAME_TABLE, lambda x: x + jnp.asarray(TABLE)),
    "primitive": (jnp.sin, jnp.cos),
    "parameter": (lambda x: jnp.sum(x > 0), lambda x: jnp.any(x > 0)),
    "operands": (lambda x: x - x[::-1], lambda x: x[::-1] - x),
    "order of results": (
        lambda x: (jnp.sin(x), jnp.cos(x)),
        lambda x: (jnp.cos(x), jnp.sin(x)),
    ),
    "dtype": (lambda x: x.astype(jnp.bfloat16), lambda x: x.astype(jnp.float16)),
    "precision": (
        lambda x: jnp.dot(x, x),
        lambda x: jnp.dot(x, x, precision="highest"),
    ),
    "name": (named("one", lambda x: x + 1), named("other", lambda x: x + 1)),
    "inside jit": (jax.jit(lambda x: x + 1), jax.jit(lambda x: x + 2)),
    "inside cond": (
        lambda x: jax.lax.cond(x[0] > 0, lambda x: x + 1, jnp.cos, x),
        lambda x: jax.lax.cond(x[0] > 0, lambda x: x + 2, jnp.cos, x),
    ),
    "inside scan": (
        lambda x: jax.lax.scan(lambda c, y: (c + y, c), x[0], x),
        lambda x: jax.lax.scan(lambda c, y: (c - y, c), x[0], x),
    ),
    "custom rule": (relu(1), relu(2)),
    "mesh": (on_devices(0, 1), on_devices(1, 2)),
}


@pytest.mark.parametrize("name", SAME)
def test_the_same_function_has_the_same_number(name):
    canonical = Canonical()
    numbers = [canonical.closed_jaxpr(jax.make_jaxpr(SAME[name]())(X)) for _ in "ab"]
    assert numbers[0] == numbers[1]


@pytest.mark.parametrize("name", DIFFERENT)
def test_whatever_differs_has_another_number(name):
    canonical = Canonical()
    one, other = (jax.make_jaxpr(function)(X) for function in DIFFERENT[name])
    assert canonical.closed_jaxpr(one) != canonical.closed_jaxpr(other)


def test_shapes_and_dtypes_of_inputs_count():
    canonical = Canonical()
    inputs = [X, X[:2], X.astype(jnp.bfloat16), X[:1].reshape(1, 1), X[0], 1.0]
    numbers = {canonical.closed_jaxpr(jax.make_jaxpr(jnp.sin)(x)) for x in inputs}
    assert len(numbers) == len(inputs)


def make_params(num_stages, odd=None):
    """Stages of two leaves each; the odd one is of another shape."""
    keys = iter(jax.random.split(jax.random.key(0), 2 * num_stages))
    widths = [3 if stage == odd else 4 for stage in range(num_stages)]
    return [
        {
            "weight": jax.random.normal(next(keys), (width, width)),
            "bias": jax.random.normal(next(keys), (width,)),
        }
        for width in widths
    ]


@pytest.fixture
def traces(monkeypatch):
    """For each program that is compiled how many functions of stages it calls."""
    compile, numbers = jax.stages.Lowered.compile, {}

    def recording(lowered, *args, **kwargs):
        text = lowered.as_text()
        # Operations outside `jit` are compiled where no test before has done so.
        if text.startswith("module @jit_stage_"):
            numbers[text] = text.count("func.func private @stage_slice")
        return compile(lowered, *args, **kwargs)

    monkeypatch.setattr(jax.stages.Lowered, "compile", recording)
    return numbers


def run_a_step(tx, params, devices):
    partition = fo.partition(params, list(range(len(params))))
    staged = fo.stage_local(tx, params, partition)
    pieces = jax.device_put(partition.split(params), tuple(devices))
    staged.step(pieces, staged.init(pieces), pieces)
    return staged


@pytest.mark.parametrize("spread", [False, True])
def test_equal_stages_are_traced_once(spread, traces):
    devices = [jax.devices()[stage if spread else 0] for stage in range(6)]
    run_a_step(optax.adamw(1e-2), make_params(6), devices)
    assert list(traces.values()) == [1, 1]  # init and step


def test_a_clip_by_the_global_norm_has_one_program_for_all_but_the_first(traces):
    """The first stage adds up its own squares before it sends them."""
    run_a_step(CLIPPED, make_params(6), jax.devices()[:6])
    assert list(traces.values()) == [1, 1, 1, 1]  # init, two messages, step


def test_more_stages_are_no_more_kernels(monkeypatch):
    """Each stage reads the messages of all others without a kernel for each of them."""
    clipped = optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(0.1))
    compile, kernels = jax.stages.Lowered.compile, {}

    def recording(lowered, *args, **kwargs):
        compiled = compile(lowered, *args, **kwargs)
        if (text := compiled.as_text() or "").startswith("HloModule jit_stage_results"):
            kernels[num_stages].add(text.count(" fusion("))
        return compiled

    monkeypatch.setattr(jax.stages.Lowered, "compile", recording)
    for num_stages in (3, 6):
        kernels[num_stages] = set()
        params = [[jnp.ones(4)] * 40] * num_stages
        run_a_step(clipped, params, jax.devices()[:num_stages])
    assert kernels[3] == kernels[6] and max(kernels[3]) > 0


def test_stages_of_other_shapes_have_programs_of_their_own(traces):
    run_a_step(optax.adamw(1e-2), make_params(4, odd=2), jax.devices()[:4])
    assert list(traces.values()) == [1, 1, 1, 1]


def test_stages_with_other_hyperparameters_are_not_mixed_up(traces):
    params = make_params(4)
    labels = [
        jax.tree.map(lambda _, s=stage: s % 2, params[stage]) for stage in range(4)
    ]
    tx = optax.partition({0: optax.sgd(0.1), 1: optax.sgd(0.2)}, labels)
    partition = fo.partition(params, list(range(4)))
    fo.testing.assert_stage_local_equal(tx, params, partition)
    traces.clear()
    run_a_step(tx, params, jax.devices()[:4])
    assert len(traces) == 2


def test_renumbered_stages_have_renumbered_programs():
    params = make_params(4, odd=1)
    for order in (0, 1, 2, 3), (2, 0, 3, 1):
        partition = fo.partition(params, list(order))
        staged = fo.testing.assert_stage_local_equal(
            optax.adam(1e-2), params, partition
        )
        finish = staged.programs[0].function.finish[STEP]
        keys = [program and program.key for program in finish]
        one, odd, *others = (keys[stage] for stage in order)
        assert others == [one, one] and odd != one


@pytest.mark.parametrize("wrong", [0, 3])
def test_an_error_in_a_shared_program_names_the_stage(wrong):
    params = make_params(4)
    partition = fo.partition(params, list(range(4)))
    staged = fo.stage_local(CLIPPED, params, partition)
    pieces = partition.split(params)
    states = staged.init(pieces)
    grads = list(pieces)
    grads[wrong] = jax.tree.map(lambda x: x.astype(jnp.bfloat16), pieces[wrong])
    with pytest.raises(
        ValueError, match=rf"`\[{wrong}\]\['.*of `grads\[{wrong}\]` must"
    ):
        staged.step(tuple(grads), states, pieces)
