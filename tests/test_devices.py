"""Stages on devices and meshes of their own: what moves, what waits, what is copied."""

import contextlib
import functools
from collections import Counter

import functional_opt as fo
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compilations import compilations
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from rooms import batches


CLIPPED = optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(1e-2))
SPREAD = (0, 1, 2, 3)
SHARED = (0, 1, 0, 1)
TOGETHER = (2, 2, 2, 2)


def make_params(num_stages=4, width=8):
    keys = iter(jax.random.split(jax.random.key(0), 2 * num_stages))
    return [
        {
            "weight": jax.random.normal(next(keys), (width, width)),
            "bias": jax.random.normal(next(keys), (width,)),
        }
        for _ in range(num_stages)
    ]


class Training:
    """Stages that are ready for a step."""

    def __init__(self, devices, tx=CLIPPED, donate=True):
        self.params = make_params(len(devices))
        self.partition = fo.partition(self.params, list(range(len(devices))))
        self.staged = fo.stage_local(tx, self.params, self.partition, donate=donate)
        pieces = self.partition.split(self.params)
        places = tuple(jax.devices()[number] for number in devices)
        self.pieces = jax.device_put(pieces, places, may_alias=False)
        self.gradients = [jax.jit(lambda tree: jax.tree.map(jnp.sin, tree))] * 4
        self.states = self.staged.init(self.pieces)

    def grads(self):
        return tuple(f(x) for f, x in zip(self.gradients, self.pieces, strict=True))

    def step(self):
        self.pieces, self.states = self.staged.step(
            self.grads(), self.states, self.pieces
        )


@contextlib.contextmanager
def reads_of_values(monkeypatch):
    """Every time an array's value is brought to the host."""
    array, reads = type(jnp.zeros(())), []

    def watch(owner, name, wrap):
        original = getattr(owner, name)
        monkeypatch.setattr(owner, name, wrap(original, name))

    def counted(original, name):
        @functools.wraps(original)
        def read(*args, **kwargs):
            reads.append(name)
            return original(*args, **kwargs)

        return read

    def counted_property(original, name):
        return property(counted(original.fget, name))

    with monkeypatch.context():
        for name in ("__array__", "__float__", "__int__", "__bool__", "tolist"):
            watch(array, name, counted)
        watch(array, "_value", counted_property)
        watch(jax, "device_get", counted)
        watch(np, "asarray", counted)
        yield reads


def test_the_counter_of_reads_counts(monkeypatch):
    with reads_of_values(monkeypatch) as reads:
        for read in (float, bool, np.asarray, jax.device_get):
            before = len(reads)
            read(jnp.sin(1.0))
            assert len(reads) > before


@pytest.mark.parametrize("devices", [SPREAD, SHARED, TOGETHER])
def test_nothing_is_fetched_to_the_host(devices, monkeypatch):
    training = Training(devices)
    training.step()
    with reads_of_values(monkeypatch) as reads, jax.transfer_guard("disallow"):
        for _ in range(3):
            training.step()
    assert reads == []


@pytest.mark.parametrize("devices", [SPREAD, SHARED, TOGETHER])
def test_the_first_step_needs_no_host_either(devices):
    training = Training(devices)
    with jax.transfer_guard("disallow"):
        training.step()


def test_a_step_may_be_part_of_a_larger_program():
    training = Training(TOGETHER, donate=False)
    given = training.grads(), training.states, training.pieces
    found = jax.jit(training.staged.step)(*given)
    fo.testing.assert_equal(found, training.staged.step(*given))


def test_a_step_returns_before_its_work_is_done():
    @jax.jit
    def slow(tree, length):
        work = jnp.eye(64)
        work = jax.lax.fori_loop(
            0, length, lambda i, x: x + 1e-3 * jnp.sin(x) @ x, work
        )
        return jax.tree.map(lambda leaf: leaf + 0 * work.sum(), tree)

    training = Training(SPREAD)
    training.step()
    slow(training.pieces[-1], 1)
    early = []
    # The first lengths may be over before a busy machine has started all programs.
    for length in [2**power for power in range(10, 18)]:
        last = slow(training.pieces[-1], length)
        grads = (*training.grads()[:-1], last)
        new, states = training.staged.step(grads, training.states, training.pieces)
        early.append(not any(x.is_ready() for x in jax.tree.leaves((new, last))))
        training.pieces, training.states = jax.block_until_ready((new, states))
        if early[-1]:
            break
    assert early[-1]


