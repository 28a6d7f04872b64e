"""Checkpoints of several processes, each of which has stages of its own."""

import os
import socket
import subprocess
import sys

import checkpoint_process
import functional_opt as fo
import jax
from checkpoint_process import assert_restored, in_stages, make_meshes, place_all, STEP


PROCESSES = int(os.environ.get("PROCESSES", "2"))


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def run_processes(*arguments):
    """Runs the script in every process. Fails with what they printed."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    environment.pop("XLA_FLAGS", None)
    start = [sys.executable, "-W", "error", checkpoint_process.__file__, *arguments]
    started = [
        subprocess.Popen(
            [*start, str(port), str(PROCESSES), str(process)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for port in [free_port()]
        for process in range(PROCESSES)
    ]
    printed = [process.communicate(timeout=300)[0] for process in started]
    codes = [process.returncode for process in started]
    assert codes == [0] * PROCESSES, "\n\n".join(printed)


def test_from_one_process_into_many_and_back(tmp_path):
    given, own = tmp_path / "given", tmp_path / "own"
    meshes = make_meshes()
    staged = in_stages(len(meshes))
    trained = checkpoint_process.train(STEP)
    params, states = place_all(staged, *trained, meshes)
    fo.Checkpoints(given).save(STEP, params, states, staged)

    run_processes(str(given), str(own))
    assert_restored(fo.Checkpoints(own), staged, meshes)
    whole = fo.Checkpoints(own).restore(*checkpoint_process.train(0))
    fo.testing.assert_equal((whole.params, whole.state), trained)
    expected = {path.relative_to(given) for path in given.rglob("zarr.json")}
    assert {path.relative_to(own) for path in own.rglob("zarr.json")} >= expected
    assert jax.process_count() == 1
