"""Measurements in a process of their own. Prints the result as JSON.

`python worker.py memory WIDTH LEAVES MODE` or `python worker.py host STAGES LEAVES`.
"""

import ctypes
import gc
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any


DEVICES = "--xla_force_host_platform_device_count"
STAGES = 8


def measure(num_devices: int, *arguments: Any, platforms: str | None = None) -> Any:
    """Runs this file in another process, with this number of virtual CPU devices.

    **Arguments:**

    - `platforms`: the platforms that JAX uses there; None for those of this process.
    """
    kept = [x for x in os.environ.get("XLA_FLAGS", "").split() if DEVICES not in x]
    flags = " ".join([*kept, f"{DEVICES}={num_devices}"])
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    own = {"XLA_FLAGS": flags, "PYTHONPATH": os.pathsep.join(paths)}
    if platforms is not None:
        own["JAX_PLATFORMS"] = platforms
    ran = subprocess.run(
        [sys.executable, __file__, *map(str, arguments)],
        env={**os.environ, **own},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return json.loads(ran.stdout.splitlines()[-1])


def memory(width: str, num_leaves: str, mode: str) -> float | None:
    """The peak memory of a step above the memory between steps, in parameters."""
    import jax
    from modes import modes
    from trees import shapes, size

    tree = shapes(int(num_leaves), STAGES, int(width))
    step = modes()[mode](tree).step
    for _ in range(2):
        jax.block_until_ready(step())
    gc.collect()
    meter = Meter()
    for _ in range(3):
        jax.block_until_ready(step())
    return meter.above() / (4 * size(tree))


class Meter:
    """The peak memory since its creation, above the memory at that time."""

    def __init__(self) -> None:
        import jax

        stats = jax.devices()[0].memory_stats()
        self.devices = jax.devices() if stats is not None else []
        if not self.devices:
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")
        self.before = self._now("VmRSS", "bytes_in_use")

    def above(self) -> int:
        return self._now("VmHWM", "peak_bytes_in_use") - self.before

    def _now(self, of_process: str, of_device: str) -> int:
        if self.devices:
            return sum(device.memory_stats()[of_device] for device in self.devices)
        lines = Path("/proc/self/status").read_text().splitlines()
        (line,) = (line for line in lines if line.startswith(of_process))
        return int(line.split()[1]) * 1024


def host(num_stages: str, num_leaves: str) -> dict[str, tuple[float, float]]:
    """For each way to step, the median time in seconds until a step returns.

    Each stage is on its own device. Beside it the median of the ratios to `jit_alone`
    in the same round.
    """
    import jax
    from modes import by_hand, jit_alone, staged
    from timing import until_returned
    from trees import shapes

    tree = shapes(int(num_stages) * int(num_leaves), int(num_stages), width=8)
    devices = jax.devices()
    ways = {
        "staged": staged(tree, devices),
        "by hand": by_hand(tree, devices),
        "by hand, pieces": by_hand(tree, devices, of_pieces=True),
        "alone": jit_alone(tree, devices),
    }
    timed = until_returned([way.step for way in ways.values()], 100)
    seconds = dict(zip(ways, timed, strict=True))

    def ratio(ones: list[float]) -> float:
        pairs = zip(ones, seconds["alone"], strict=True)
        return statistics.median(one / alone for one, alone in pairs)

    return {way: (statistics.median(own), ratio(own)) for way, own in seconds.items()}


if __name__ == "__main__":
    kind, *arguments = sys.argv[1:]
    print(json.dumps({"memory": memory, "host": host}[kind](*arguments)))