@pytest.fixture
def compiled(monkeypatch):
    """The text of each program of a stage that is compiled ahead of its first run."""
    compile, texts = jax.stages.Lowered.compile, []

    def recording(lowered, *args, **kwargs):
        program = compile(lowered, *args, **kwargs)
        if "jit_stage_" in (text := program.as_text() or "").partition(",")[0]:
            texts.append(text)
        return program

    monkeypatch.setattr(jax.stages.Lowered, "compile", recording)
    return texts


@pytest.mark.parametrize("devices", [SPREAD, SHARED, TOGETHER])
def test_no_program_copies(devices, compiled):
    training = Training(devices)
    compiled.clear()
    training.step()
    assert len(compiled) == 2 * len({*devices})  # messages and results
    for text in compiled:
        assert " copy(" not in text and " copy-start(" not in text
    assert sum("input_output_alias={" in text for text in compiled) == len({*devices})


def pointers(tree):
    return [
        shard.data.unsafe_buffer_pointer()
        for leaf in jax.tree.leaves(tree)
        for shard in leaf.addressable_shards
    ]


@pytest.mark.parametrize("devices", [SPREAD, SHARED, TOGETHER])
def test_parameters_and_state_stay_where_they_are_in_memory(devices):
    training = Training(devices)
    before = pointers((training.pieces, training.states))
    for _ in range(2):
        training.step()
    assert pointers((training.pieces, training.states)) == before


@pytest.mark.parametrize("devices", [SPREAD, SHARED, TOGETHER])
@pytest.mark.parametrize("tx", [optax.adam(1e-2), CLIPPED], ids=["adam", "clipped"])
def test_a_step_runs_few_programs(devices, tx):
    """Each program is compiled once for its devices, however many stages it is for."""
    training = Training(devices, tx)
    grads = training.grads()
    with compilations() as names:
        training.staged.step(grads, training.states, training.pieces)
    groups, rounds = len({*devices}), training.staged.rounds
    compiled = [name for name in names if name.startswith("jit(")]
    assert Counter(compiled) == +Counter(
        {
            "jit(stage_messages)": groups * rounds,
            "jit(stage_results)": groups,
            "jit(gather)": rounds if groups > 1 else 0,
        }
    )


@pytest.mark.parametrize("devices", [SPREAD, SHARED, TOGETHER])
@pytest.mark.parametrize("tx", [optax.adam(1e-2), CLIPPED], ids=["adam", "clipped"])
def test_a_step_moves_nothing(devices, tx):
    training = Training(devices, tx)
    training.step()
    grads = training.grads()
    with jax.transfer_guard("disallow_explicit"), compilations() as names:
        training.staged.step(grads, training.states, training.pieces)
    assert names == []


def test_stages_of_many_leaves_have_programs_of_their_own():
    sizes = [200, 40, 300, 10, 10]
    found = batches(range(5), sizes)
    assert list(found) == [(0, 1), (2,), (3, 4)]


ROWS, COLUMNS = PartitionSpec("data"), PartitionSpec(None, "data")


def shard(pieces, meshes, spec):
    def sharding(leaf, mesh):
        return NamedSharding(mesh, spec if leaf.ndim > 1 else PartitionSpec())

    return tuple(
        jax.device_put(piece, jax.tree.map(lambda x, m=mesh: sharding(x, m), piece))
        for piece, mesh in zip(pieces, meshes, strict=True)
    )


def mesh_of(*numbers):
    return Mesh(np.array(jax.devices())[list(numbers)], ("data",))


MESHES = {
    "apart": [mesh_of(0, 1), mesh_of(2, 3), mesh_of(4, 5), mesh_of(6, 7)],
    "of two sizes": [mesh_of(0, 1, 2, 3), mesh_of(4), mesh_of(5, 6), mesh_of(7)],
    "shared": [mesh_of(0, 1), mesh_of(2, 3), mesh_of(0, 1), mesh_of(2, 3)],
}


