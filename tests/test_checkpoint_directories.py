"""Where checkpoints are: local and remote directories, two writers, kills, names."""

import dataclasses
import os
import shutil
import threading

import fsspec
import functional_opt as fo
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from etils import epath
from fsspec.implementations.memory import MemoryFileSystem
from rooms import (
    checkpoint_directory as directories,
    checkpoint_files as files,
    saving,
)


PARAMS = {"w": jnp.arange(6.0).reshape(2, 3), "v": jnp.ones(3, jnp.bfloat16)}
STATE = optax.adam(1e-3).init(PARAMS)


class Bucket(MemoryFileSystem):
    """A store of objects in memory, which etils takes for `s3://`."""

    protocol = ("s3",)
    store: dict = {}  # noqa: RUF012
    pseudo_dirs = [""]  # noqa: RUF012

    @classmethod
    def _strip_protocol(cls, path):
        return MemoryFileSystem._strip_protocol(path.removeprefix("s3://"))


@pytest.fixture
def bucket(monkeypatch):
    fsspec.register_implementation("s3", Bucket, clobber=True)
    monkeypatch.setattr(Bucket, "store", {})
    monkeypatch.setattr(Bucket, "pseudo_dirs", [""])
    return "s3://bucket/run"


@pytest.fixture(params=["local", "remote"])
def directory(request, tmp_path, bucket):
    return str(tmp_path / "run") if request.param == "local" else bucket


def scaled(factor):
    return jax.tree.map(lambda x: x * (int(factor) % 1000), (PARAMS, STATE))


def save(checkpoints, step):
    checkpoints.save(step, *scaled(step))


def assert_complete(checkpoints, step):
    restored = checkpoints.restore(PARAMS, STATE, step=step)
    fo.testing.assert_equal(tuple(restored), (step, *scaled(step)))


def test_saves_and_restores(directory):
    checkpoints = fo.Checkpoints(directory, keep=2)
    assert checkpoints.steps == ()
    for step in (1, 3, 2**31, np.int64(2**40), jnp.int32(7)):
        if step == 7:
            with pytest.raises(ValueError, match="already holds step 1099511627776"):
                save(checkpoints, step)
        else:
            save(checkpoints, step)
    assert checkpoints.steps == (2**31, 2**40)
    again = fo.Checkpoints(directory)
    assert again.latest == 2**40
    for step in again.steps:
        assert_complete(again, step)
    assert len(list(epath.Path(directory).iterdir())) == 2


