"""States sharded over the data-parallel devices of each stage: 40 leaves, 4 stages."""

import re
from pathlib import Path
from typing import Any

import functional_opt as fo
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from sharded_states_table import cases, label, PAGE


DEVICES = np.array(jax.devices())
SHAPES = [(4, 6), (6, 8), (2,), (), (3,), (5, 3), (1, 4), (8,), (2, 2, 2), (7, 2)]
SQUARE = [(2, 2), (2, 2), (2,), (), (3,), (2, 2), (1, 1), (8,), (2, 2, 2), (2, 2)]
STAGES = 4


def make_params(shapes):
    keys = iter(jax.random.split(jax.random.key(0), len(shapes) * STAGES))
    return [[jax.random.normal(next(keys), s) for s in shapes] for _ in range(STAGES)]


PARAMS = make_params(SHAPES)
PARTITION = fo.partition(PARAMS, [0, 1, 2, 3])


def meshes_of(size):
    rows = DEVICES[: size * (8 // size)].reshape(-1, size)
    return [Mesh(rows[s % len(rows)], ("data",)) for s in range(STAGES)]


class Training:
    def __init__(self, tx, size, params=PARAMS, **options):
        self.meshes = meshes_of(size)[: len(params)]
        self.partition = fo.partition(params, [*range(len(params))])
        self.staged = fo.stage_local(
            tx, params, self.partition, meshes=self.meshes, **options
        )
        self.pieces = self.put(params)
        self.states = self.staged.init(self.pieces)

    def put(self, tree):
        copies = jax.tree.map(jnp.copy, self.partition.split(tree))
        return tuple(
            jax.device_put(piece, NamedSharding(mesh, PartitionSpec()))
            for piece, mesh in zip(copies, self.meshes, strict=True)
        )

    def step(self, grads):
        self.pieces, self.states = self.staged.step(
            self.put(grads), self.states, self.pieces
        )

    def merged(self):
        return self.partition.merge(self.pieces), self.staged.merge_state(self.states)


def waves(step, params=PARAMS):
    return jax.tree.map(lambda x: jnp.sin(x + step), params)


def stairs(step, params):
    """Gradients with singular values that are far apart, and none that is zero.

    Others do not determine the eigenvectors of SOAP: those of a matrix that is not
    square, or where two singular values are nearly equal.
    """
    return jax.tree.map(
        lambda g: 0.2 * g + jnp.diag(jnp.arange(1.0, 1 + len(g))) if g.ndim == 2 else g,
        waves(step, params),
    )


def whole_step(tx):
    @jax.jit
    def step(grads, state, params):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step


def on_one_device(tree):
    return jax.device_put(jax.device_get(tree), DEVICES[0])


def bytes_on_a_device(states):
    """Of the fullest device."""
    totals = dict.fromkeys(DEVICES.flat, 0)
    for leaf in jax.tree.leaves(states):
        for shard in leaf.addressable_shards:
            totals[shard.device] += shard.data.nbytes
    return max(totals.values())


# Sums over a sharded dimension, and products of such matrices, round differently.
TRANSFORMATIONS: dict[str, tuple[Any, Any]] = {
    "AdamW, clipped": (
        optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(1e-2)),
        "exact",
    ),
    "Lion": (optax.lion(1e-2), "exact"),
    "Adafactor": (
        optax.adafactor(1e-2, min_dim_size_to_factor=2, momentum=0.9),
        "bounded",
    ),
    "LAMB": (optax.lamb(1e-2), "bounded"),
    "Muon": (optax.contrib.muon(1e-2), "bounded"),
}
OTHERS: dict[str, tuple[Any, Any]] = {
    "accumulate, skip, averages": (
        fo.Recipe(
            optimizer=fo.AdamW(),
            schedule=1e-2,
            clip_norm=0.5,
            accumulate=2,
            skip_nonfinite=True,
            ema_decay=0.9,
        ).build(),
        "exact",
    ),
    "ScheduleFreeAdamW": (fo.ScheduleFreeAdamW().build(1e-2), "close"),
    "NovoGrad": (optax.novograd(1e-2), "bounded"),
    "SOAP": (fo.SOAP().build(1e-2), "bounded"),
}


@pytest.mark.parametrize("name", TRANSFORMATIONS | OTHERS)
def test_the_same_as_optax(name):
    tx, grade = (TRANSFORMATIONS | OTHERS)[name]
    size, first, grads = 4, PARAMS, waves
    if name == "SOAP":
        size, first, grads = 2, make_params(SQUARE), stairs
    training = Training(tx, size, first, shard_state="data", donate=True)
    layout = [leaf.sharding for leaf in jax.tree.leaves(training.states)]
    assert any("data" in str(sharding.spec) for sharding in layout)
    reference, params, state = whole_step(tx), first, jax.jit(tx.init)(first)
    fo.testing.assert_equal(training.merged(), (params, state))
    for k in range(3):
        training.step(grads(k, first))
        params, state = reference(grads(k, first), state, params)
        fo.testing.assert_equal(training.merged(), (params, state), grade=grade)
        if grade != "exact":  # Each step alone: differences would grow.
            params, state = on_one_device(training.merged())
    after = jax.tree.leaves(training.states)
    assert [leaf.sharding for leaf in after] == layout
    pieces = jax.tree.leaves(training.pieces)
    assert all(leaf.sharding.is_fully_replicated for leaf in pieces)


def test_the_table_in_the_documentation():
    page = Path(__file__).parents[1] / "docs" / "stage_local.md"
    (table,) = re.findall(r"\| with `shard_state` .*\n((?:\|.*\n)+)", page.read_text())
    grades = dict(re.findall(r"\| (.*) \| (\w+) \|", table))
    found = {name: grade for name, (_, grade) in (TRANSFORMATIONS | OTHERS).items()}
    listed = {n: g for names, g in grades.items() for n in names.split("; ")}
    assert found == listed


def test_the_page_has_every_transformation_once():
    lines = re.findall(r"^\| (.*) \| (`.*) \|$", PAGE.read_text(), re.MULTILINE)
    kinds, names = zip(*lines, strict=True)
    listed = [name for line in names for name in line.split("; ")]
    assert sorted(listed) == sorted(map(label, cases()))
    assert set(kinds) <= {"exact", "close", "bounded", "nothing to shard"}


def test_the_first_dimension_that_divides():
    training = Training(optax.adam(1e-2), 2, shard_state="data")
    moments = training.states[0][0].mu[0]
    assert [x.sharding.shard_shape(x.shape) for x in moments] == [
        *[(2, 6), (3, 8), (1,), (), (3,)],
        *[(5, 3), (1, 2), (4,), (1, 2, 2), (7, 1)],
    ]


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_memory_falls_as_the_axis_grows(name):
    params = {"weights": [jnp.ones((16, 40))] * 8, "bias": jnp.ones(3)}
    partition, found = fo.partition(params, 0), []
    for size in (1, 2, 4, 8):
        mesh = Mesh(DEVICES[:size], ("data",))
        staged = fo.stage_local(
            TRANSFORMATIONS[name][0],
            params,
            partition,
            meshes=[mesh],
            shard_state="data",
        )
        pieces = jax.device_put((params,), NamedSharding(mesh, PartitionSpec()))
        states = staged.init(pieces)
        _, states = staged.step(pieces, states, pieces)
        found.append(bytes_on_a_device(states))
    for size, nbytes in zip((2, 4, 8), found[1:], strict=True):
        # Counters, the moments of a bias of three, and factors of which an axis of 8
        # divides no dimension stay as they are.
        assert found[0] / size <= nbytes <= found[0] / size + 200


def test_a_whole_state_fits_any_sharding():
    tx = optax.adam(1e-2)
    first = Training(tx, 4, shard_state="data")
    first.step(waves(0))
    host = jax.device_get(first.staged.merge_state(first.states))
    state = jax.tree.map(jnp.asarray, host)
    for size, option in [(2, "data"), (4, None), (2, None), (8, ("data",))]:
        other = Training(tx, size, shard_state=option)
        expected = [leaf.sharding for leaf in jax.tree.leaves(other.states)]
        for pieces in (None, other.pieces):
            states = other.staged.split_state(state, pieces)
            fo.testing.assert_equal(other.staged.merge_state(states), state)
            found = [leaf.sharding for leaf in jax.tree.leaves(states)]
            assert found == expected


def test_a_checkpoint_fits_any_sharding(tmp_path):
    """Also that of SOAP, with matrices of its own; the next step is the same."""
    tx, grade = OTHERS["SOAP"]
    params = [PARAMS[0][:3], PARAMS[1][:3]]
    # From the same gradient twice, the eigenvectors of SOAP would not be determined.
    before, grads = (waves(k, params) for k in (0, 1))
    first = Training(tx, 4, params, shard_state="data")
    first.step(before)
    checkpoints = fo.Checkpoints(tmp_path)
    checkpoints.save(1, first.pieces, first.states, first.staged)
    saved = first.merged()
    first.step(grads)
    for size, option in [(2, "data"), (4, None)]:
        other = Training(tx, size, params, shard_state=option)
        targets = jax.tree.leaves((other.pieces, other.states))
        restored = checkpoints.restore(other.pieces, other.states, other.staged)
        other.pieces, other.states = restored.params, restored.state
        found = jax.tree.leaves((other.pieces, other.states))
        assert [x.sharding for x in found] == [x.sharding for x in targets]
        fo.testing.assert_equal(other.merged(), saved)
        other.step(grads)
        fo.testing.assert_equal(other.merged(), first.merged(), grade=grade)


def test_a_parameter_that_is_sharded_already():
    mesh = Mesh(DEVICES.reshape(2, 4), ("data", "model"))
    params = {"a": jnp.ones((4, 8)), "b": jnp.ones((4, 8)), "c": jnp.ones((6, 8))}
    specs = {"a": ("model",), "b": ("data", "model"), "c": (None, "model")}
    partition = fo.partition(params, 0)
    staged = fo.stage_local(
        optax.adam(1e-2), params, partition, meshes=[mesh], shard_state="data"
    )
    pieces = {
        name: jax.device_put(x, NamedSharding(mesh, PartitionSpec(*specs[name])))
        for name, x in params.items()
    }
    (state,) = staged.init((pieces,))
    found = {name: tuple(leaf.sharding.spec) for name, leaf in state[0].mu.items()}
    assert found == {
        "a": ("model", ("data",)),
        "b": ("data", "model"),
        "c": (("data",), "model"),
    } or found == {"a": ("model", "data"), "b": specs["b"], "c": ("data", "model")}


def test_whole_trees():
    training = Training(optax.adam(1e-2), 2, shard_state="data")
    tx = training.staged.whole
    params, state = tx.join(training.pieces, training.states)
    made = tx.init(params)
    shardings = [[x.sharding for x in jax.tree.leaves(t)] for t in (made, state)]
    assert shardings[0] == shardings[1]
    grads, _ = tx.join(training.put(waves(0)), training.states)
    found = tx.step(grads, state, params)
    training.step(waves(0))
    fo.testing.assert_equal(found, training.merged())


def test_an_axis_named_twice():
    with pytest.raises(ValueError, match=r"`shard_state` names .* 'data' twice"):
        Training(optax.adam(0.1), 2, shard_state=("data", "data"))


def test_an_unknown_axis():
    with pytest.raises(ValueError, match=r"'model'.*stage 0 has the axes \('data',\)"):
        Training(optax.adam(1e-2), 4, shard_state="model")


@pytest.mark.parametrize("given", [False, True])
def test_a_stage_without_a_mesh(given):
    devices = jax.devices()[:STAGES]
    with pytest.raises(
        ValueError, match=r"`shard_state`.*stage 0 is on a single device"
    ):
        staged = fo.stage_local(
            optax.adam(1e-2),
            PARAMS,
            PARTITION,
            meshes=devices if given else None,
            shard_state="data",
        )
        staged.init(jax.device_put(PARTITION.split(PARAMS), tuple(devices)))
