"""Transformations and partitions that are easily got wrong."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import functional_opt as fo
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from functional_opt.testing import assert_equal, assert_stage_local_equal
from jax.experimental import io_callback


def normal(seed: int, *shape: int) -> Any:
    return jax.random.normal(jax.random.key(seed), shape)


PARAMS: dict[str, Any] = {
    "embed": normal(0, 3, 2),
    "layers": ({"w": normal(1, 2, 2)}, {"b": normal(2, 2)}),
    "scale": normal(4),
}
STAGES: dict[str, Any] = {"embed": 0, "layers": (1, 2), "scale": 2}


def stateless(function: Callable[[Any], Any]) -> optax.GradientTransformation:
    return optax.stateless(lambda updates, params: function(updates))


def staged(
    params: Any = PARAMS, stages: Any = STAGES, num_stages: int | None = None
) -> fo.StagePartition:
    return fo.partition(params, stages, num_stages=num_stages)


def delayed(inner, steps, flat):
    """Applies gradients that are some steps old, from a queue in the state."""

    class Delayed(NamedTuple):
        queue: Any
        inner: Any

    def stored(tree):
        return jax.tree.leaves(tree) if flat else tree

    def init(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        return Delayed(tuple(stored(zeros) for _ in range(steps)), inner.init(params))

    def update(updates, state, params=None):
        oldest, *rest = state.queue
        queue = (*rest, stored(updates))
        due = jax.tree.unflatten(jax.tree.structure(updates), jax.tree.leaves(oldest))
        due, inner_state = inner.update(due, state.inner, params)
        return due, Delayed(queue, inner_state)

    return optax.GradientTransformation(init, update)


CLIPPED = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(1e-2))


@pytest.mark.parametrize("flat", [False, True])
def test_a_queue_of_past_gradients(flat):
    """As a tuple of trees, and as lists of leaves, which have no parameter's path.

    The norm of a tree with a scalar is not exact, and moments of Adam cancel.
    """
    partition = staged()
    tx = delayed(CLIPPED, 2, flat)
    staged_tx = assert_stage_local_equal(
        tx, PARAMS, partition, steps=4, grade="bounded"
    )
    assert staged_tx.rounds == 1
    queued = [
        [leaf.shape for leaf in jax.tree.leaves(state.queue)]
        for state in staged_tx.init(partition.split(PARAMS))
    ]
    owned = [
        [leaf.shape for leaf in jax.tree.leaves(piece)]
        for piece in partition.split(PARAMS)
    ]
    assert queued == [2 * shapes for shapes in owned]


def test_noise_is_drawn_for_the_whole_tree():
    tx = optax.chain(optax.add_noise(0.1, 0.5, key=7), optax.sgd(0.1))
    partition = staged()
    assert assert_stage_local_equal(tx, PARAMS, partition, steps=2).rounds == 0


def test_groups_that_are_empty_on_a_stage():
    def labels(params):
        return jax.tree.map(lambda x: ["scalar", "vector", "matrix"][x.ndim], params)

    groups: dict[Any, optax.GradientTransformation] = {
        "scalar": optax.sgd(0.1, momentum=0.9),
        "vector": CLIPPED,
        "matrix": optax.chain(optax.clip_by_global_norm(1.0), optax.lion(1e-2)),
    }
    assert_stage_local_equal(optax.partition(groups, labels), PARAMS, staged())


@pytest.mark.parametrize(
    "tx, grade",
    [
        (CLIPPED, "bounded"),  # a norm with a scalar, and moments that cancel
        (optax.apply_if_finite(CLIPPED, 2), "exact"),
    ],
    ids=["clipped", "skipping"],
)
def test_a_stage_that_owns_nothing(tx, grade):
    stages = {"embed": 0, "layers": (2, 2), "scale": 0}
    partition = staged(stages=stages, num_stages=4)
    made = assert_stage_local_equal(tx, PARAMS, partition, steps=2, grade=grade)
    pieces = partition.split(PARAMS)
    counters = made.init(pieces)[3]
    assert [leaf.shape for leaf in jax.tree.leaves(counters)] == [()] * len(
        jax.tree.leaves(counters)
    )


def waves(steps):
    return [
        jax.tree.map(lambda x, i=i: jnp.cos(x * i), PARAMS) for i in range(1, steps + 1)
    ]


def with_infinity(grads, bad):
    return {**grads, "scale": jnp.asarray(bad, jnp.float32)}


SKIPPING = {
    "apply_if_finite": optax.apply_if_finite(CLIPPED, 5),
    "MultiSteps": optax.MultiSteps(
        CLIPPED, 2, should_skip_update_fn=optax.skip_not_finite
    ).gradient_transformation(),
    "MultiSteps large": optax.MultiSteps(
        CLIPPED,
        2,
        should_skip_update_fn=functools.partial(
            optax.skip_large_updates, max_squared_norm=1e6
        ),
    ).gradient_transformation(),
}


@pytest.mark.parametrize(
    "name, bad, grade",
    [
        ("apply_if_finite", jnp.inf, "exact"),
        ("MultiSteps", jnp.nan, "exact"),
        ("MultiSteps large", 1e9, "close"),  # a norm with a scalar
    ],
)
def test_one_stage_s_infinity_makes_all_stages_skip(name, bad, grade):
    tx, partition = SKIPPING[name], staged()
    grads = waves(3)
    grads[1] = with_infinity(grads[1], bad)
    assert_stage_local_equal(tx, PARAMS, partition, grads=grads, grade=grade)
    made = fo.stage_local(tx, PARAMS, partition)
    pieces = partition.split(PARAMS)
    skipped, _ = made.step(partition.split(grads[1]), made.init(pieces), pieces)
    assert_equal(skipped, pieces)


def test_accumulation_around_all_of_it():
    def rows(params):
        return jax.tree.map(lambda x: x.ndim > 1, params)

    inner = optax.chain(
        optax.apply_if_finite(
            optax.chain(optax.add_noise(0.01, 0.5, key=1), CLIPPED), 3
        ),
        optax.masked(optax.add_decayed_weights(0.1), rows),
        delayed(optax.normalize_by_update_norm(), 1, flat=False),
    )
    tx = optax.MultiSteps(inner, 2).gradient_transformation()
    grads = waves(5)
    grads[2] = with_infinity(grads[2], jnp.nan)
    assert_stage_local_equal(tx, PARAMS, staged(), grads=grads)


@pytest.mark.parametrize(
    "tx",
    [
        optax.sgd(optax.linear_schedule(0.1, 0.01, 500), momentum=0.9),
        optax.chain(optax.clip_by_global_norm(0.5), optax.adam(1e-3)),
        optax.apply_if_finite(optax.adam(1e-3), 3),
    ],
    ids=["sgd", "adam", "skipping"],
)
def test_shared_scalars_are_equal_on_every_stage_after_1000_steps(tx):
    params = {"a": normal(0, 3), "b": normal(1, 2), "c": normal(2)}
    partition = staged(params, {"a": 0, "b": 1, "c": 2})
    made = fo.stage_local(tx, params, partition)
    pieces = partition.split(params)
    states = made.init(pieces)
    whole, state = params, tx.init(params)
    step = jax.jit(tx.update)
    for i in range(1000):
        grads = jax.tree.map(lambda x, i=i: x * (1 + i % 7), whole)
        if i % 100 == 50:
            grads["b"] = jnp.full(2, jnp.inf) if len(state) == 4 else grads["b"]
        pieces, states = made.step(partition.split(grads), states, pieces)
        _, state = step(grads, state, whole)
    merged = made.merge_state(states)
    for s, piece in enumerate(states):
        assert_equal(made.split_state(merged)[s], piece)
    counts = [leaf for leaf in jax.tree.leaves(merged) if leaf.dtype == jnp.int32]
    expected = [leaf for leaf in jax.tree.leaves(state) if leaf.dtype == jnp.int32]
    assert_equal(counts, expected)
    assert max(map(int, counts)) >= 990


def test_galore_whose_state_no_part_of_the_tree_can_make():
    params = {
        "a": normal(0, 6, 4),
        "b": normal(1, 4, 8),
        "c": {"d": normal(2, 3), "e": normal(3, 5, 5)},
    }
    partition = staged(params, {"a": 0, "b": 1, "c": {"d": 0, "e": 1}})
    made = assert_stage_local_equal(
        optax.contrib.galore(1e-2, rank=2), params, partition
    )
    assert made.rounds == 0
    states = made.init(partition.split(params))
    held = [sum(leaf.size for leaf in jax.tree.leaves(state)) for state in states]
    whole = sum(x.size for x in jax.tree.leaves(made.merge_state(states)))
    assert max(held) < 0.8 * whole


def callback(kind):
    def report(x):
        if kind == "print":
            jax.debug.print("{}", x)
            return x
        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        if kind == "io":
            return io_callback(lambda x: x, shape, x)
        jax.debug.callback(lambda x: None, x)
        return x

    def in_cond(x):
        return jax.lax.cond(jnp.max(x) > 0, report, lambda x: x, x)

    chosen = in_cond if kind == "cond" else report
    return stateless(lambda updates: jax.tree.map(chosen, updates))


@pytest.mark.parametrize("kind", ["print", "io", "debug", "cond"])
def test_host_callbacks_are_refused(kind):
    with pytest.raises(fo.CrossStageError, match=r"side effects.*test_traps\.py"):
        fo.stage_local(callback(kind), PARAMS, staged())


def test_a_pure_callback_gives_the_right_result():
    def double(x):
        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return jax.pure_callback(lambda x: np.asarray(x) * 2, shape, x)

    tx = stateless(lambda updates: jax.tree.map(double, updates))
    assert_stage_local_equal(tx, PARAMS, staged(), steps=1)


def test_an_init_that_depends_on_values_across_stages():
    """As long as these are array operations, they are cut like the update."""

    def init(params):
        return {"norm": optax.tree.norm(params), "first": params}

    def update(updates, state, params=None):
        away = jax.tree.map(jnp.subtract, params, state["first"])
        factor = state["norm"] / (1 + optax.tree.norm(away))
        return jax.tree.map(lambda u: -0.1 * factor * u, updates), state

    tx = optax.GradientTransformation(init, update)
    partition = staged()
    made = assert_stage_local_equal(tx, PARAMS, partition)
    states = made.init(partition.split(PARAMS))
    expected = jax.jit(tx.init)(PARAMS)
    assert_equal(states, made.split_state(expected))


def test_an_init_that_branches_on_values_in_python():
    """JAX says that it cannot be traced, and Optax's own `init` under jit says so."""

    def init(params):
        return jnp.zeros(2 if params["scale"] > 0 else 3)

    tx = optax.GradientTransformation(
        init, lambda updates, state, params=None: (updates, state)
    )
    with pytest.raises(jax.errors.TracerBoolConversionError):
        fo.stage_local(tx, PARAMS, staged())


