"""Documents are decoded or refused in bounded time and memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


# A harmless document of a megabyte takes 1 time, in the standard library alone.
TIMES, MEGABYTES = 12.0, 64.0


@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory use from /proc")
def test_hostile_documents():
    """In a process of its own, where nothing checks the types of every call."""
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("hostile_documents.py")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2_000:]
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(results) > 30
    for result in results:
        assert result["times"] < TIMES, result
        assert result["megabytes"] < MEGABYTES + 10 * result["size"] / 1e6, result
        assert result["error"] or result["name"] == "toml modules", result
