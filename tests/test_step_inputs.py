"""What a step may be given, on a tree of 48 leaves in 8 stages."""

import copy
import functools
import pickle
from typing import Any

import functional_opt as fo
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compilations import compilations


STAGES = 8
MESHES = tuple(jax.devices())
CLIPPED = optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(1e-2))


def make_params(dtype=jnp.float32):
    keys = iter(jax.random.split(jax.random.key(0), 6 * STAGES))

    def block():
        shapes = [(3, 2), (2, 4), (2,), (4,), (1,), ()]
        return {
            f"w{k}": jax.random.normal(next(keys), shape, dtype)
            for k, shape in enumerate(shapes)
        }

    return [block() for _ in range(STAGES)]


def owners(tied):
    """The first leaf of the first block is also the last stage's, if it is tied."""
    stages: list[dict[str, Any]] = [
        dict.fromkeys(block, s) for s, block in enumerate(make_params())
    ]
    if tied:
        stages[0]["w0"] = {0, STAGES - 1}
    return stages


def waves(tree, factor=3.0):
    return jax.tree.map(lambda x: jnp.sin(factor * x), tree)


def spread(pieces, where):
    devices = {
        "nowhere": None,
        "one device": [jax.devices()[0]] * STAGES,
        "apart": jax.devices(),
    }
    given = devices[where]
    return pieces if given is None else jax.device_put(pieces, tuple(given))


class Training:
    """Stages that are ready for a step."""

    def __init__(
        self,
        where="apart",
        staged=None,
        tied=False,
        dtype=jnp.float32,
        donate=False,
        meshes=None,
    ):
        self.params = make_params(dtype)
        self.partition = fo.partition(self.params, owners(tied))
        self.staged = staged or derived(tied, dtype, donate=donate, meshes=meshes)
        self.pieces = spread(self.partition.split(self.params), where)
        self.grads = spread(self.partition.split_gradients(waves(self.params)), where)
        self.states = self.staged.init(self.pieces)


def derive(tied=False, dtype=jnp.float32, tx=CLIPPED, **options):
    params = make_params(dtype)
    partition = fo.partition(params, owners(tied))
    return fo.stage_local(tx, params, partition, **options)


# Shared with all that was compiled, but by tests of what is compiled.
derived = functools.cache(derive)


def where_is(tree):
    return [(leaf.sharding, leaf.committed) for leaf in jax.tree.leaves(tree)]


WHERE = ["nowhere", "one device", "apart"]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("where", WHERE)
def test_a_gradient_that_is_none_counts_as_zeros(where, tied):
    training = Training(where, tied=tied)
    staged, given = training.staged, (training.states, training.pieces)
    missing = {(s, name) for s in (0, 3, 7) for name in ("w0", "w2", "w5")}

    def without(stage, piece, make):
        part = [
            {
                name: make(leaf) if (s, name) in missing and s == stage else leaf
                for name, leaf in block.items()
            }
            for s, block in enumerate(piece)
        ]
        return part

    pairs = list(enumerate(training.grads))
    zeros = tuple(without(s, g, jnp.zeros_like) for s, g in pairs)
    nones = tuple(without(s, g, lambda _: None) for s, g in pairs)
    for _ in range(3):
        expected = staged.step(zeros, *given)
        fo.testing.assert_equal(staged.step(nones, *given), expected)
        fo.testing.assert_equal(
            staged.update(nones, *given), staged.update(zeros, *given)
        )
        given = expected[::-1]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("where", WHERE)
def test_stages_without_any_gradient(where, tied):
    """The message of such a stage is computed from nothing that is on a device."""
    training = Training(where, tied=tied)
    given = training.states, training.pieces
    for missing in ({3}, {1, 4, 7}, set(range(STAGES))):
        nones, zeros = (
            tuple(
                jax.tree.map(make, piece) if stage in missing else piece
                for stage, piece in enumerate(training.grads)
            )
            for make in (lambda _: None, jnp.zeros_like)
        )
        expected = training.staged.step(zeros, *given)
        found = training.staged.step(nones, *given)
        fo.testing.assert_equal(found, expected)
        assert where_is(found) == where_is(expected)
        given = expected[::-1]


def test_a_tied_gradient_that_no_owner_has_counts_as_zeros():
    training = Training(tied=True)
    grads = list(training.grads)
    for stage in (0, STAGES - 1):
        grads[stage] = copy.deepcopy(grads[stage])
        grads[stage][0] = grads[stage][0] | {"w0": None}
    zeros = waves(training.params)
    zeros[0]["w0"] = jnp.zeros_like(zeros[0]["w0"])
    zeros = spread(training.partition.split_gradients(zeros), "apart")
    given = training.states, training.pieces
    fo.testing.assert_equal(
        training.staged.step(tuple(grads), *given), training.staged.step(zeros, *given)
    )


