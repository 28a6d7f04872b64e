"""The same update in two processes, each with a stage; started without arguments."""

# --8<-- [start:worker]
import socket
import subprocess
import sys

import functional_opt as fo
import jax
import jax.numpy as jnp
from jax.experimental import multihost_utils


def worker(address, process):
    jax.distributed.initialize(address, num_processes=2, process_id=process)
    by_process = sorted(jax.devices(), key=lambda device: device.process_index)
    meshes = by_process[0], by_process[-1]  # the device of each stage

    shapes = {"first": jnp.ones((64, 32)), "last": jnp.ones((32, 64))}
    partition = fo.partition(shapes, {"first": 0, "last": 1})
    recipe = fo.Recipe(optimizer=fo.AdamW(), schedule=0.1, clip_norm=1.0)
    staged = recipe.build_mpmd(shapes, partition, meshes=meshes)

    pieces = tuple(
        jax.device_put(piece, meshes[stage]) if stage in staged.local_stages else None
        for stage, piece in enumerate(partition.split(shapes))
    )
    states = staged.init(pieces)
    for _ in range(3):
        grads = jax.tree.map(jnp.sin, pieces)  # of the process's own stages
        pieces, states = staged.step(grads, states, pieces)
    mine = pieces[process]
    name = "first" if process == 0 else "last"
    multihost_utils.sync_global_devices("done")
    print(f"process {process}: stages {sorted(staged.local_stages)}", mine[name].shape)


# --8<-- [end:worker]


# --8<-- [start:launch]
def launch(address):
    command = [sys.executable, __file__, address]
    workers = [
        subprocess.Popen([*command, str(process)], stdout=subprocess.PIPE, text=True)
        for process in range(2)
    ]
    for output in [worker.communicate()[0] for worker in workers]:
        print(*(line for line in output.splitlines() if line.startswith("process")))
    assert all(worker.returncode == 0 for worker in workers)


if __name__ == "__main__":
    if len(sys.argv) == 3:
        worker(sys.argv[1], int(sys.argv[2]))
    else:
        with socket.socket() as listener:  # any free port
            listener.bind(("localhost", 0))
            port = listener.getsockname()[1]
        launch(f"localhost:{port}")
# --8<-- [end:launch]