@pytest.mark.parametrize("given", [False, True], ids=["found", "given"])
@pytest.mark.parametrize("spec", [ROWS, COLUMNS], ids=["rows", "columns"])
@pytest.mark.parametrize("name", MESHES)
def test_stages_on_meshes_keep_the_sharding_of_each_leaf(name, spec, given):
    params, meshes = make_params(), MESHES[name]
    partition = fo.partition(params, list(range(4)))
    staged = fo.stage_local(
        CLIPPED, params, partition, meshes=meshes if given else None
    )
    pieces = shard(partition.split(params), meshes, spec)
    with jax.transfer_guard("disallow"):
        states = staged.init(pieces)
    for piece, state in zip(pieces, states, strict=True):
        adam = state[1][0]
        wanted = [leaf.sharding for leaf in jax.tree.leaves(piece)]
        for tree in (adam.mu, adam.nu):
            assert [leaf.sharding for leaf in jax.tree.leaves(tree)] == wanted
    before = [leaf.sharding for leaf in jax.tree.leaves((pieces, states))]
    state = jax.jit(CLIPPED.init)(params)
    for _ in range(2):
        grads = jax.tree.map(jnp.sin, pieces)
        updates, _ = staged.update(grads, states, pieces)
        wanted = [leaf.sharding for leaf in jax.tree.leaves(pieces)]
        assert [leaf.sharding for leaf in jax.tree.leaves(updates)] == wanted
        pieces, states = staged.step(grads, states, pieces)
        assert [leaf.sharding for leaf in jax.tree.leaves((pieces, states))] == before
        params, state = whole_step(jax.tree.map(jnp.sin, params), state, params)
    found = partition.merge(pieces), staged.merge_state(states)
    # The squares in shards of columns are added in another order: a last bit of the
    # norm, and more of a parameter that its update nearly cancels.
    grade = "bounded" if spec == COLUMNS else "exact"
    fo.testing.assert_equal(found, (params, state), grade)


@jax.jit
def whole_step(grads, state, params):
    updates, state = CLIPPED.update(grads, state, params)
    return optax.apply_updates(params, updates), state


@pytest.mark.parametrize("given", [False, True], ids=["found", "given"])
@pytest.mark.parametrize("name", MESHES)
def test_a_state_that_is_split_goes_where_init_puts_it(name, given):
    params, meshes = make_params(), MESHES[name]
    partition = fo.partition(params, list(range(4)))
    staged = fo.stage_local(
        CLIPPED, params, partition, meshes=meshes if given else None, donate=True
    )
    pieces = shard(partition.split(params), meshes, ROWS)
    state = jax.jit(CLIPPED.init)(params)
    states = staged.split_state(state, pieces)
    expected = staged.init(pieces)
    fo.testing.assert_equal(states, expected)
    wanted = [leaf.sharding for leaf in jax.tree.leaves(expected)]
    assert [leaf.sharding for leaf in jax.tree.leaves(states)] == wanted
    staged.step(jax.tree.map(jnp.sin, pieces), states, pieces)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(state))


def test_a_state_is_split_for_stages_that_are_nowhere_yet():
    params = jax.tree.map(np.asarray, make_params(2))
    partition = fo.partition(params, [0, 2], num_stages=3)
    staged = fo.stage_local(CLIPPED, params, partition, donate=True)
    pieces, state = partition.split(params), jax.jit(CLIPPED.init)(params)
    states = staged.split_state(state, pieces)
    fo.testing.assert_equal(states, staged.init(pieces))
    assert len({*pointers(states)}) == len(pointers(states))


def test_stages_on_one_device_share_no_memory_when_a_state_is_split():
    """Donated once, it would be gone for the others."""
    params, device = make_params(2), jax.devices()[0]
    partition = fo.partition(params, [0, 1])
    staged = fo.stage_local(
        CLIPPED, params, partition, meshes=[device, device], donate=True
    )
    states = staged.split_state(jax.jit(CLIPPED.init)(params))
    assert len({*pointers(states)}) == len(pointers(states))


def test_a_shard_is_updated_in_place():
    params, meshes = make_params(), MESHES["apart"]
    partition = fo.partition(params, list(range(4)))
    staged = fo.stage_local(CLIPPED, params, partition, donate=True)
    pieces = shard(partition.split(params), meshes, ROWS)
    states = staged.init(pieces)
    before = pointers((pieces, states))
    for _ in range(2):
        grads = jax.tree.map(jnp.sin, pieces)
        pieces, states = staged.step(grads, states, pieces)
    assert pointers((pieces, states)) == before