def test_whole_gradients_with_none_are_split():
    training = Training("nowhere", tied=True)
    grads = waves(training.params)
    grads[0]["w0"] = grads[4]["w3"] = None
    pieces = training.partition.split_gradients(grads)
    assert pieces[0][0]["w0"] is None and pieces[7][0]["w0"] is None
    assert pieces[4][4]["w3"] is None and pieces[4][4]["w1"] is not None
    training.staged.step(pieces, training.states, training.pieces)


def test_a_gradient_that_is_no_array_is_still_refused():
    training = Training("nowhere")
    grads = list(training.grads)
    grads[2] = [*grads[2][:2], grads[2][2] | {"w1": {"a": 1.0}}, *grads[2][3:]]
    with pytest.raises(ValueError, match=r"`grads\[2\]` .*\['w1'\]"):
        training.staged.step(tuple(grads), training.states, training.pieces)


def transformation(init: Any, update: Any) -> optax.GradientTransformation:
    return optax.GradientTransformation(init, update)


TWO = {"a": jnp.ones(3), "b": jnp.ones(4)}
BARE = {
    "a state that is None": (
        transformation(
            lambda params: None,
            lambda updates, state, params=None: (
                jax.tree.map(lambda x: -0.1 * x, updates),
                None,
            ),
        ),
        TWO,
        {"a": 0, "b": 1},
    ),
    "parameters that are one array": (optax.adam(0.1), jnp.ones(3), 1),
    "a state that is one array of a stage": (
        transformation(
            lambda params: jnp.zeros_like(params["a"]),
            lambda updates, state, params=None: (updates, state + updates["a"]),
        ),
        TWO,
        {"a": 0, "b": 1},
    ),
}


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("name", BARE)
def test_a_piece_that_is_none(name, apart):
    tx, params, stages = BARE[name]
    partition = fo.partition(params, stages, num_stages=2)
    fo.testing.assert_stage_local_equal(tx, params, partition)
    staged = fo.stage_local(tx, params, partition)
    devices = tuple(jax.devices()[:2] if apart else [jax.devices()[0]] * 2)
    pieces = jax.device_put(partition.split(params), devices)
    grads = jax.tree.map(jnp.sin, pieces)
    states = staged.init(pieces)
    whole = tx.init(params)
    fo.testing.assert_equal(states, staged.split_state(whole, pieces))
    for _ in range(2):
        pieces, states = staged.step(grads, states, pieces)
    staged.merge_state(states)


def test_float64_of_numpy_is_what_it_is_to_jax():
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), make_params())
    partition = fo.partition(params, owners(False))
    staged = fo.stage_local(CLIPPED, params, partition)
    pieces = partition.split(params)
    grads = jax.tree.map(np.sin, pieces)
    found, _ = staged.step(grads, staged.init(pieces), pieces)

    @jax.jit
    def whole(grads, state, params):
        updates, _ = CLIPPED.update(grads, state, params)
        return optax.apply_updates(params, updates)

    state = jax.jit(CLIPPED.init)(params)
    expected = whole(jax.tree.map(np.sin, params), state, params)
    fo.testing.assert_equal(partition.merge(found), expected)


@pytest.mark.parametrize("stage", [0, 5])
@pytest.mark.parametrize("where", ["one device", "apart"])
class TestDonatedBuffers:
    def step(self, training, stage, grads=None, states=None, pieces=None):
        """A step with one stage's piece of another tree."""

        def mixed(old, new):
            return new if old is None else (*new[:stage], old[stage], *new[stage + 1 :])

        return training.staged.step(
            mixed(grads, training.grads),
            mixed(states, training.states),
            mixed(pieces, training.pieces),
        )

    def after_a_step(self, where):
        training = Training(where, donate=True)
        # On one device `device_put` may have changed nothing, and `grads` share no
        # buffer with the parameters.
        training.pieces = jax.tree.map(jnp.copy, training.pieces)
        old = training.states, training.pieces
        new = training.staged.step(training.grads, *old)
        training.pieces, training.states = new
        return training, old

    def test_old_parameters(self, where, stage):
        training, (_, pieces) = self.after_a_step(where)
        match = rf"of `params\[{stage}\]` has been deleted.*`donate=True`"
        with pytest.raises(ValueError, match=match):
            self.step(training, stage, pieces=pieces)

    def test_an_old_state(self, where, stage):
        training, (states, _) = self.after_a_step(where)
        match = rf"of `state\[{stage}\]` has been deleted.*`donate=True`"
        with pytest.raises(ValueError, match=match):
            self.step(training, stage, states=states)

    def test_gradients_that_are_the_parameters(self, where, stage):
        training, _ = self.after_a_step(where)
        match = rf"of `grads\[{stage}\]` is the same buffer as .* `params\[{stage}\]`"
        with pytest.raises(ValueError, match=match + r".*`donate=True`.*`jnp\.copy`"):
            self.step(training, stage, grads=training.pieces)


