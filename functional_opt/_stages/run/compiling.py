"""Compiles slices with `jax.jit`, once for all slices that compute the same."""

import functools
import os
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax.sharding import Sharding

from ..derive.slices import Inbox, Leaves, StageSlice
from .devices import device_order, group_by_devices


# Stages on the same devices share a program. Beyond this number of leaves, a program
# takes longer to compile and is not faster.
_MOST_LEAVES = 256


class CompileCache:
    """Compiled slices, by `StageSlice.key`: stages of equal structure share them."""

    def __init__(self) -> None:
        self._traced: dict[Hashable, jax.stages.Wrapped] = {}
        self._compiled: dict[Hashable, jax.stages.Wrapped] = {}

    def jit(
        self,
        slices: Sequence[StageSlice],
        *,
        packed: bool,
        out_shardings: Hashable,
        options: dict[str, Any],
    ) -> jax.stages.Wrapped:
        """One program that computes the slices of several stages.

        Its arguments are, for each stage, the leaves before the donated ones, the
        donated leaves, the leaves after them, and the inboxes. There is one program per
        set of options, but each slice is traced only once for all of them.
        """
        keys = tuple((s.key, packed) for s in slices)
        key = keys, out_shardings, repr(options)
        if key not in self._compiled:
            functions = [
                self._traced.setdefault(key, _traced_once(s, packed))
                for key, s in zip(keys, slices, strict=True)
            ]
            if out_shardings is not None:
                options = {**options, "out_shardings": out_shardings}
            together = _together(functions)
            # The name of the program in logs and profiles of JAX.
            together.__name__ = "stage_" + (
                "messages" if slices[0].packing else "results"
            )
            # `jit` places results on the devices of its arguments: with unused ones
            # dropped, a program that reads no leaf would run on the default device.
            self._compiled[key] = jax.jit(
                together, donate_argnums=1, keep_unused=True, **options
            )
        return self._compiled[key]


def _traced_once(slice: StageSlice, packed: bool) -> jax.stages.Wrapped:
    def stage_slice(leaves: Leaves, inboxes: Sequence[Inbox]) -> Any:
        return slice(leaves, inboxes, packed=packed)

    return jax.jit(stage_slice)


def _together(functions: Sequence[Callable[..., Any]]) -> Callable[..., Any]:
    def run(
        before: Sequence[Leaves],
        donated: Sequence[Leaves],
        after: Sequence[Leaves],
        inboxes: Sequence[Sequence[Inbox]],
    ) -> tuple[Any, ...]:
        stages = zip(functions, before, donated, after, inboxes, strict=True)
        return tuple(call([*a, *b, *c], received) for call, a, b, c, received in stages)

    return run


# A program, its operands and the sharding of its stage.
ToCompile = tuple[jax.stages.Wrapped, Sequence[Any], Sharding]


def compile_together(programs: Iterable[ToCompile]) -> None:
    """Compiles several programs in parallel, before they are called.

    Only the compiler runs in threads: tracing depends on thread-local settings of the
    caller, such as `jax.numpy_dtype_promotion`.

    **Arguments:**

    - `programs`: the programs. Each is compiled once per sharding.
    """
    different = {(program, where): operands for program, operands, where in programs}
    lowered = [program.lower(*given) for (program, _), given in different.items()]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(jax.stages.Lowered.compile, lowered):
            pass


def groups_of(
    stages: Iterable[int],
    shardings: Sequence[Sharding | None],
    held: Sequence[Sequence[int]],
) -> list[tuple[int, ...]]:
    """Groups the stages that share their devices: one program runs each group.

    **Arguments:**

    - `stages`: the stages of this process.
    - `shardings`: the shardings of all stages.
    - `held`: for each stage the flat inputs that it holds.
    """
    together: dict[Hashable, list[int]] = {}
    for stage in stages:
        sharding = shardings[stage]
        key = stage if sharding is None else tuple(device_order(sharding))
        together.setdefault(key, []).append(stage)
    sizes = list(map(len, held))
    return [each for group in together.values() for each in batches(group, sizes)]


def batches(stages: Iterable[int], sizes: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Splits stages into runs of neighbours with at most `_MOST_LEAVES` leaves."""
    batch: list[int] = []
    for stage in stages:
        if sum(sizes[each] for each in [*batch, stage]) > _MOST_LEAVES and batch:
            yield tuple(batch)
            batch = []
        batch.append(stage)
    yield tuple(batch)


def options_for(shardings: Sequence[Sharding | None]) -> dict[str, Any]:
    """The options of `jax.jit` for programs of stages with these shardings."""
    group_by_devices(shardings)  # Raises if stages share only some of their devices.
    platforms = {
        device.platform
        for sharding in shardings
        if sharding is not None
        for device in sharding.device_set
    }
    return _options_of_cpu() if platforms == {"cpu"} else {}


@functools.cache
def _options_of_cpu() -> dict[str, Any]:
    """The memory-optimized schedule, if this version of XLA has the option.

    By default XLA for CPU prefers a schedule for concurrency, which interleaves the
    leaves and makes poor use of caches: see `CpuSchedulerType` in
    https://github.com/openxla/xla/blob/main/xla/xla.proto. Versions without the option
    raise an error for it.
    """
    scheduler = "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"
    options: dict[str, Any] = {
        "compiler_options": {"xla_cpu_scheduler_type": scheduler}
    }
    device = jax.local_devices(backend="cpu")[0]
    sharding = jax.sharding.SingleDeviceSharding(device)
    shape = jax.ShapeDtypeStruct((), np.float32, sharding=sharding)
    try:
        jax.jit(lambda x: x, **options).lower(shape).compile()
    except jax.errors.JaxRuntimeError:
        return {}
    return options
