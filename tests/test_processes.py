"""Several real processes on this machine, held against the whole tree in each."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import process_worker
import pytest
from ports import free_port


WORKER = Path(process_worker.__file__)
ROOT = WORKER.parents[1]
MORE = [4] if os.environ.get("FUNCTIONAL_OPT_PROCESSES") == "more" else []
LONGEST = 300  # seconds, on a busy machine


def run(task, count, devices):
    """The exit codes of the processes, and what they printed."""
    port = free_port()
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *sys.path])
    workers = [
        subprocess.Popen(
            [sys.executable, WORKER, task, *map(str, (index, count, devices, port))],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(count)
    ]
    try:
        texts = [worker.communicate(timeout=LONGEST)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    return [worker.returncode for worker in workers], texts


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("count", [2, *MORE])
def test_processes_compute_what_the_whole_tree_does(count, devices):
    codes, texts = run("training", count, devices)
    assert codes == [0] * count, "\n".join(texts)
    assert all("done" in text for text in texts)


def test_every_process_is_told_what_is_wrong():
    codes, texts = run("mistakes", 2, 1)
    assert codes == [0, 0], "\n".join(texts)
    assert all("done" in text for text in texts)


def test_a_process_that_never_comes_is_an_error_after_a_time_that_the_user_sets():
    codes, texts = run("late", 2, 1)
    # The other, whose coordinator was in this one, may end before it comes.
    assert codes[0] == 0, texts[0]
    assert "waited for the other 1 processes" in texts[0], texts[0]
    assert "for 5 seconds" in texts[0] and "`process_timeout`" in texts[0]


@pytest.mark.parametrize("count", [2, *MORE])
def test_a_process_that_dies_does_not_leave_the_others_waiting(count):
    started = time.monotonic()
    codes, texts = run("death", count, 1)
    assert codes[-1] == -signal.SIGKILL
    for code, text in zip(codes[:-1], texts[:-1], strict=True):
        assert code != 0
        assert "step 1" in text and "step 2" not in text
        exchange = "between processes " + ", ".join(map(str, range(count))) + " failed"
        assert exchange in text or "another task died" in text, text
    assert time.monotonic() - started < LONGEST / 2