def test_one_array_as_two_parameters_that_are_donated():
    training = Training(donate=True)
    pieces = list(training.pieces)
    block = pieces[3][3]
    pieces[3] = [*pieces[3][:3], block | {"w5": block["w5"]}, *pieces[3][4:]]
    states = list(training.states)
    adam = states[3][1][0]
    mu = copy.copy(adam.mu)
    mu[3] = mu[3] | {"w0": block["w0"]}
    states[3] = (states[3][0], (adam._replace(mu=mu), *states[3][1][1:]))
    with pytest.raises(ValueError, match=r"`state\[3\]` is the same buffer .*\['w0'\]"):
        training.staged.step(training.grads, tuple(states), tuple(pieces))


def test_updates_leave_donated_parameters_alone():
    training = Training(donate=True)
    given = training.grads, training.states, training.pieces
    updates, _ = training.staged.update(*given)
    fo.testing.assert_equal(
        jax.tree.map(jnp.shape, updates), jax.tree.map(jnp.shape, training.pieces)
    )
    assert not any(x.is_deleted() for x in jax.tree.leaves(training.pieces))


class TestPartOfALargerProgram:
    """Only some of what a step is given is traced; the rest is closed over."""

    def test_jit(self):
        training = Training("nowhere")
        given = training.grads, training.states, training.pieces
        expected = jax.jit(training.staged.step)(*given)
        for k in range(3):

            def step(x, k=k):
                args: list[Any] = list(given)
                args[k] = x
                return training.staged.step(*args)

            # Fused with its neighbours, a parameter that an update cancels rounds
            # differently.
            fo.testing.assert_equal(jax.jit(step)(given[k]), expected, grade="bounded")

    @pytest.mark.parametrize("tied", [False, True])
    def test_grad(self, tied):
        """Through what is exchanged, too: the clip depends on all gradients.

        The first step of Adam hardly depends on the size of a gradient: its derivative
        cancels to noise in float32, where Optax jitted and not jitted differ by 2 %.
        """
        with jax.enable_x64(True):
            training = Training("nowhere", tied=tied, dtype=jnp.float64)
            staged, partition = training.staged, training.partition
            whole, state = (
                waves(training.params),
                jax.jit(CLIPPED.init)(training.params),
            )

            def loss(params):
                return sum(jnp.sum(x**2) for x in jax.tree.leaves(params))

            def staged_loss(grads):
                pieces = partition.split_gradients(grads)
                new, _ = staged.step(pieces, training.states, training.pieces)
                return loss(partition.merge(new))

            def whole_loss(grads):
                updates, _ = CLIPPED.update(grads, state, training.params)
                return loss(optax.apply_updates(training.params, updates))

            found, expected = jax.grad(staged_loss)(whole), jax.grad(whole_loss)(whole)
            largest = max(float(jnp.max(jnp.abs(x))) for x in jax.tree.leaves(expected))
            for one, other in zip(
                *map(jax.tree.leaves, (found, expected)), strict=True
            ):
                np.testing.assert_allclose(one, other, rtol=0, atol=1e-9 * largest)

    def test_scan(self):
        training = Training("nowhere", donate=True)

        def body(carry, _):
            pieces, states = carry
            return training.staged.step(waves(pieces), states, pieces), None

        carry = training.pieces, training.states
        found, _ = jax.lax.scan(body, carry, None, length=3)
        for _ in range(3):
            carry = jax.jit(lambda c: body(c, None)[0])(carry)
        fo.testing.assert_equal(found, carry)

    def test_a_state_is_split(self):
        training = Training("nowhere")
        state = jax.jit(CLIPPED.init)(training.params)
        found = jax.jit(training.staged.split_state)(state, training.pieces)
        fo.testing.assert_equal(found, training.states)

    def test_shapes_of_a_state(self):
        training = Training(meshes=MESHES)
        shapes = jax.eval_shape(lambda: training.partition.split(make_params()))
        found = jax.eval_shape(training.staged.init, shapes)
        fo.testing.assert_equal(
            jax.tree.map(lambda x: (x.shape, str(x.dtype)), found),
            jax.tree.map(lambda x: (x.shape, str(x.dtype)), training.states),
        )
        with pytest.raises(TypeError, match=r"`params\[0\]` is a shape.*eval_shape"):
            training.staged.init(shapes)

    @pytest.mark.parametrize("given", [False, True], ids=["found", "given"])
    def test_stages_apart(self, given):
        training = Training(meshes=MESHES if given else None)

        def step(factor):
            grads = jax.tree.map(lambda x: factor * x, training.params)
            pieces = training.partition.split(grads)
            return training.staged.step(pieces, training.states, training.pieces)

        with pytest.raises(ValueError, match=r"larger program.*`programs`.*`over_axis"):
            jax.jit(step)(2.0)


