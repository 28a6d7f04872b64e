"""Checkpoints of several processes, each of which has stages of its own."""

import os
import subprocess
import sys

import checkpoint_process
import functional_opt as fo
import jax
import pytest
from checkpoint_process import assert_restored, in_stages, make_meshes, place_all, STEP
from ports import free_port


MORE = [4] if os.environ.get("FUNCTIONAL_OPT_PROCESSES") == "more" else []


def run_processes(count, *arguments):
    """Runs the script in every process. Fails with what they printed."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    environment.pop("XLA_FLAGS", None)
    start = [sys.executable, "-W", "error", checkpoint_process.__file__, *arguments]
    started = [
        subprocess.Popen(
            [*start, str(port), str(count), str(process)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for port in [free_port()]
        for process in range(count)
    ]
    printed = [process.communicate(timeout=300)[0] for process in started]
    codes = [process.returncode for process in started]
    assert codes == [0] * count, "\n\n".join(printed)


@pytest.mark.parametrize("count", [2, *MORE])
def test_from_one_process_into_many_and_back(tmp_path, count):
    given, own = tmp_path / "given", tmp_path / "own"
    meshes = make_meshes()
    staged = in_stages(meshes)
    trained = checkpoint_process.train(STEP)
    params, states = place_all(staged, *trained, meshes)
    fo.Checkpoints(given).save(STEP, params, states, staged)

    run_processes(count, str(given), str(own))
    assert_restored(fo.Checkpoints(own), staged, meshes)
    whole = fo.Checkpoints(own).restore(*checkpoint_process.train(0))
    fo.testing.assert_equal((whole.params, whole.state), trained)
    expected = {path.relative_to(given) for path in given.rglob("zarr.json")}
    assert {path.relative_to(own) for path in own.rglob("zarr.json")} >= expected
    assert jax.process_count() == 1
