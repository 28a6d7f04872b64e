"""The training job under SLURM and Open MPI, by the commands in docs/launchers.md.

`nox -s launchers` runs this. It needs the packages in `one_node.PACKAGES`; without
them, only the variables that these launchers set are tried, in processes of its own.
All runs must end with the parameters of a single process, bit for bit.
"""

import contextlib
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import functional_opt as fo
import pytest
from one_node import missing, slurm, TASKS


ROOT = Path(__file__).parents[2]
STEPS = 12
CHECKSUM = re.compile(r"stage \d +parameters \w{16}")
PAGE = ROOT / "docs" / "launchers.md"
COMMANDS = {
    line.split()[0]: line.split()
    for line in PAGE.read_text().splitlines()
    if line.startswith(("srun ", "mpirun "))
}


def options(folder: Path, *more: str) -> list[str]:
    """The arguments of the training job."""
    return [f"--steps={STEPS}", f"--stages={TASKS}", f"--output={folder}", *more]


def printed(command: Sequence[str], environment: dict[str, str]) -> str:
    done = subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}{done.stderr}"
    return done.stdout


def checksums(text: str) -> list[str]:
    return sorted(CHECKSUM.findall(text))


@pytest.fixture(scope="session")
def alone(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The checksums of one process."""
    job = [sys.executable, "examples/pipeline_lm.py"]
    folder = tmp_path_factory.mktemp("alone")
    found = checksums(printed([*job, *options(folder)], dict(os.environ)))
    assert len(found) == TASKS
    return found


@contextlib.contextmanager
def launcher(name: str, folder: Path) -> Iterator[dict[str, str]]:
    """The environment for a launcher; skips if it is not installed."""
    if name == "mpirun":
        if text := missing("mpirun"):
            pytest.skip(text)
        root = "OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"
        more = dict.fromkeys((*root, "OMPI_MCA_rmaps_base_oversubscribe"), "1")
        yield os.environ | more
        return
    if text := missing("srun", "slurmctld", "slurmd", "munged"):
        pytest.skip(text)
    with slurm(folder) as environment:
        yield environment


def command(name: str, tasks: int, more: Sequence[str]) -> list[str]:
    """The command on the page, for a number of tasks."""
    own = [each.replace(str(TASKS), str(tasks)) for each in COMMANDS[name]]
    own[own.index("python")] = sys.executable
    return [*own, *more]


@pytest.mark.parametrize("name", COMMANDS)
def test_the_command_on_the_page(name, alone, tmp_path):
    with launcher(name, tmp_path) as environment:
        text = printed(command(name, TASKS, options(tmp_path)), environment)
    assert checksums(text) == alone


@pytest.mark.parametrize("name", COMMANDS)
def test_stopped_and_restarted_on_two_tasks(name, alone, tmp_path):
    saved = tmp_path / "saved"
    more = options(tmp_path, f"--checkpoint={saved}", "--save-every=2")
    with launcher(name, tmp_path) as environment:
        with open(tmp_path / "first.txt", "w") as log:
            first = subprocess.Popen(
                command(name, TASKS, more), env=environment, cwd=ROOT, stdout=log
            )
            while not saved.exists() or fo.Checkpoints(saved).latest is None:
                assert first.poll() is None, "it ended before it could be stopped"
                time.sleep(0.1)
            first.terminate()
            assert first.wait(120) != 0
        text = printed(command(name, 2, more), environment)
    assert re.search(r"resumes from step \d+ in", text)
    assert checksums(text) == alone


# What `jax.distributed` reads, for each process and a number that ports are made of.
VARIABLES = {
    "SLURM": lambda process, job: {
        "SLURM_JOB_ID": str(job),
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": str(TASKS),
        "SLURM_PROCID": str(process),
        "SLURM_LOCALID": str(process),
    },
    "Open MPI": lambda process, job: {
        "OMPI_MCA_orte_hnp_uri": f"{job * 2**12}.0;tcp://127.0.0.1:34911",
        "OMPI_COMM_WORLD_SIZE": str(TASKS),
        "OMPI_COMM_WORLD_RANK": str(process),
        "OMPI_COMM_WORLD_LOCAL_RANK": str(process),
    },
}


@pytest.mark.parametrize("name", VARIABLES)
def test_the_variables_of_a_launcher(name, alone, tmp_path):
    job = [sys.executable, "examples/pipeline_lm.py", "--distributed"]
    processes = [
        subprocess.Popen(
            [*job, *options(tmp_path)],
            env=os.environ | VARIABLES[name](process, os.getpid()),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        for process in range(TASKS)
    ]
    texts = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * TASKS
    assert checksums("".join(texts)) == alone
