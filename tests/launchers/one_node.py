"""SLURM on this machine alone: a configuration, its daemons and their end."""

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path


# The packages of Debian with these programs.
PACKAGES = {
    "srun": "slurm-client",
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "munged": "munge",
    "mpirun": "openmpi-bin",
}
TASKS = 4


def missing(*programs: str) -> str:
    """The packages that must be installed for some programs; empty if they are."""
    wanted = [PACKAGES[name] for name in programs if _path(name) is None]
    return f"install the packages {', '.join(wanted)}" if wanted else ""


def _path(program: str) -> str | None:
    return shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


@contextlib.contextmanager
def slurm(folder: Path) -> Iterator[dict[str, str]]:
    """The environment for `srun`, with the daemons of one node running."""
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o400)
    configuration = folder / "slurm.conf"
    configuration.write_text(_configuration(folder))
    environment = {**os.environ, "SLURM_CONF": str(configuration)}
    munge = [
        *("--foreground", "--force", f"--key-file={folder}/munge.key"),
        f"--socket={folder}/munge.socket",
        f"--pid-file={folder}/munge.pid",
        f"--log-file={folder}/munge.log",
        f"--seed-file={folder}/munge.seed",
    ]
    commands = [["munged", *munge], ["slurmctld", "-D", "-c"], ["slurmd", "-D"]]
    with contextlib.ExitStack() as daemons:
        for program, *arguments in commands:
            command = [_path(program) or program, *arguments]
            log = daemons.enter_context(open(folder / f"{program}.out", "w"))
            daemon = subprocess.Popen(
                command, env=environment, stdout=log, stderr=subprocess.STDOUT
            )
            daemons.callback(_stop, daemon)
            time.sleep(1)
        _wait_for_node(environment, folder)
        yield environment


def _configuration(folder: Path) -> str:
    name, user = socket.gethostname(), os.environ.get("USER", "root")
    ports = [_free_port(), _free_port()]
    return f"""
ClusterName=one
SlurmctldHost={name}
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
ProctrackType=proctrack/pgid
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
SelectType=select/cons_tres
StateSaveLocation={folder}
SlurmdSpoolDir={folder}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
NodeName={name} CPUs={2 * TASKS} State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES State=UP
"""


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def _wait_for_node(environment: dict[str, str], folder: Path) -> None:
    end, command = time.monotonic() + 60, ["srun", "--immediate=2", "true"]
    while subprocess.run(command, env=environment, capture_output=True).returncode:
        if time.monotonic() > end:
            logs = [path.read_text() for path in sorted(folder.glob("*.log"))]
            raise RuntimeError("SLURM did not start:\n" + "\n".join(logs))
        time.sleep(1)


def _stop(daemon: subprocess.Popen[bytes]) -> None:
    daemon.terminate()
    try:
        daemon.wait(20)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()
