"""Finds the stages of this process, and compares the plans of all processes."""

import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Sharding

from ..derive.functions import SplitFunction
from ..hyperparameters import Hyperparameters
from ..options import StageOptions
from .fingerprint import digest, parts_of, parts_of_arrays


def local_stages(shardings: Sequence[Sharding]) -> frozenset[int]:
    """The stages that have a device in this process.

    **Raises:** `ValueError` if a process has no stage.
    """
    owned: dict[int, set[int]] = {p: set() for p in range(jax.process_count())}
    for stage, sharding in enumerate(shardings):
        for device in sharding.device_set:
            owned[device.process_index].add(stage)
    idle = [process for process, stages in owned.items() if not stages]
    if idle:
        raise ValueError(
            f"No stage is on a device of process {', '.join(map(str, idle))}. Each of "
            f"the {jax.process_count()} processes must have a stage: add one of its "
            "devices to `meshes`, or start fewer processes."
        )
    return frozenset(owned[jax.process_index()])


def check_same_plan(
    step: SplitFunction,
    shardings: Sequence[Sharding],
    hyperparameters: Hyperparameters,
    options: StageOptions,
) -> None:
    """Compares the plans of all processes, each of which must call this function.

    Processes with different plans would deadlock in their first exchange.

    **Arguments:**

    - `step`, `shardings`, `hyperparameters`, `options`: the plan, and the number of
        seconds to wait for the other processes.

    **Raises:** `ValueError` in every process, with the parts that differ and the
    processes where they do; `RuntimeError` if another process does not call it in time.
    """
    parts = {
        "the number of stages": [str(step.num_stages)],
        "`meshes`": _sharding_parts(shardings),
        "`params` and their partition": _argument_parts(step, "params"),
        "the state": _argument_parts(step, "state"),
        "`extra_args`": _argument_parts(step, "extra_args"),
        "`grads`": _argument_parts(step, "grads"),
        "`tx`": parts_of(step.slices.source),
        "the arrays of hyperparameters": parts_of_arrays(hyperparameters.arrays),
        "`donate`": [str(options.donate)],
        "`tied_grads`": [str(options.tied_grads)],
        "`shard_state`": [str(options.shard_state)],
    }
    digests = np.stack(list(map(digest, parts.values())))
    everyone = _gathered(digests, options.process_timeout)
    differences = []
    for number, name in enumerate(parts):
        theirs = enumerate(everyone[:, number])
        others = [str(p) for p, one in theirs if (one != everyone[0, number]).any()]
        if others:
            differences.append(
                f"{name} (process {', '.join(others)} differs from process 0)"
            )
    if differences:
        raise ValueError(
            "The processes are about to run different plans. `stage_local` requires "
            "equal arguments in every process, but these differ: "
            f"{'; '.join(differences)}."
        )


def _gathered(digests: np.ndarray, timeout: float) -> np.ndarray:
    """The digests of all processes."""
    found: list[Any] = []
    failed: list[Exception] = []

    def gather() -> None:
        try:
            found.append(np.asarray(multihost_utils.process_allgather(digests)))
        except Exception as error:
            failed.append(error)

    # `process_allgather` has no timeout and cannot be interrupted:
    # https://github.com/jax-ml/jax/issues/38503.
    thread = threading.Thread(target=gather, daemon=True)
    thread.start()
    thread.join(timeout)
    if found:
        return found[0]
    cause = failed[0] if failed else None
    raise RuntimeError(
        f"`stage_local` in process {jax.process_index()} waited for the other "
        f"{jax.process_count() - 1} processes, to compare their plans, "
        + ("and failed" if failed else f"for {timeout:g} seconds")
        + ". All processes must call it: check whether one of them has stopped, or "
        "increase `process_timeout`."
    ) from cause


def _argument_parts(step: SplitFunction, name: str) -> Iterator[str]:
    """The parts of an argument to compare: stages, paths, shapes and dtypes."""
    split = step.arguments[name]
    for stage, held in enumerate(split.held):
        for i, aval in zip(held, step.avals_of(name, stage), strict=True):
            yield f"{stage} {split.paths[i]} {aval.str_short()}"


def _sharding_parts(shardings: Iterable[Sharding]) -> Iterator[str]:
    for sharding in shardings:
        yield str(sorted(device.id for device in sharding.device_set))
