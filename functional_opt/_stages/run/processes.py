"""Which stages are on the devices of this process, and whether all processes agree."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal
from jax.sharding import Sharding

from ..._slicing.stage_sets import stages_text
from ..derive.functions import StagedFunction


def local_stages(placements: Sequence[Sharding]) -> frozenset[int]:
    """The stages that have a device in this process.

    **Raises:** `ValueError` if a process has no stage.
    """
    owned: dict[int, set[int]] = {p: set() for p in range(jax.process_count())}
    for stage, placement in enumerate(placements):
        for device in placement.device_set:
            owned[device.process_index].add(stage)
    idle = [process for process, stages in owned.items() if not stages]
    if idle:
        raise ValueError(
            f"No stage is on a device of process {', '.join(map(str, idle))}. Every "
            f"process of {jax.process_count()} must have a stage: give it a device in "
            "`meshes`, or start fewer processes."
        )
    return frozenset(owned[jax.process_index()])


def check_pieces_here(
    name: str, pieces: Sequence[Any], here: frozenset[int], num_stages: int
) -> None:
    """Refuses pieces of other processes' stages, and None for those of this one."""
    for stage in range(num_stages):
        if stage in here and pieces[stage] is None:
            raise ValueError(
                f"`{name}[{stage}]` is None, but stage {stage} is on devices of "
                f"process {jax.process_index()}, which has {stages_text(here)}. "
                "`meshes` of `stage_local` says which process has which stage."
            )
        if stage not in here and pieces[stage] is not None:
            raise ValueError(
                f"`{name}[{stage}]` must be None: stage {stage} is on devices of other "
                f"processes, and process {jax.process_index()} has {stages_text(here)}."
            )


def check_same_plan(
    step: StagedFunction, placements: Sequence[Sharding], donate: bool
) -> None:
    """Compares what all processes are about to do. All of them must call it.

    **Raises:** `ValueError` in every process, naming the parts that differ, and where.
    """
    parts = {
        "the number of stages": [str(step.num_stages)],
        "`meshes`": _placement_parts(placements),
        "`params` and their partition": _argument_parts(step, "params"),
        "the state": _argument_parts(step, "state"),
        "`extra_args`": _argument_parts(step, "extra_args"),
        "`tx`": _function_parts(step.slices.source),
        "`donate`": [str(donate)],
    }
    digests = np.stack([_digest(part) for part in parts.values()])
    everyone = np.asarray(multihost_utils.process_allgather(digests))
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
            "The processes are about to run different plans. `stage_local` must be "
            "given the same in every process, but these differ: "
            f"{'; '.join(differences)}."
        )


def _argument_parts(step: StagedFunction, name: str) -> Iterator[str]:
    """What to compare of a tree that is cut."""
    cut = step.arguments[name]
    for stage, held in enumerate(cut.held):
        for i, aval in zip(held, step.avals(name, stage), strict=True):
            yield f"{stage} {cut.paths[i]} {aval.str_short()}"


def _placement_parts(placements: Iterable[Sharding]) -> Iterator[str]:
    for placement in placements:
        yield str(sorted(device.id for device in placement.device_set))


def _function_parts(closed: ClosedJaxpr) -> Iterator[Any]:
    """What to compare of a function: operations, literals and arrays."""
    yield from map(np.asarray, filter(_is_numeric, closed.consts))
    for eqn in closed.jaxpr.eqns:
        yield from _equation_parts(eqn)


def _equation_parts(eqn: JaxprEqn) -> Iterator[Any]:
    yield eqn.primitive.name
    yield from (var.aval.str_short() for var in eqn.outvars)
    yield from (np.asarray(x.val) for x in eqn.invars if isinstance(x, Literal))
    for name, value in eqn.params.items():
        for leaf in value if isinstance(value, tuple | list) else (value,):
            if isinstance(leaf, ClosedJaxpr):
                yield from _function_parts(leaf)
            elif isinstance(leaf, Jaxpr):
                yield from _function_parts(ClosedJaxpr(leaf, ()))
            elif isinstance(leaf, int | float | str):
                yield f"{name} {leaf!r}"


def _is_numeric(const: Any) -> bool:
    dtype = getattr(const, "dtype", None)
    return isinstance(dtype, np.dtype)


def _digest(part: Iterable[Any]) -> np.ndarray:
    digest = hashlib.sha256()
    for item in part:
        digest.update(item.tobytes() if isinstance(item, np.ndarray) else item.encode())
        digest.update(b"\0")
    return np.frombuffer(digest.digest(), np.uint32)
