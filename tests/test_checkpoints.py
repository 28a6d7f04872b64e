"""Checkpoints: saved from some stages, restored into others."""

import functools
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import functional_opt as fo
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, strategies as st
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from rooms import saving
from strategies import trees


TX = optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(1e-2, b2=0.95))
LAYERS = 8


def make_params():
    keys = jax.random.split(jax.random.key(0), LAYERS)
    return {f"layer{i}": jax.random.normal(key, (4, 3)) for i, key in enumerate(keys)}


def gradients(params, step):
    return jax.tree.map(lambda x: jnp.cos(step + 7 * x), params)


class WholeTree:
    """Plain Optax, which knows nothing of stages."""

    staged = None

    def start(self):
        params = make_params()
        return params, jax.jit(TX.init)(params)

    @staticmethod
    @jax.jit
    def step(grads, state, params):
        updates, state = TX.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    def train(self, params, state, steps):
        for step in steps:
            params, state = self.step(gradients(params, step), state, params)
        return params, state

    def merge(self, params, state):
        return params, state


class Stages:
    """The same training in stages, each on a device of its own."""

    def __init__(self, num_stages):
        params = make_params()
        size = LAYERS // num_stages
        stages = {name: i // size for i, name in enumerate(params)}
        self.devices = jax.devices()[:num_stages]
        self.partition = fo.partition(params, stages)
        self.staged = fo.stage_local(TX, params, self.partition, meshes=self.devices)

    def start(self):
        pieces = self.partition.split(make_params())
        pieces = jax.device_put(pieces, tuple(self.devices))
        return pieces, self.staged.init(pieces)

    def train(self, params, state, steps):
        for step in steps:
            grads = tuple(gradients(piece, step) for piece in params)
            params, state = self.staged.step(grads, state, params)
        return params, state

    def merge(self, params, state):
        return self.partition.merge(params), self.staged.merge_state(state)


@functools.cache
def layout(num_stages) -> Any:
    return WholeTree() if num_stages == 0 else Stages(num_stages)


@pytest.mark.parametrize(
    "before, after", [(4, 2), (4, 8), (1, 4), (0, 4), (4, 0), (2, 2)]
)
def test_goes_on_in_other_stages_as_if_never_stopped(tmp_path, before, after):
    saved, resumed, reference = layout(before), layout(after), WholeTree()
    checkpoints = fo.Checkpoints(tmp_path)
    params, state = saved.train(*saved.start(), range(3))
    checkpoints.save(3, params, state, saved.staged)

    step, *restored = checkpoints.restore(*resumed.start(), staged=resumed.staged)
    assert step == 3
    found = resumed.merge(*resumed.train(*restored, range(step, 6)))
    fo.testing.assert_equal(found, reference.train(*reference.start(), range(6)))


class Block(eqx.Module):
    weight: jax.Array
    bias: None
    mask: np.ndarray
    seen: jax.Array
    key: jax.Array
    activation: Any
    width: int


class State(NamedTuple):
    everything: Any


def make_block(seed):
    weight = jax.random.normal(jax.random.key(seed), (4, 2))
    mask = np.arange(4) % (seed + 2) > 0
    key = jax.random.key(seed)
    return Block(weight, None, mask, jnp.int32(seed), key, jax.nn.relu, 4)


def every_kind():
    """Leaves of all kinds, by what is odd about them."""
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("x", "y"))
    values = jnp.arange(32.0).reshape(8, 4)
    dtypes = ["bool", "int8", "uint32", "float16", "bfloat16", "complex64", "int4"]
    dtypes += ["float8_e4m3fn"]
    return {
        **{dtype: jnp.arange(3).astype(dtype) for dtype in dtypes},
        "key": jax.random.key(1),
        "keys": jax.random.split(jax.random.key(2, impl="rbg"), (2, 3)),
        "old key": jax.random.PRNGKey(3),
        "none": None,
        "count": jnp.int32(7),
        "empty": jnp.zeros((0, 3)),
        "negative zeros": jnp.float32([-0.0, -0.0]),
        "not finite": jnp.array([jnp.nan, jnp.inf, -jnp.inf, -jnp.nan]),
        "sharded": jax.device_put(
            values, NamedSharding(mesh, PartitionSpec("x", None))
        ),
        "replicated": jax.device_put(values, NamedSharding(mesh, PartitionSpec())),
        "replicated keys": jax.device_put(
            jax.random.split(jax.random.key(4), 4),
            NamedSharding(mesh, PartitionSpec("y")),
        ),
        "elsewhere": jax.device_put(values, jax.devices()[5]),
        "NumPy": np.array([1.5, -0.0]),
        "NumPy int": np.int64(2**40),
        "of Python": (True, 2**70, 0.1, float("nan"), "text"),
        "a/b%c": jnp.float32(3),
        "module": State([make_block(5)]),
    }