def test_python_state_is_what_it_was_when_the_update_was_traced():
    """A counter in Python is a constant to JAX, in the whole update and in slices."""
    calls = []

    def update(updates, state, params=None):
        calls.append(None)
        return jax.tree.map(lambda u: u * len(calls), updates), state

    tx = optax.GradientTransformation(lambda params: (), update)
    partition = staged()
    made = fo.stage_local(tx, PARAMS, partition)
    pieces, traced = partition.split(PARAMS), len(calls)
    whole = jax.tree.map(lambda u: u * traced, PARAMS)
    for _ in range(3):
        updates, _ = made.update(pieces, made.init(pieces), pieces)
        assert_equal(updates, partition.split(whole))
    assert len(calls) == traced


def test_a_state_of_python_numbers():
    """`jax.jit` would take them for weakly typed arrays, and so does the slice."""
    tx = optax.GradientTransformation(
        lambda params: {"count": 0},
        lambda updates, state, params=None: (updates, {"count": state["count"] + 1}),
    )
    assert_stage_local_equal(tx, PARAMS, staged())


def test_a_state_of_another_structure_than_before():
    tx = optax.GradientTransformation(
        lambda params: {"first": jnp.zeros(())},
        lambda updates, state, params=None: (updates, {"second": jnp.zeros(())}),
    )
    with pytest.raises(ValueError, match=r"state with a different structure.*'firs"):
        fo.stage_local(tx, PARAMS, staged())