def test_a_stage_that_owns_nothing_has_its_counters_on_its_device():
    params = make_params(2)
    partition = fo.partition(params, [0, 2], num_stages=3)
    devices = tuple(jax.devices()[3:6])
    staged = fo.stage_local(CLIPPED, params, partition, meshes=devices)
    pieces = jax.device_put(partition.split(params), devices)
    states = staged.init(pieces)
    pieces, states = staged.step(pieces, states, pieces)
    assert all(x.devices() == {devices[1]} for x in jax.tree.leaves(states[1]))
    assert int(states[1][1][0].count) == 1


def test_meshes_that_overlap_in_part():
    params = make_params(2)
    partition = fo.partition(params, [0, 1])
    with pytest.raises(ValueError, match=r"stages 0, 1 share .* but not all"):
        fo.stage_local(
            CLIPPED, params, partition, meshes=[mesh_of(0, 1), mesh_of(1, 2)]
        )


def test_parameters_on_other_devices_than_the_meshes():
    params, devices = make_params(2), jax.devices()
    partition = fo.partition(params, [0, 1])
    staged = fo.stage_local(CLIPPED, params, partition, meshes=devices[:2])
    pieces = jax.device_put(partition.split(params), tuple(devices[1:3]))
    with pytest.raises(ValueError, match=r"meshes` puts stage 0 on .*0, but .* on .*1"):
        staged.init(pieces)
    staged.init(jax.device_put(pieces, tuple(devices[:2])))
    with pytest.raises(ValueError, match=r"meshes` puts stage 0 on .*0, but .* on .*1"):
        staged.init(pieces)


def test_each_step_is_where_its_parameters_are():
    params, devices = make_params(8), jax.devices()
    partition = fo.partition(params, list(range(8)))
    staged = fo.stage_local(CLIPPED, params, partition)
    pieces = partition.split(params)
    held = pieces, staged.init(pieces)
    expected = staged.step(pieces, held[1], pieces)
    meshes = (NamedSharding(mesh_of(0, 1), PartitionSpec()),) * 8
    for places in [tuple(devices), tuple(devices[::-1]), (devices[3],) * 8, meshes] * 2:
        own, states = (jax.device_put(trees, places) for trees in held)
        found = staged.step(own, states, own)
        fo.testing.assert_equal(found, expected)
        for new, given in zip(found[0], own, strict=True):
            assert jax.tree.map(where, new) == jax.tree.map(where, given)


def where(leaf):
    return frozenset(leaf.devices())


@pytest.mark.parametrize("tx", [optax.adam(1e-2), CLIPPED], ids=["adam", "clipped"])
@pytest.mark.parametrize("moved", ["grads", "states"])
def test_parameters_on_other_devices_than_the_rest(moved, tx):
    training = Training(SPREAD, tx)
    trees = {"grads": training.grads(), "states": training.states}
    stage = list(trees[moved])
    stage[2] = jax.device_put(stage[2], jax.devices()[7])
    trees[moved] = tuple(stage)
    name = "grads" if moved == "grads" else "state"
    with pytest.raises(
        ValueError,
        match=rf"of `{name}\[2\]` is on .*7, but .*of `params\[2\]` is on .*2",
    ):
        training.staged.step(trees["grads"], trees["states"], training.pieces)


@pytest.mark.parametrize("kind", [np.asarray, jnp.ones_like])
def test_gradients_on_no_stage_are_moved_to_it(kind):
    """As `jax.jit` does with arrays that the user has not put on a device."""
    params, devices = make_params(2), tuple(jax.devices()[1:3])
    partition = fo.partition(params, [0, 1])
    staged = fo.stage_local(CLIPPED, params, partition)
    pieces = jax.device_put(partition.split(params), devices)
    grads = jax.tree.map(lambda x: kind(np.asarray(x)), pieces)
    states = staged.init(pieces)
    found = staged.step(grads, states, pieces)
    on_stages = jax.device_put(grads, devices)
    fo.testing.assert_equal(found, staged.step(on_stages, states, pieces))
    for piece, device in zip(found[0], devices, strict=True):
        assert {d for x in jax.tree.leaves(piece) for d in x.devices()} == {device}
