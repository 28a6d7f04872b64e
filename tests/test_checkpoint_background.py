"""Saves in the background, at the size of a real model."""

import logging
import threading
import time

import functional_opt as fo
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rooms import saving


TX = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2))
STAGES = 8
LAYERS = 48


def make_params():
    """Layers of two dtypes in turn, and an embedding that two stages own."""
    keys = jax.random.split(jax.random.key(0), LAYERS)
    params = {
        f"layer{i:02}": jax.random.normal(key, (16, 8), jnp.bfloat16 if i % 2 else None)
        for i, key in enumerate(keys)
    }
    return {**params, "embed": jnp.ones((32, 8))}


def stage_of(path, leaf):
    name = path[0].key
    return {0, STAGES - 1} if name == "embed" else int(name[5:]) * STAGES // LAYERS


@pytest.fixture(scope="module")
def staged():
    params = make_params()
    partition = fo.partition(params, stage_of)
    devices = jax.devices()[:STAGES]
    return fo.stage_local(TX, params, partition, meshes=devices, donate=True)


def start(staged):
    pieces = staged.partition.split(make_params())
    pieces = jax.device_put(pieces, tuple(jax.devices()[:STAGES]))
    return pieces, staged.init(pieces)


def step(staged, pieces, states):
    return staged.step(jax.tree.map(jnp.sin, pieces), states, pieces)


def on_host(staged, pieces, states):
    whole = staged.partition.merge(pieces), staged.merge_state(states)
    return jax.tree.map(np.array, whole)


@pytest.fixture
def held(monkeypatch):
    """Keeps saves from writing any array until it is set."""
    go, original = threading.Event(), saving.shard_bytes

    def wait(shard):
        assert go.wait(60)
        return original(shard)

    monkeypatch.setattr(saving, "shard_bytes", wait)
    yield go
    go.set()


def test_the_next_steps_do_not_change_what_is_saved(tmp_path, staged, held):
    checkpoints = fo.Checkpoints(tmp_path)
    pieces, states = step(staged, *start(staged))
    expected = on_host(staged, pieces, states)
    checkpoints.save(1, pieces, states, staged, wait=False)
    for _ in range(3):  # donates what was saved
        pieces, states = step(staged, pieces, states)
    assert checkpoints.steps == ()
    progress = checkpoints.progress
    assert (progress.step, progress.written) == (1, 0)
    assert progress.total == sum(leaf.nbytes for leaf in jax.tree.leaves(expected))
    held.set()
    checkpoints.wait()
    assert checkpoints.steps == (1,)
    assert checkpoints.progress is None
    restored = checkpoints.restore(*start(staged), staged=staged)
    fo.testing.assert_equal(on_host(staged, *restored[1:]), expected)
    params = make_params()
    whole = checkpoints.restore(params, jax.jit(TX.init)(params))
    fo.testing.assert_equal(whole[1:], expected)
    partition = fo.partition(params, lambda path, leaf: {0, 2} if leaf.ndim == 1 else 1)
    fewer = fo.stage_local(TX, params, partition)
    pieces = partition.split(params)
    restored = checkpoints.restore(pieces, fewer.init(pieces), fewer)
    fo.testing.assert_equal(on_host(fewer, *restored[1:]), expected)


def test_the_next_save_and_restore_wait(tmp_path, staged, held):
    checkpoints = fo.Checkpoints(tmp_path, keep=1)
    pieces, states = start(staged)
    checkpoints.save(1, pieces, states, staged, wait=False)
    threading.Timer(0.3, held.set).start()
    checkpoints.save(2, pieces, states, staged, wait=False)
    assert 1 in checkpoints.steps or 2 in checkpoints.steps
    assert checkpoints.restore(pieces, states, staged).step == 2


@pytest.mark.parametrize("how", ["wait", "save", "restore"])
def test_a_failure_surfaces_once(tmp_path, monkeypatch, caplog, how):
    checkpoints = fo.Checkpoints(tmp_path)
    params = {"w": jnp.ones(3)}
    checkpoints.save(1, params, ())

    def fail(*_):
        raise OSError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(saving, "shard_bytes", fail)
        checkpoints.save(2, params, (), wait=False)
        again = {
            "wait": checkpoints.wait,
            "save": lambda: checkpoints.save(3, params, ()),
            "restore": lambda: checkpoints.restore(params, ()),
        }[how]
        with pytest.raises(ValueError, match=r"`params\['w'\]` .* the disk is full"):
            again()
    assert "the disk is full" in caplog.text
    checkpoints.wait()
    assert checkpoints.steps == (1,)
    checkpoints.save(2, params, (), wait=False)
    checkpoints.wait()
    assert checkpoints.steps == (1, 2)
    assert {path.name for path in tmp_path.iterdir()} == {"1", "2"}


def test_mistakes_are_found_before_anything_is_copied(tmp_path):
    checkpoints = fo.Checkpoints(tmp_path)
    params = {"w": jnp.ones(3)}
    checkpoints.save(2, params, ())
    with pytest.raises(ValueError, match="steps must increase"):
        checkpoints.save(1, params, (), wait=False)
    params["w"].delete()
    with pytest.raises(ValueError, match=r"`params\['w'\]` is deleted"):
        checkpoints.save(3, params, (), wait=False)


def test_a_step_is_held_no_longer_than_the_copy(tmp_path):
    """64 MB, of which the files take far longer than the copy."""
    params = {f"w{i}": jnp.ones((1024, 1024)) * i for i in range(16)}
    jax.block_until_ready(params)
    checkpoints = fo.Checkpoints(tmp_path)
    held, copies, whole = [], [], []
    for number in range(5):
        begin = time.perf_counter()
        checkpoints.save(number, params, (), wait=False)
        held.append(time.perf_counter() - begin)
        checkpoints.wait()
        whole.append(time.perf_counter() - begin)
        begin = time.perf_counter()
        jax.tree.map(lambda x: np.array(x, copy=True), params)
        copies.append(time.perf_counter() - begin)
    print(f"held {min(held):.3f} s, copy {min(copies):.3f} s, whole {min(whole):.3f} s")
    assert min(held) < 3 * min(copies) + 0.05
    assert min(held) < min(whole) / 2


def test_progress_of_large_saves_is_logged(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(saving, "REPORT_EVERY", 0)
    with caplog.at_level(logging.INFO, "functional_opt"):
        fo.Checkpoints(tmp_path).save(1, {"w": jnp.ones(3)}, ())
    assert f"Saving step 1 to `{tmp_path}`: 0.0 of 0.0 GB are written." in caplog.text