def test_updates_that_leave_some_out():
    tx = stateless(lambda updates: {**updates, "scale": None})
    with pytest.raises(ValueError, match=r"updates with a different structure.*scale"):
        fo.stage_local(tx, PARAMS, staged())


def test_updates_of_another_shape():
    tx = stateless(lambda updates: {**updates, "scale": jnp.ones(3)})
    with pytest.raises(ValueError, match=r"`\['scale'\]` is float32\[\].*\[3\]"):
        fo.stage_local(tx, PARAMS, staged())


def test_a_key_of_another_stage_is_refused():
    """Each parameter has a key, and one stage's noise is drawn with another's."""

    def update(updates, state, params=None):
        noise = jax.random.uniform(state["b"], (2000,))
        keys = jax.tree.map(lambda key: jax.random.split(key)[0], state)
        return {**updates, "a": updates["a"] * noise}, keys

    tx = optax.GradientTransformation(
        lambda params: jax.tree.map(lambda _: jax.random.key(0), params), update
    )
    params = {"a": normal(0, 2000), "b": normal(1, 2000)}
    with pytest.raises(fo.CrossStageError, match=r"`mul` at .*mixes whole tensors"):
        fo.stage_local(tx, params, staged(params, {"a": 0, "b": 1}))


def test_a_queue_by_position_next_to_a_tied_parameter():
    """One stage owns all leaves, another the last: there its position is the first."""
    params = {"a": normal(0, 2000), "b": normal(1, 2000)}
    partition = staged(params, {"a": 0, "b": {0, 1}})
    tx = delayed(optax.sgd(0.1), 2, flat=True)
    staged_tx = assert_stage_local_equal(tx, params, partition, steps=4)
    states = staged_tx.init(partition.split(params))
    assert [len(jax.tree.leaves(state.queue)) for state in states] == [4, 2]


def test_a_global_norm_with_a_scalar_parameter():
    """The whole update squares and adds in one operation, a stage rounds in between."""
    params = {"a": normal(0, 3, 2), "c": normal(1, 2), "d": normal(2)}
    partition = staged(params, {"a": 0, "c": 1, "d": 1})
    for seed in range(3):
        assert_stage_local_equal(
            optax.clip_by_global_norm(0.5),
            params,
            partition,
            seed=seed,
            grade="close",
        )