def blank(leaf):
    """Another leaf of its kind, in its place."""
    if isinstance(leaf, bool | int | float | str):
        return type(leaf)()
    if not isinstance(leaf, jax.Array):
        return leaf ^ leaf if leaf.dtype == bool else leaf * 0
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = blank(jax.random.key_data(leaf))
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    zeros = np.zeros_like(leaf)
    return jax.device_put(zeros, leaf.sharding) if leaf.committed else jnp.array(zeros)


def is_python(leaf):
    return isinstance(leaf, bool | int | float | str)


def assert_same(found, expected):
    """Equal, and of the same types, in the same places."""
    python, arrays = eqx.partition(found, is_python)
    expected_python, expected_arrays = eqx.partition(expected, is_python)
    assert repr(python) == repr(expected_python)
    fo.testing.assert_equal(arrays, expected_arrays)
    for one, other in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        assert type(one) is type(other)
        if isinstance(other, jax.Array):
            assert one.sharding == other.sharding
            assert one.committed == other.committed
            assert one.aval == other.aval


def test_every_kind_of_leaf_is_restored_exactly(tmp_path):
    model = every_kind()
    state = eqx.filter(model, callable, inverse=True)
    checkpoints = fo.Checkpoints(tmp_path)
    checkpoints.save(0, model, state)
    arrays, rest = eqx.partition(model, lambda leaf: hasattr(leaf, "shape"))
    blank_model = eqx.combine(jax.tree.map(blank, arrays), rest)
    restored = checkpoints.restore(blank_model, jax.tree.map(blank, state))
    assert restored.step == 0
    assert restored.params["module"].everything[0].activation is jax.nn.relu
    params = eqx.filter(restored.params, callable, inverse=True)
    assert_same(params, state)
    assert_same(restored.state, state)


@given(trees(), st.integers(0, 2**32 - 1))
def test_any_tree_is_restored_exactly(tree, seed):
    keys = iter(jax.random.split(jax.random.key(seed), 20))
    shapes, structure = jax.tree.flatten(tree)
    leaves = [jax.random.normal(next(keys), x.shape, x.dtype) for x in shapes]
    params = jax.tree.unflatten(structure, leaves)
    state = optax.adam(1e-3).init(params)
    with tempfile.TemporaryDirectory() as directory:
        checkpoints = fo.Checkpoints(directory)
        checkpoints.save(1, params, state)
        restored = checkpoints.restore(*jax.tree.map(blank, (params, state)))
    assert_same(tuple(restored), (1, params, state))


class Layer(eqx.Module):
    weight: jax.Array
    seen: jax.Array
    key: jax.Array
    activation: Any
    width: int


def make_layers(seed, width=3):
    keys = jax.random.split(jax.random.key(seed), 3)
    layers = [
        Layer(jax.random.normal(key, (width, 2)), jnp.int32(seed), key, jnp.tanh, width)
        for key in keys
    ]
    return {"layers": layers, "tied": jnp.full((2,), float(seed))}


def stage_of_layers(path, leaf):
    return path[1].idx if path[0].key == "layers" else {0, 2}


def stage_layers(layers):
    partition = fo.partition(layers, stage_of_layers)
    tx = optax.chain(optax.add_noise(0.1, 0.5, key=jax.random.key(2)), optax.adam(1e-2))
    return fo.stage_local(tx, layers, partition)


def test_pieces_of_a_model_with_what_rides_along(tmp_path):
    one, other = make_layers(1), make_layers(2)
    staged = stage_layers(one)
    pieces = staged.partition.split(one)
    states = staged.init(pieces)
    checkpoints = fo.Checkpoints(tmp_path)
    checkpoints.save(0, pieces, states, staged)
    targets = staged.partition.split(other)
    restored = checkpoints.restore(targets, jax.tree.map(blank, states), staged)
    expected = tuple(eqx.filter(piece, eqx.is_array) for piece in pieces)
    found = tuple(eqx.filter(piece, eqx.is_array) for piece in restored.params)
    fo.testing.assert_equal(found, expected)
    fo.testing.assert_equal(restored.state, states)
    assert restored.params[1]["layers"][0].activation is jnp.tanh
    pointers = {
        id(leaf) for piece in found for leaf in [piece["tied"]] if leaf is not None
    }
    assert len(pointers) == 2  # one buffer would be lost to both when one is donated