def test_a_local_path_and_an_object_of_epath(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    for given in ("~/run", epath.Path("~/other"), "here/run", tmp_path / "there"):
        save(fo.Checkpoints(given), 1)
        assert_complete(fo.Checkpoints(given), 1)
    assert {path.name for path in tmp_path.iterdir()} == {"home", "here", "there"}
    assert {path.name for path in (tmp_path / "home").iterdir()} == {"run", "other"}
    checkpoints = fo.Checkpoints("here/run")
    monkeypatch.chdir("/")
    assert checkpoints.steps == (1,)


def test_what_is_no_directory(tmp_path):
    with pytest.raises(ValueError, match=r"`ftp://host/run` cannot be .* `ftp://`"):
        fo.Checkpoints("ftp://host/run")
    with pytest.raises(ValueError, match=r"`gs:/bucket/run` is a URI without its sec"):
        fo.Checkpoints(type(tmp_path)("gs://bucket/run"))
    with pytest.raises(ValueError, match="must not be ''"):
        fo.Checkpoints("")
    with pytest.raises(ValueError, match=r"`gs:/bucket/run` is a URI without its sec"):
        fo.Checkpoints(str(type(tmp_path)("gs://bucket/run")))


def test_a_backend_that_is_missing(monkeypatch):
    def missing(*_, **__):
        raise ImportError("Please install gcsfs")

    monkeypatch.setattr(fsspec, "filesystem", missing)
    checkpoints = fo.Checkpoints("gs://bucket/run")
    with pytest.raises(ModuleNotFoundError, match=r"gs://bucket/run` .* install gcsfs"):
        save(checkpoints, 1)


def test_a_directory_that_cannot_be_written(tmp_path, monkeypatch):
    save(fo.Checkpoints(tmp_path), 1)

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    def copied(*_):
        raise AssertionError("something was copied")

    monkeypatch.setattr(type(epath.Path()), "mkdir", refuse)
    monkeypatch.setattr(saving, "shard_bytes", copied)
    with pytest.raises(PermissionError, match=r"Cannot save step 2: .* Permission"):
        save(fo.Checkpoints(tmp_path), 2)
    assert_complete(fo.Checkpoints(tmp_path), 1)


@pytest.mark.parametrize("shared", [True, False])
def test_two_writers_leave_only_complete_checkpoints(directory, shared):
    one = fo.Checkpoints(directory)
    writers = [one, one if shared else fo.Checkpoints(directory)]
    returned = []

    def write(number):
        for i in range(1, 6):
            for step in (10 * i, 10 * i + number):
                try:
                    save(writers[number], step)
                except ValueError as error:
                    assert "Cannot save step" in str(error), error
                else:
                    returned.append(step)

    threads = [threading.Thread(target=write, args=(k,)) for k in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert returned
    assert set(returned) == set(one.steps)
    for step in returned:
        assert_complete(one, step)
    assert len(list(epath.Path(directory).iterdir())) == len(one.steps)


def test_a_writer_that_another_one_overtakes(directory, monkeypatch):
    slow, fast = fo.Checkpoints(directory), fo.Checkpoints(directory)
    original = saving.merge_parts

    def overtaken(*arguments):
        monkeypatch.setattr(saving, "merge_parts", original)
        save(fast, 4)
        return original(*arguments)

    monkeypatch.setattr(saving, "merge_parts", overtaken)
    with pytest.raises(ValueError, match=r"step 3.*another writer"):
        save(slow, 3)
    assert slow.steps == (4,)
    assert_complete(slow, 4)
    assert len(list(epath.Path(directory).iterdir())) == 1


def test_writers_of_the_same_step_at_the_last_moment(directory, monkeypatch):
    """Both have looked what is there before either publishes."""
    slow, fast = fo.Checkpoints(directory), fo.Checkpoints(directory)
    original = directories._check_still_ours

    def check(*arguments):
        monkeypatch.setattr(directories, "_check_still_ours", original)
        original(*arguments)
        save(fast, 3)

    monkeypatch.setattr(directories, "_check_still_ours", check)
    with pytest.raises(ValueError, match=r"step 3.*another writer"):
        save(slow, 3)
    assert slow.steps == (3,)
    assert_complete(slow, 3)
    assert len(list(epath.Path(directory).iterdir())) == 1


def test_a_marker_taken_away_at_the_last_moment(bucket, monkeypatch):
    original = files.write_file
    checkpoints = fo.Checkpoints(bucket)

    def write(path, content):
        digest = original(path, content)
        if path.name == directories.MANIFEST:
            (path.parent.parent / directories.MARKER).unlink()
        return digest

    monkeypatch.setattr(directories, "write_file", write)
    with pytest.raises(ValueError, match=r"step 3.*another writer"):
        save(checkpoints, 3)
    assert checkpoints.steps == ()


class KilledError(BaseException):
    pass


@pytest.mark.parametrize("operation", ["unlink", "rmtree", "rename"])
@pytest.mark.parametrize("before", [True, False])
def test_killed_while_an_old_one_is_removed(directory, monkeypatch, operation, before):
    save(fo.Checkpoints(directory), 1)
    original = getattr(type(epath.Path()), operation)

    def killed(path, *arguments, **options):
        if before or operation == "rmtree":
            if operation == "rmtree" and path.name != "parts" and not before:
                shutil.rmtree(path / "default", ignore_errors=True)
            if path.name != "parts":
                raise KilledError
        result = original(path, *arguments, **options)
        if path.name != "parts":
            raise KilledError
        return result

    with monkeypatch.context() as patch:
        patch.setattr(type(epath.Path()), operation, killed)
        try:
            save(fo.Checkpoints(directory, keep=1), 2)
        except KilledError:
            pass
    checkpoints = fo.Checkpoints(directory, keep=1)
    for step in checkpoints.steps:
        assert_complete(checkpoints, step)
    assert 2 in checkpoints.steps
    save(checkpoints, 3)
    assert checkpoints.steps == (3,)
    assert len(list(epath.Path(directory).iterdir())) == 1


def test_what_a_kill_of_an_earlier_version_leaves(tmp_path):
    checkpoints = fo.Checkpoints(tmp_path)
    save(checkpoints, 1)
    save(checkpoints, 2)
    (tmp_path / "1" / "default" / "leaves.json").unlink()
    (tmp_path / "3.orbax-checkpoint-tmp").mkdir()
    assert checkpoints.steps == (2,)
    assert_complete(checkpoints, 2)
    save(checkpoints, 3)
    assert {path.name for path in tmp_path.iterdir()} == {"2", "3"}


def test_what_is_not_ours_is_left_alone(tmp_path):
    for name in ("1", "2024", "notes", "7.0123456789abcdef.writing.txt"):
        (tmp_path / name / "default").mkdir(parents=True)
        (tmp_path / name / "default" / "_METADATA").write_text("of another program")
    checkpoints = fo.Checkpoints(tmp_path, keep=1)
    save(checkpoints, 2023)
    with pytest.raises(FileExistsError, match="2024` exists, but"):
        save(checkpoints, 2024)
    save(checkpoints, 2025)
    names = {"1", "2024", "notes", "7.0123456789abcdef.writing.txt", "2025"}
    assert {path.name for path in tmp_path.iterdir()} == names


def test_a_manifest_that_got_lost_is_not_passed_over(tmp_path):
    checkpoints = fo.Checkpoints(tmp_path)
    save(checkpoints, 1)
    save(checkpoints, 2)
    (tmp_path / "2" / "default" / "leaves.json").unlink()
    with pytest.raises(ValueError, match=r"step 2 .* is missing.* step 1"):
        checkpoints.restore(PARAMS, STATE)
    assert_complete(checkpoints, 1)


@dataclasses.dataclass
class Named:
    json: object


@dataclasses.dataclass
class Outer:
    leaves: object


jax.tree_util.register_dataclass(Named, ["json"], [])
jax.tree_util.register_dataclass(Outer, ["leaves"], [])


@pytest.mark.parametrize(
    "params",
    [
        Outer(Named(jnp.ones(3))),
        {"x" * 300: jnp.ones(2), "ä" * 300: jnp.zeros(2), "ä" * 299 + "b": jnp.ones(3)},
        {"w": jnp.ones(1), "W": jnp.zeros(1), "ß": jnp.ones(2), "SS": jnp.zeros(2)},
        {"": jnp.ones(1), ".": jnp.ones(2), "..": jnp.ones(3), "a/../b": jnp.ones(4)},
        {"nul\0": jnp.ones(1), "line\n": jnp.ones(2), "\ud800": jnp.ones(3)},
        {"parts": jnp.ones(1), "leaves.json": jnp.ones(2), "c": {"0": jnp.ones(3)}},
        jnp.ones(4),
    ],
    ids=["manifest", "long", "case", "dots", "odd", "reserved", "bare"],
)
def test_every_path_that_a_model_can_have(directory, params):
    state = optax.adam(1e-3).init(params)
    checkpoints = fo.Checkpoints(directory)
    checkpoints.save(1, params, state)
    blank = jax.tree.map(lambda x: x * 0 - 1, (params, state))
    restored = checkpoints.restore(*blank)
    fo.testing.assert_equal(tuple(restored), (1, params, state))


def test_a_checkpoint_copied_to_a_bucket(tmp_path, bucket):
    save(fo.Checkpoints(tmp_path), 5)
    for path in tmp_path.rglob("*"):
        if path.is_file():
            target = epath.Path(bucket) / os.fspath(path.relative_to(tmp_path))
            target.write_bytes(path.read_bytes())
    checkpoints = fo.Checkpoints(bucket, keep=2)
    assert_complete(checkpoints, 5)
    save(checkpoints, 6)
    assert checkpoints.steps == (5, 6)
