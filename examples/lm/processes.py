"""Starts processes that train together, or joins them."""

import argparse
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import jax


# The first to be done waits for the others.
LONGEST_WAIT = 3600  # seconds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options for several processes to a command line."""
    parser.add_argument(
        "--processes",
        type=int,
        default=1,
        help="number of processes to start on this machine",
    )
    parser.add_argument(
        "--distributed",
        action="store_true",
        help="join the processes that SLURM, Kubernetes or MPI has started",
    )
    parser.add_argument("--join", nargs=3, help=argparse.SUPPRESS)


def launch(script: Path, arguments: Sequence[str], processes: int) -> int:
    """Runs a script in several processes. Returns the first nonzero exit code, or 0."""
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        coordinator = f"localhost:{listener.getsockname()[1]}"
    command = [sys.executable, str(script), *arguments, "--processes=1", "--join"]
    workers = [
        subprocess.Popen([*command, coordinator, str(processes), str(index)])
        for index in range(processes)
    ]
    try:
        codes = [worker.wait() for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    return next(filter(None, codes), 0)


def join(options: argparse.Namespace) -> None:
    """Joins the other processes, if the command line requests it."""
    if options.join is not None:
        coordinator, count, index = options.join
        jax.distributed.initialize(
            coordinator,
            int(count),
            int(index),
            shutdown_timeout_seconds=LONGEST_WAIT,
        )
    elif options.distributed:
        jax.distributed.initialize(shutdown_timeout_seconds=LONGEST_WAIT)