def test_copies_that_have_parted_are_not_saved(tmp_path):
    staged = stage_layers(make_layers(1))
    pieces = list(staged.partition.split(make_layers(1)))
    states = staged.init(tuple(pieces))
    for where in (lambda m: m["layers"][1].seen, lambda m: m["layers"][1].key):
        changed = eqx.tree_at(where, pieces[1], where(make_layers(2)))
        checkpoints = fo.Checkpoints(tmp_path)
        with pytest.raises(ValueError, match="is not the same on stage 0 and stage 1"):
            checkpoints.save(0, (pieces[0], changed, pieces[2]), states, staged)
    changed = eqx.tree_at(lambda m: m["tied"], pieces[2], jnp.float32([1.0, -0.0]))
    with pytest.raises(ValueError, match=r"`params\['tied'\]` is not the same"):
        checkpoints.save(0, (*pieces[:2], changed), states, staged)
    parted = (*states[:2], jax.tree.map(lambda x: x * 2 + 1, states[2][1:]))
    with pytest.raises(ValueError, match=r"`state\[1\]\[0\].count` is not the same"):
        checkpoints.save(0, pieces, (*states[:2], (states[2][0], *parted[2])), staged)
    assert checkpoints.latest is None


def test_shapes_suffice(tmp_path):
    stages = layout(2)
    params, state = stages.start()
    checkpoints = fo.Checkpoints(tmp_path)
    checkpoints.save(1, params, state, stages.staged)
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
        (params, state),
    )
    assert_same(
        tuple(checkpoints.restore(*shapes, staged=stages.staged))[1:], (params, state)
    )
    key = jax.random.key(3)
    checkpoints.save(2, key, params)
    shape = jax.ShapeDtypeStruct((), key.dtype)
    fo.testing.assert_equal(checkpoints.restore(shape, params).params, key)


def test_a_submesh_does_not_matter(tmp_path):
    devices = np.array(jax.devices())
    values = jnp.arange(48.0).reshape(8, 6)

    def placed(devices, *spec):
        mesh = Mesh(devices, ("x", "y"))
        return jax.device_put(values, NamedSharding(mesh, PartitionSpec(*spec)))

    layouts = [
        placed(devices.reshape(4, 2), "x", "y"),
        placed(devices[:2].reshape(1, 2), None, "y"),
        placed(devices[2:6].reshape(2, 2), ("x", "y")),
        values,
    ]
    for number, saved in enumerate(layouts):
        checkpoints = fo.Checkpoints(tmp_path / str(number))
        checkpoints.save(0, saved, ())
        for wanted in layouts:
            assert_same(checkpoints.restore(blank(wanted), ()).params, wanted)


def test_a_leaf_is_stored_once_under_its_path_and_without_devices(tmp_path):
    stages = layout(4)
    fo.Checkpoints(tmp_path).save(0, *stages.start(), staged=stages.staged)
    (manifest,) = tmp_path.rglob("leaves.json")
    leaves = json.loads(manifest.read_text())["leaves"]
    folders = {path.name for path in manifest.parent.iterdir() if path.is_dir()}
    names = [f"layer{i}" for i in range(LAYERS)]
    state = [f"state[1][0].{part}['{name}']" for part in ("mu", "nu") for name in names]
    params = [f"params['{name}']" for name in names]
    expected = [*params, "state[1][0].count", *state]
    assert list(leaves) == expected
    assert folders == set(expected)
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert b"cpu" not in path.read_bytes().lower(), path


def test_keeps_the_last(tmp_path):
    checkpoints = fo.Checkpoints(tmp_path / "not" / "there", keep=2)
    assert checkpoints.latest is None and checkpoints.steps == ()
    for step in (0, 5, 7, 12):
        checkpoints.save(step, jnp.float32(step), ())
    assert checkpoints.steps == (7, 12)
    assert checkpoints.latest == 12
    assert checkpoints.restore(jnp.float32(0), ()).params == 12
    assert checkpoints.restore(jnp.float32(0), (), step=7)[:2] == (7, 7)


