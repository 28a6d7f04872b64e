"""Explains why a step failed, in terms of its arguments."""

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import jax

from ..derive.functions import SplitFunction
from ..derive.slices import Leaves
from .devices import devices_text, is_concrete
from .exchange import NotOnItsStage


def diagnose(
    error: Exception,
    function: SplitFunction,
    leaves: Sequence[Leaves | None],
    results: Sequence[Any],
    donated: Collection[str],
    deleted: str | None = None,
) -> None:
    """Looks for the cause of an error in the leaves that were passed to a function.

    The checks are too slow for every step, so they run only after an error of JAX.

    **Arguments:**

    - `error`: the error.
    - `function`: the function.
    - `leaves`: the leaves of each stage.
    - `results`: the results of the stages that ran before the error. The donated
        buffers of these stages are deleted already, and are not the cause.
    - `donated`: the names of arguments with donated buffers.
    - `deleted`: the name of an argument with buffers that are deleted after a step.

    **Raises:** the error that names the cause, if one is found.
    """
    given = [
        (stage, own)
        for stage, own in enumerate(leaves)
        if own is not None and results[stage] is None
    ]
    for stage, own in given:
        _check_kinds(function, stage, own)
        function.check(stage, own)
    for stage, own in given:
        check_devices(function, stage, own, everything=False)
    lost = [*donated] if deleted is None else [*donated, deleted]
    for stage, own in given:
        _check_shared(function, stage, own, donated, _donate_text(lost))
        _check_deleted(function, stage, own, lost)
    if isinstance(error, NotOnItsStage):
        for stage, own in given:
            check_devices(function, stage, own, everything=True)


def _check_kinds(function: SplitFunction, stage: int, leaves: Leaves) -> None:
    for position, leaf in enumerate(leaves):
        if isinstance(leaf, jax.ShapeDtypeStruct):
            raise TypeError(
                f"{function.label(stage, position)} is a shape and dtype without a "
                "value. Pass arrays, or call the function under `jax.eval_shape` to "
                "get the shapes and dtypes of the results."
            )


def check_devices(
    function: SplitFunction, stage: int, leaves: Leaves, *, everything: bool
) -> None:
    """Raises an error that names two leaves of one stage on different devices.

    JAX moves uncommitted arrays to the devices of committed ones, so uncommitted leaves
    count only if `everything` is true.
    """
    first: tuple[str, Collection[jax.Device]] | None = None
    for position, leaf in enumerate(leaves):
        is_array = is_concrete(leaf)
        if leaf is None or not (everything or (is_array and leaf.committed)):
            continue
        devices = leaf.sharding.device_set if is_array else frozenset()
        label = function.label(stage, position)
        first = first or (label, devices)
        if devices != first[1]:
            here = devices_text(devices) or "no device"
            there = devices_text(first[1]) or "no device"
            raise ValueError(
                f"{label} is on {here}, but {first[0]} is on {there}. All leaves of "
                "one stage must be on the same devices: use `jax.device_put`."
            )


def _check_shared(
    function: SplitFunction,
    stage: int,
    leaves: Leaves,
    donated: Collection[str],
    option: str,
) -> None:
    """Raises an error if a donated buffer is passed twice.

    See https://github.com/jax-ml/jax/issues/9635 for what JAX makes of it.
    """
    lent = set(function.positions(stage, *donated))
    seen: dict[tuple[jax.Device, int], int] = {}
    for position, leaf in enumerate(leaves):
        for buffer in _buffers(leaf):
            other = seen.setdefault(buffer, position)
            if other != position and lent & {position, other}:
                raise ValueError(
                    f"{function.label(stage, position)} is the same buffer as "
                    f"{function.label(stage, other)}, but {option} donates the buffers "
                    f"of {_names_text(donated)}. Pass a copy made with `jnp.copy`, or "
                    "omit `donate`."
                )


def _check_deleted(
    function: SplitFunction, stage: int, leaves: Leaves, donated: Collection[str]
) -> None:
    for position, leaf in enumerate(leaves):
        if is_concrete(leaf) and leaf.is_deleted():
            why = (
                f"With {_donate_text(donated)} a step donates the buffers of "
                f"{_names_text(donated)}: pass the trees that the last step returned, "
                "or omit `donate`."
                if donated
                else "Its buffer was donated to another function."
            )
            raise ValueError(
                f"{function.label(stage, position)} has been deleted. {why}"
            )


def _buffers(leaf: Any) -> Iterator[tuple[jax.Device, int]]:
    if not is_concrete(leaf) or leaf.is_deleted() or not leaf.size:
        return
    for shard in leaf.addressable_shards:
        try:
            yield shard.device, shard.data.unsafe_buffer_pointer()
        # Some backends do not support `unsafe_buffer_pointer`.
        except (RuntimeError, NotImplementedError):
            return


def _donate_text(donated: Collection[str]) -> str:
    return "`donate='all'`" if "grads" in donated else "`donate=True`"


def _names_text(names: Collection[str]) -> str:
    return " and ".join(f"`{name}`" for name in names)