def zero_size(updates, state, params=None):
    """Both parts are empty, but they are on different stages."""
    both = jnp.concatenate([updates["a"], updates["b"]])
    return updates | {"a": both[:0]}, state


@pytest.mark.parametrize("apart", [False, True])
def test_a_round_of_nothing_but_values_of_size_zero(apart):
    params = {"a": jnp.ones((0,)), "b": jnp.ones((0,)), "c": jnp.ones(3)}
    tx = transformation(lambda p: optax.EmptyState(), zero_size)
    partition = fo.partition(params, {"a": 0, "b": 1, "c": 0})
    staged = fo.testing.assert_stage_local_equal(tx, params, partition)
    pieces = partition.split(params)
    if apart:
        pieces = jax.device_put(pieces, tuple(jax.devices()[:2]))
    new, _ = staged.step(pieces, staged.init(pieces), pieces)
    assert jnp.all(new[0]["c"] == 2.0)


@pytest.mark.parametrize("dtype", ["int2", "int4", "uint4", "float4_e2m1fn", "int8"])
def test_values_of_few_bits_travel(dtype):
    params = make_params()

    def narrow(x):
        return (2 * x).astype(dtype)

    def init(params):
        return {"first": jnp.zeros((), dtype), "all": [jnp.zeros((), dtype)] * STAGES}

    def update(updates, state, params=None):
        def scaled(block, scale):
            return jax.tree.map(lambda x: x * scale.astype(jnp.float32), block)

        scales = state["all"][::-1]
        new = [narrow(jnp.round(block["w5"])) for block in updates]
        return list(map(scaled, updates, scales)), {"first": new[3], "all": new}

    tx = transformation(init, update)
    partition = fo.partition(params, owners(False))
    staged = fo.testing.assert_stage_local_equal(tx, params, partition)
    assert staged.rounds == 1 or dtype == "int8"


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("value", [3.0, np.float32(3), np.ones((), np.float32)])
@pytest.mark.parametrize("on_stage", [False, True])
def test_nothing_compiles_again_with_an_extra_argument(value, where, on_stage):
    shape = jax.ShapeDtypeStruct((), jnp.float32)
    example = {"value": fo.OnStage(shape, 5) if on_stage else shape}
    training = Training(where, derive(tx=optax.polyak_sgd(), extra_args=example))
    loss = jax.jit(lambda pieces: sum(map(jnp.sum, jax.tree.leaves(pieces))))
    if where != "apart":
        loss(training.pieces)
    pieces, states = training.pieces, training.states
    committed = [x.committed for x in jax.tree.leaves(pieces)]
    given = jnp.float32(value) if isinstance(value, np.ndarray) else value
    for step in range(3):
        with compilations() as names:
            pieces, states = training.staged.step(
                training.grads, states, pieces, value=given
            )
            if where != "apart":
                loss(pieces)
        assert step == 0 or names == []
    assert [x.committed for x in jax.tree.leaves(pieces)] == committed


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("tied", [False, True])
def test_nothing_compiles_again(where, tied):
    """Tied gradients leave parameters as committed as they were."""
    training = Training(where, derive(tied), tied)
    pieces, states = training.pieces, training.states
    committed = [x.committed for x in jax.tree.leaves(pieces)]
    for step in range(3):
        with compilations() as names:
            pieces, states = training.staged.step(training.grads, states, pieces)
        assert (step == 0) == bool(names)
    assert [x.committed for x in jax.tree.leaves(pieces)] == committed


def test_a_staged_transformation_is_copied_as_itself_and_not_pickled():
    training = Training("nowhere")
    assert copy.copy(training.staged) is training.staged
    assert copy.deepcopy({"staged": training.staged})["staged"] is training.staged
    with pytest.raises(TypeError, match=r"cannot be pickled.*arguments of"):
        pickle.dumps(training.staged)
