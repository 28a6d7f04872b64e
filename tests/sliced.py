"""Runs the slices of a plain function, for tests of the rules."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from rooms import slice_jaxpr, Slices


def place(*stages: int) -> frozenset[int]:
    return frozenset(stages)


def cut(
    function: Callable[..., Any],
    args: Sequence[Any],
    input_stages: Sequence[frozenset[int]],
    result_stages: Sequence[frozenset[int]],
    marks: Sequence[tuple[bool, ...]] | None = None,
) -> Slices:
    closed = jax.make_jaxpr(function)(*args)
    num_stages = 1 + max(s for p in (*input_stages, *result_stages) for s in p)
    return slice_jaxpr(
        closed,
        input_stages,
        result_stages,
        num_stages,
        marks=marks,
    )


def run(slices: Slices, args: Sequence[Any], stage: int, results: Sequence[int]) -> Any:
    """The results with these indices, from `stage`'s program, after all rounds."""
    heard: dict[Any, Any] = {}
    for number, messages in enumerate(slices.rounds):
        said = {}
        for sender in {message.sender for message in messages}:
            values = _call(slices.message_program(sender, number), args, heard)
            said.update(zip(slices.sent(sender, number), values, strict=True))
        heard.update(said)
    return _call(slices.result_program(stage, results), args, heard)


def _call(program: Any, args: Sequence[Any], heard: dict[Any, Any]) -> list[Any]:
    inputs = [args[i] for i in program.inputs]
    return jax.jit(program)(inputs, [heard[message] for message in program.received])


def primitives(slices: Slices, stage: int, results: Sequence[int]) -> list[str]:
    program = slices.result_program(stage, results)
    return [eqn.primitive.name for eqn in program.closed.jaxpr.eqns]