@pytest.mark.parametrize("when", ["merge_parts", "write_file", "shard_bytes"])
def test_what_is_not_complete_is_not_there(tmp_path, monkeypatch, when):
    checkpoints = fo.Checkpoints(tmp_path)
    checkpoints.save(1, jnp.float32(1), ())

    def fail(*_):
        raise OSError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(saving, when, fail)
        with pytest.raises((OSError, ValueError), match="the disk is full"):
            checkpoints.save(2, jnp.float32(2), ())
    assert {path.name for path in tmp_path.iterdir()} == {"1"}
    assert checkpoints.steps == (1,)
    assert checkpoints.restore(jnp.float32(0), ()).params == 1
    checkpoints.save(2, jnp.float32(3), ())
    assert {path.name for path in tmp_path.iterdir()} == {"1", "2"}
    assert checkpoints.restore(jnp.float32(0), ()).params == 3


PARAMS = {"a": jnp.ones((4, 3)), "b": jnp.ones(3, jnp.bfloat16), "width": 4}


def changed(**leaves):
    return {**PARAMS, **leaves}


def moments(tx=None, params=None):
    return (tx or optax.adam(1e-3)).init(
        eqx.filter(params or PARAMS, eqx.is_inexact_array)
    )


@pytest.mark.parametrize(
    "params, state, words",
    [
        (
            changed(a=jnp.ones((4, 2))),
            moments(),
            r"`params['a']` is float32[4, 2] here, and float32[4, 3] in the checkpoint",
        ),
        (
            changed(b=jnp.ones(3)),
            moments(),
            r"`params['b']` is float32[3] here, and bfloat16[3] in the checkpoint",
        ),
        (
            changed(c=jnp.ones(3)),
            moments(),
            r"`params['c']` is float32[3] here, and not in the checkpoint",
        ),
        (
            {"a": PARAMS["a"]},
            moments(),
            r"`params['b']` is bfloat16[3] in the checkpoint only",
        ),
        (
            changed(width=5),
            moments(),
            r"`params['width']` is 5 here, and 4 in the checkpoint",
        ),
        (
            changed(width=True),
            moments(),
            r"`params['width']` is True here, and 4 in the checkpoint",
        ),
        (
            changed(a=jnp.tanh),
            moments(),
            r"`params['a']` is another leaf here, and float32[4, 3] in the checkpoint",
        ),
        (
            PARAMS,
            moments(optax.sgd(0.1, momentum=0.9)),
            r"`state[0].trace['a']` is float32[4, 3] here, and not in the checkpoint, "
            "which has `state[0].count` instead",
        ),
        (
            PARAMS,
            moments(optax.sgd(0.1)),
            r"`state[0].count` is int32[] in the checkpoint only",
        ),
        (
            PARAMS,
            moments(optax.adam(1e-3, mu_dtype="float16")),
            r"`state[0].mu['a']` is float16[4, 3] here, and float32[4, 3]",
        ),
        (
            PARAMS,
            moments(optax.chain(optax.identity(), optax.adam(1e-3))),
            r"`state[1][0].count` is int32[] here, and not in the checkpoint",
        ),
    ],
)
def test_another_training_is_refused_with_the_first_path(
    tmp_path, params, state, words
):
    checkpoints = fo.Checkpoints(tmp_path)
    checkpoints.save(4, PARAMS, moments())
    with pytest.raises(ValueError) as caught:
        checkpoints.restore(params, state)
    start = f"The checkpoint of step 4 in `{tmp_path}` is of another model or optimizer"
    assert str(caught.value).startswith(f"{start}: {words}")


def test_numbers_of_the_model_may_be_left_out(tmp_path):
    checkpoints = fo.Checkpoints(tmp_path)
    checkpoints.save(1, PARAMS, moments())
    arrays = eqx.filter(PARAMS, eqx.is_array)
    checkpoints.restore(arrays, moments())
    checkpoints.save(2, arrays, moments())
    assert checkpoints.restore(PARAMS, moments()).params["width"] == 4


def test_numbers_of_a_state_must_be_there(tmp_path):
    checkpoints = fo.Checkpoints(tmp_path)
    checkpoints.save(1, PARAMS, {"count": 3})
    assert checkpoints.restore(PARAMS, {"count": 0}).state == {"count": 3}
    for state, words in [
        ({"count": 0.0}, r"`state\['count'\]` is 0.0 here, and 3 in the checkpoint"),
        ({}, r"`state\['count'\]` is 3 in the checkpoint only"),
        ({"count": 0, "skipped": 1}, r"`state\['skipped'\]` is 1 here, and not in"),
    ]:
        with pytest.raises(ValueError, match=words):
            checkpoints.restore(PARAMS, state)


def files_of(directory):
    return sorted(path for path in Path(directory).rglob("*") if path.is_file())


