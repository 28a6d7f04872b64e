"""Random programs through the slicer: the right result, or an error that explains.

`fuzz_programs.py` runs 100,000 of them in many processes, as what a process compiles is
never freed. How many are refused, and how many rounds the others have, is shown by
`HYPOTHESIS_PROFILE=thorough pytest tests/test_fuzz.py --hypothesis-show-statistics`.
"""

import os
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import functional_opt as fo
import jax
import jax.numpy as jnp
import pytest
from functional_opt.testing import assert_equal, Grade
from hypothesis import event, example, given, Phase, settings, strategies as st
from jax.extend.core import jaxpr_as_fun
from programs import (
    evaluate,
    Program,
    programs,
    small_programs,
    smooth_programs,
)
from rooms import Packing, slice_jaxpr, Slices
from sliced import cut, place, run


MANY = {"ci": 200, "thorough": 5_000}[os.environ.get("HYPOTHESIS_PROFILE", "ci")]


def sliced(program: Program, args: Any, marks: Any = None) -> tuple[Any, Slices | None]:
    """The program's jaxpr and its slices, if it can be sliced."""
    closed = jax.make_jaxpr(program)(*args)
    places = program.input_stages, program.result_stages
    try:
        return closed, slice_jaxpr(
            closed, *places, program.num_stages, marks=program.marks
        )
    except fo.CrossStageError:
        return closed, None


def results_by_stage(
    program: Program, slices: Slices, args: Any, execute: Callable[..., Any]
) -> list[list[Any]]:
    """Runs all rounds, and gives each stage nothing but what it has."""

    def call(sliced: Any, stage: int) -> list[Any]:
        assert all(stage in program.input_stages[i] for i in sliced.inputs)
        given = [args[i] for i in sliced.inputs]
        return execute(sliced.closed, given + [heard[m] for m in sliced.received])

    heard: dict[Any, Any] = {}
    for number, messages in enumerate(slices.rounds):
        said = {}
        for sender in {message.sender for message in messages}:
            sent = slices.sent(sender, number)
            values = slices.placed.values
            # Of no entries, nothing is sent.
            held = [message.var for message in sent if has_entries(message)]
            assert not any(any(values[var].marks) for var in held)
            values = call(slices.message_program(sender, number), sender)
            check_packing(values)
            said.update(zip(sent, values, strict=True))
        heard.update(said)
    return [
        call(slices.result_program(stage, wanted), stage)
        for stage, wanted in enumerate(wanted_by_stage(program))
    ]


def has_entries(message: Any) -> bool:
    return message.var.aval.size > 0


def check_packing(values: Sequence[jax.Array]) -> None:
    packing = Packing(tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in values))
    packed = jax.eval_shape(packing.pack, values)
    assert packed.size * 4 == packing.nbytes


def wanted_by_stage(program: Program) -> list[list[int]]:
    return [
        [i for i, place in enumerate(program.result_stages) if stage in place]
        for stage in range(program.num_stages)
    ]


def compiled(closed: Any, args: Any) -> list[Any]:
    return jax.jit(jaxpr_as_fun(closed))(*args)


def check(
    program: Program, seed: int, execute: Callable[..., Any], grade: Grade = "exact"
) -> None:
    args = program.arguments(seed)
    closed, slices = sliced(program, args)
    event("refused" if slices is None else f"{grade} in {len(slices.rounds)} rounds")
    if slices is not None:
        expected = execute(closed, args)
        found = results_by_stage(program, slices, args, execute)
        wanted = [[expected[i] for i in held] for held in wanted_by_stage(program)]
        assert_equal(found, wanted, grade)


@settings(max_examples=MANY)
@example(
    Program(
        2,
        (("scalar", place(0)), *[("scalar", place(0, 1))] * 2, ("flag", place(1))),
        (("loop that mixes", (0, 3, 0)),),
        ((1, place(0, 1)),),
    ),
    1,
    False,
)
@given(programs(), st.integers(0, 9), st.booleans())
def test_a_slice_gives_what_the_whole_gives(program, seed, x64):
    with jax.enable_x64(x64):
        check(program, seed, evaluate)


@given(programs(), st.integers(0, 9))
def test_a_compiled_slice_gives_what_the_whole_gives(program, seed):
    check(program, seed, compiled)


@given(smooth_programs(), st.integers(0, 9))
def test_a_compiled_slice_rounds_closely_to_what_the_whole_does(program, seed):
    """XLA fuses a slice otherwise than the whole, and sums of real numbers cancel."""
    check(program, seed, compiled, "bounded")


@given(small_programs())
def test_values_without_a_dimension_of_a_parameter_can_always_be_mixed(program):
    _, slices = sliced(program, program.arguments(0))
    assert slices is not None


@given(programs())
def test_nothing_travels_if_every_stage_has_everything(program):
    args = program.arguments(0)
    everywhere = frozenset(range(program.num_stages))
    places = [everywhere] * len(args), [everywhere] * len(program.results)
    slices = slice_jaxpr(jax.make_jaxpr(program)(*args), *places, program.num_stages)
    assert slices.rounds == ()


def test_enough_programs_are_sliced_and_enough_are_refused():
    seen: Counter[int | None] = Counter()

    @settings(
        max_examples=200,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
    )
    @given(programs())
    def count(program):
        _, slices = sliced(program, program.arguments(0))
        seen[None if slices is None else len(slices.rounds)] += 1

    count()
    refused = seen[None] / seen.total()
    assert 0.05 < refused < 2 / 3
    assert seen[1] / seen.total() > 0.2


def test_a_typed_key_stays_at_home():
    """Its bytes are its own affair, so it cannot be packed."""
    with pytest.raises(fo.CrossStageError, match=r"key<fry>\[\] of stage 0"):
        cut(lambda key: key, [jax.random.key(0)], [place(0)], [place(1)])


def test_a_number_divided_by_a_single_entry():
    """A division whose divisor has the shape (1,), and whose dividend is a literal."""

    def scaled(scale, x, y):
        return x * jnp.max(1.0 / scale), y * jnp.max(2.0 / scale)

    args = [jnp.full(1, 2.0), jnp.arange(2000.0), jnp.arange(2000.0)]
    places = [place(0, 1), place(0), place(1)]
    slices = cut(scaled, args, places, [place(0), place(1)])
    assert_equal(run(slices, args, 0, [0])[0], jax.jit(scaled)(*args)[0])