def cut_short(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [cut_short, flip, empty, Path.unlink])
def test_damage_is_found_whichever_file_it_is_in(tmp_path, damage):
    expected = {"w": jnp.arange(6.0), "zeros": jnp.zeros(3)}, {"count": jnp.int32(3)}
    checkpoints = fo.Checkpoints(tmp_path / "good")
    checkpoints.save(1, *expected)
    checkpoints.save(2, *expected)
    files = files_of(tmp_path / "good" / "2")
    noticed = []
    for file in files:
        copy = tmp_path / "damaged"
        shutil.copytree(tmp_path / "good", copy)
        damage(copy / file.relative_to(tmp_path / "good"))
        try:
            restored = fo.Checkpoints(copy).restore(*jax.tree.map(blank, expected))
            fo.testing.assert_equal(tuple(restored), (2, *expected))
        except ValueError as error:
            noticed.append(file.name)
            assert "The checkpoint of step 2 in" in str(error)
            assert "is damaged: `" in str(error)
            assert str(error).endswith("There are others, of step 1.")
        shutil.rmtree(copy)
    assert {"leaves.json", "zarr.json", "0", "c"} == set(noticed)


def test_no_checkpoint_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no complete checkpoint in .* exist"):
        fo.Checkpoints(tmp_path / "nowhere").restore(PARAMS, ())
    with pytest.raises(FileNotFoundError, match=r"no complete checkpoint in .*`\."):
        fo.Checkpoints(tmp_path).restore(PARAMS, ())
    checkpoints = fo.Checkpoints(tmp_path)
    checkpoints.save(3, PARAMS, ())
    with pytest.raises(
        FileNotFoundError, match=r"no checkpoint of step 2 in .* steps 3\."
    ):
        checkpoints.restore(PARAMS, (), step=2)
    file = tmp_path / "file"
    file.write_text("no directory")
    with pytest.raises(NotADirectoryError, match=r"`.*file` is not a directory"):
        fo.Checkpoints(file).restore(PARAMS, ())


def test_steps_only_grow(tmp_path):
    checkpoints = fo.Checkpoints(tmp_path)
    with pytest.raises(ValueError, match="`step` must be at least 0, got -1"):
        checkpoints.save(-1, PARAMS, ())
    checkpoints.save(3, PARAMS, ())
    words = "Cannot save step 2 to .*: it already holds step 3, and steps must increase"
    with pytest.raises(ValueError, match=words):
        checkpoints.save(2, PARAMS, ())
    with pytest.raises(ValueError, match="`keep` must be at least 1"):
        fo.Checkpoints(tmp_path, keep=0)


def test_what_cannot_be_saved(tmp_path):
    checkpoints = fo.Checkpoints(tmp_path)
    gone = jnp.ones(3)
    gone.delete()
    with pytest.raises(ValueError, match=r"`params\['a'\]` is deleted: it was donated"):
        checkpoints.save(0, {"a": gone}, ())
    with pytest.raises(ValueError, match=r"`params\['a'\]` is only a shape"):
        checkpoints.save(0, {"a": jax.ShapeDtypeStruct((), "float32")}, ())
    with pytest.raises(ValueError, match=r"`state\['f'\]` is <.*no checkpoint can"):
        checkpoints.save(0, PARAMS, {"f": object()})
    with pytest.raises(ValueError, match=r"`params\['a'\]` has dtype <U4, which no"):
        checkpoints.save(0, {"a": np.array(["text"])}, ())
    assert checkpoints.latest is None


def test_pieces_that_do_not_fit(tmp_path):
    stages = layout(2)
    params, states = stages.start()
    checkpoints = fo.Checkpoints(tmp_path)
    with pytest.raises(TypeError, match="`params` must be a tuple of 2 trees"):
        checkpoints.save(0, params[0], states, stages.staged)
    with pytest.raises(ValueError, match="`state` must have one tree for each"):
        checkpoints.save(0, params, states[:1], stages.staged)
    with pytest.raises(ValueError, match=r"`params\[0\]` does not match stage 0 of"):
        checkpoints.save(0, params[::-1], states, stages.staged)
    with pytest.raises(ValueError, match=r"`params\[1\]` is None, but stage 1"):
        checkpoints.save(0, (params[0], None), states, stages.staged)
    assert checkpoints.latest is None


def test_says_what_to_install():
    code = """
import sys

sys.modules["orbax"] = sys.modules["orbax.checkpoint"] = None
import functional_opt as fo

try:
    fo.Checkpoints("here")
except ModuleNotFoundError as error:
    print(error)
"""
    printed = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(fo.__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert 'python -m pip install "functional_opt[checkpoint]"' in printed
