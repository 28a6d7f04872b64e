"""Each rule by which a function is cut, on plain functions."""

from typing import Any

import functional_opt as fo
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sliced import cut, place, primitives, run


BIG = jnp.linspace(-1.0, 2.0, 2048)
OTHER_BIG = jnp.linspace(3.0, 1.0, 2048)
SMALL = jnp.linspace(0.5, 1.5, 8)


def entries(message: Any) -> int:
    return message.var.aval.size


def same(found, expected):
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.dtype == expected.dtype
    assert found.tobytes() == expected.tobytes()


def test_an_equation_runs_where_all_its_operands_are():
    slices = cut(
        lambda x, y: (x + 1, y * 2),
        [BIG, BIG],
        [place(0), place(1)],
        [place(0), place(1)],
    )
    assert slices.rounds == ()
    assert primitives(slices, 0, [0]) == ["add"]
    assert primitives(slices, 1, [1]) == ["mul"]


def test_a_program_reads_only_the_inputs_it_needs():
    slices = cut(
        lambda x, y, z: (x + z, y * z),
        [BIG, BIG, 3.0],
        [place(0), place(0), place(0)],
        [place(0)] * 2,
    )
    assert slices.result_program(0, [1]).inputs == (1, 2)


def test_only_scalars_of_a_global_sum_travel_in_one_round():
    def total(x, y, z):
        parts = [jnp.sum(v**2) for v in (x, y, z)]
        return parts[0] + parts[1] + parts[2]

    args = [BIG, OTHER_BIG, SMALL]
    everywhere = place(0, 1, 2)
    slices = cut(total, args, [place(0), place(1), place(2)], [everywhere])
    assert [len(messages) for messages in slices.rounds] == [3]
    for stage in everywhere:
        same(run(slices, args, stage, [0])[0], jax.jit(total)(*args))


def test_a_decision_about_a_global_sum_takes_no_further_round():
    def clip(x, y):
        total = jnp.sum(x) + jnp.sum(jnp.abs(y)) + jnp.max(x)
        small = total < 1.0
        return jnp.where(small, x, x / total), jnp.where(small, y, y / total)

    args = [BIG, OTHER_BIG]
    slices = cut(clip, args, [place(0), place(1)], [place(0), place(1)])
    assert len(slices.rounds) == 1
    for stage in (0, 1):
        same(run(slices, args, stage, [stage])[0], jax.jit(clip)(*args)[stage])


def test_what_one_stage_adds_up_first_travels_as_one_value():
    def total(x, y, z):
        return (jnp.sum(x) + jnp.sum(y)) + jnp.sum(z)

    args = [BIG, OTHER_BIG, SMALL]
    slices = cut(total, args, [place(0), place(0), place(1)], [place(0, 1)])
    assert [[m.sender for m in messages] for messages in slices.rounds] == [[0, 1]]
    same(run(slices, args, 1, [0])[0], jax.jit(total)(*args))


def test_a_running_sum_that_hops_between_stages_takes_one_round():
    def total(*xs):
        return sum(jnp.sum(x) for x in xs)

    args = [BIG + i for i in range(9)]
    places = [place(i % 3) for i in range(9)]
    slices = cut(total, args, places, [place(0, 1, 2)])
    assert len(slices.rounds) == 1
    same(run(slices, args, 2, [0])[0], jax.jit(total)(*args))


def test_a_sum_of_what_a_sum_scaled_takes_two_rounds():
    def twice(x, y):
        first = jnp.sum(x) + jnp.sum(y)
        return jnp.sum(x / first) + jnp.sum(y / first)

    args = [BIG, OTHER_BIG]
    slices = cut(twice, args, [place(0), place(1)], [place(0, 1)])
    assert len(slices.rounds) == 2
    for stage in (0, 1):
        same(run(slices, args, stage, [0])[0], jax.jit(twice)(*args))


def test_small_tensors_do_not_travel_to_save_a_round():
    def twice(x, y):
        first = jnp.sum(x) + jnp.sum(y)
        return jnp.sum(x / first) + jnp.sum(y / first)

    args = [SMALL, SMALL * 2]
    slices = cut(twice, args, [place(0), place(1)], [place(0, 1)])
    sizes = [[entries(m) for m in messages] for messages in slices.rounds]
    assert sizes == [[1, 1], [1, 1]]


def test_what_is_in_time_travels_and_is_not_computed_again():
    def two_sums(x, y, a, b):
        first = jnp.sum(x) + jnp.sum(y)
        return jnp.sum(x / first) + a * b + jnp.sum(y / first)

    args = [BIG, OTHER_BIG, jnp.float32(2.0), jnp.float32(3.0)]
    slices = cut(two_sums, args, [place(0), place(1), place(0), place(0)], [place(1)])
    assert len(slices.rounds) == 2
    assert sum(len(messages) for messages in slices.rounds) == 4
    same(run(slices, args, 1, [0])[0], jax.jit(two_sums)(*args))


def test_a_scalar_of_one_stage_stays_there_if_only_that_stage_needs_it():
    def trust(x, y):
        scale = jnp.sum(x) + jnp.sum(y)
        return x * (jnp.max(x) * scale), y * scale

    slices = cut(trust, [BIG, OTHER_BIG], [place(0), place(1)], [place(0), place(1)])
    assert [[m.sender for m in messages] for messages in slices.rounds] == [[0, 1]]


def test_a_small_operand_travels_to_the_large_one():
    def scale(x, y):
        return x * jnp.max(y)

    args = [BIG, OTHER_BIG]
    slices = cut(scale, args, [place(0), place(1)], [place(0)])
    assert [m.sender for m in slices.rounds[0]] == [1]
    same(run(slices, args, 0, [0])[0], jax.jit(scale)(*args))


def test_a_broadcast_scalar_is_rebuilt_where_it_is_needed():
    def scale(x, y):
        return x * jnp.full_like(x, jnp.max(y))

    args = [BIG, OTHER_BIG]
    slices = cut(scale, args, [place(0), place(1)], [place(0)])
    assert [entries(m) for m in slices.rounds[0]] == [1]
    same(run(slices, args, 0, [0])[0], jax.jit(scale)(*args))


def test_whole_tensors_of_two_stages_cannot_be_mixed():
    with pytest.raises(fo.CrossStageError) as error:
        cut(lambda x, y: jnp.dot(x, y), [BIG, BIG], [place(0), place(2)], [place(0)])
    message = str(error.value)
    assert "`dot_general`" in message and "test_slicing.py" in message
    assert "float32[2048] of stage 0, float32[2048] of stage 2" in message


def test_a_mixture_that_nothing_needs_is_no_error():
    def wasteful(x, y):
        jnp.dot(x, y)
        return x + 1

    slices = cut(wasteful, [BIG, BIG], [place(0), place(1)], [place(0)])
    assert slices.rounds == ()


def test_a_large_result_cannot_be_wanted_elsewhere():
    with pytest.raises(fo.CrossStageError, match=r"float32\[2048\] of stage 0"):
        cut(lambda x: x + 1, [BIG], [place(0)], [place(1)])


def test_a_result_without_a_dimension_of_a_parameter_travels():
    slices = cut(lambda x: x + 1, [SMALL], [place(0)], [place(1)], marks=[(False,)])
    same(run(slices, [SMALL], 1, [0])[0], SMALL + 1)


def test_side_effects_are_refused():
    def noisy(x):
        jax.debug.print("{}", x)
        return x

    with pytest.raises(fo.CrossStageError, match=r"side effects.*debug"):
        cut(noisy, [BIG], [place(0)], [place(0)])


def test_a_call_stays_whole_unless_it_crosses():
    @jax.jit
    def add(x, y):
        return x + y

    slices = cut(lambda x: add(x, x), [BIG], [place(1)], [place(1)])
    assert primitives(slices, 1, [0]) == ["jit"]
    slices = cut(
        lambda x, y: add(jnp.sum(x), jnp.sum(y)),
        [BIG, BIG],
        [place(0), place(1)],
        [place(1)],
    )
    assert "jit" not in primitives(slices, 1, [0])


def both(x, y):
    return x * 2, y * 3


def custom_jvp():
    wrapped = jax.custom_jvp(both)
    wrapped.defjvp(lambda primals, tangents: (both(*primals), both(*tangents)))
    return wrapped


def custom_vjp():
    wrapped = jax.custom_vjp(both)
    wrapped.defvjp(lambda x, y: (both(x, y), None), lambda _, cotangents: cotangents)
    return wrapped


@pytest.mark.parametrize(
    "call", [jax.jit(both), jax.checkpoint(both), custom_jvp(), custom_vjp()]
)
def test_calls_of_every_kind_are_taken_apart(call):
    args = [BIG, OTHER_BIG]
    slices = cut(call, args, [place(0), place(1)], [place(0), place(1)])
    assert slices.rounds == ()
    same(run(slices, args, 0, [0])[0], BIG * 2)
    same(run(slices, args, 1, [1])[0], OTHER_BIG * 3)


def test_one_body_called_twice_gives_two_values():
    @jax.jit
    def total(x, y):
        return jnp.sum(x) + jnp.sum(y)

    def both(x, y):
        return total(x, y) - total(x * 2, y)

    args = [BIG, OTHER_BIG]
    slices = cut(both, args, [place(0), place(1)], [place(0)])
    same(run(slices, args, 0, [0])[0], jax.jit(both)(*args))


def test_constants_of_inner_functions_are_lifted():
    table = np.arange(2048, dtype=np.float32)
    inner = jax.jit(lambda x, y: (x * table, y + table))
    args = [BIG, OTHER_BIG]
    slices = cut(inner, args, [place(0), place(1)], [place(0), place(1)])
    same(run(slices, args, 1, [1])[0], OTHER_BIG + table)


def test_a_leaf_on_two_stages_is_sent_by_the_lowest():
    def total(tied, x):
        return jnp.sum(tied) + jnp.sum(x)

    args = [BIG, OTHER_BIG]
    slices = cut(total, args, [place(1, 2), place(0)], [place(0, 1, 2)])
    assert sorted(m.sender for m in slices.rounds[0]) == [0, 1]


def test_of_a_cond_with_a_known_predicate_only_that_branch_counts():
    """As the rest of it is never computed, it may mix whatever it likes."""

    def known(x, y):
        return jax.lax.cond(
            jnp.array(True), lambda x, y: (x + 1, y), lambda x, y: (x * y, x - y), x, y
        )

    args, places = [BIG, OTHER_BIG], [place(0), place(1)]
    slices = cut(known, args, places, places)
    assert slices.rounds == ()
    for stage in (0, 1):
        same(run(slices, args, stage, [stage])[0], jax.jit(known)(*args)[stage])


def skip(flag, x, y):
    return jax.lax.cond(flag, lambda x, y: (x, y), lambda x, y: (x + 1, y * 2), x, y)


@pytest.mark.parametrize("flag", [False, True])
def test_a_cond_that_mixes_nothing_is_one_cond_an_owner(flag):
    args = [jnp.array(flag), BIG, OTHER_BIG]
    slices = cut(skip, args, [place(0, 1), place(0), place(1)], [place(0), place(1)])
    assert slices.rounds == ()
    for stage in (0, 1):
        assert primitives(slices, stage, [stage])[-1] == "cond"
        assert "select_n" not in primitives(slices, stage, [stage])
        same(run(slices, args, stage, [stage])[0], jax.jit(skip)(*args)[stage])


def test_only_the_predicate_of_such_a_cond_travels():
    args = [jnp.array(True), BIG, SMALL]
    slices = cut(skip, args, [place(2), place(0), place(1)], [place(0), place(1)])
    assert [m.sender for m in slices.rounds[0]] == [2]
    same(run(slices, args, 1, [1])[0], SMALL)


@pytest.mark.parametrize("flag", [False, True])
def test_a_cond_that_mixes_inside_becomes_a_choice(flag):
    def clip(flag, x, y):
        def scaled(x, y):
            norm = jnp.sum(x) + jnp.sum(y)
            return x * norm, y * norm

        return jax.lax.cond(flag, scaled, lambda x, y: (x, y), x, y)

    args = [jnp.array(flag), BIG, OTHER_BIG]
    slices = cut(clip, args, [place(0, 1), place(0), place(1)], [place(0), place(1)])
    assert len(slices.rounds) == 1
    for stage in (0, 1):
        assert "cond" in primitives(slices, stage, [stage])
        same(run(slices, args, stage, [stage])[0], jax.jit(clip)(*args)[stage])


def mix(x, y):
    return x * (jnp.sum(x) + jnp.sum(y)), y


def test_what_is_sent_from_a_branch_is_only_computed_if_that_is_taken():
    def step(count, x, y):
        return jax.lax.cond(count % 2 == 0, mix, lambda x, y: (x, y), x, y)

    places = [place(0, 1), place(0), place(1)]
    slices = cut(step, [jnp.array(3), BIG, OTHER_BIG], places, [place(0), place(1)])
    sent = slices.message_program(1, 0)
    assert [eqn.primitive.name for eqn in sent.closed.jaxpr.eqns][-1] == "cond"
    for count in (jnp.array(3), jnp.array(4)):
        same(
            run(slices, [count, BIG, OTHER_BIG], 0, [0])[0],
            jax.jit(step)(count, BIG, OTHER_BIG)[0],
        )
        (said,) = sent([count, OTHER_BIG], [])
        same(said, jnp.sum(OTHER_BIG) * (count == 4))


def test_what_is_sent_before_it_is_known_which_branch_is_taken():
    def step(x, y):
        finite = jnp.isfinite(jnp.sum(x)) & jnp.isfinite(jnp.sum(y))
        return jax.lax.cond(finite, mix, lambda x, y: (x, y), x, y)

    places = [place(0), place(1)]
    slices = cut(step, [BIG, OTHER_BIG], places, places)
    assert len(slices.rounds) == 1
    assert "cond" in primitives(slices, 0, [0])
    for x in (BIG, BIG.at[0].set(jnp.inf)):
        same(run(slices, [x, OTHER_BIG], 0, [0])[0], jax.jit(step)(x, OTHER_BIG)[0])


def test_a_choice_in_a_choice():
    def step(outer, inner, x, y):
        def twice(x, y):
            return jax.lax.cond(inner > jnp.sum(x), mix, lambda x, y: (-x, y), x, y)

        return jax.lax.cond(outer, twice, lambda x, y: (x, y), x, y)

    everywhere, places = place(0, 1), [place(0), place(1)]
    for outer in (False, True):
        for inner in (-1e9, 1e9):
            args = [jnp.array(outer), jnp.float32(inner), BIG, OTHER_BIG]
            slices = cut(step, args, [everywhere, everywhere, *places], places)
            assert primitives(slices, 0, [0])[-1] == "cond"
            same(run(slices, args, 0, [0])[0], jax.jit(step)(*args)[0])


@pytest.mark.parametrize("start, looped", [(0.0, False), (1.0, True)])
def test_a_loop_in_a_branch_that_is_not_taken_does_not_run(start, looped):
    """It would not end."""

    def step(count, x, y):
        def loop(x, y):
            total = jnp.sum(x) + jnp.sum(y)
            steps = jax.lax.while_loop(lambda c: c < 9.0, lambda c: c * 2, count)
            return x * steps + total, y

        return jax.lax.cond(count > 0, loop, lambda x, y: (x, y), x, y)

    args = [jnp.array(start), BIG, OTHER_BIG]
    places = [place(0, 1), place(0), place(1)]
    slices = cut(step, args, places, [place(0), place(1)])
    expected = jax.jit(step)(*args)[0]
    assert looped == bool(jnp.any(expected != BIG))
    same(run(slices, args, 0, [0])[0], expected)


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_what_such_a_loop_sends_waits_until_it_is_known_which_branch_is_taken(sign):
    def step(x, y):
        taken = jnp.sum(x) + jnp.sum(y) > 0

        def loop(x, y):
            start = jnp.maximum(x, 0.0)
            grown = jax.lax.while_loop(lambda c: c[-1] < 9.0, lambda c: c * 2, start)
            return x, y * jnp.sum(grown)

        return jax.lax.cond(taken, loop, lambda x, y: (x, y), x, y)

    args, places = [BIG * sign, OTHER_BIG * sign], [place(0), place(1)]
    slices = cut(step, args, places, places)
    assert len(slices.rounds) == 2
    same(run(slices, args, 1, [1])[0], jax.jit(step)(*args)[1])


def test_a_counter_in_a_cond_stays_on_every_stage():
    def step(flag, count, x):
        return jax.lax.cond(
            flag, lambda c, x: (c + 1, x), lambda c, x: (c, -x), count, x
        )

    args = [jnp.array(True), jnp.array(3), BIG]
    slices = cut(
        step, args, [place(0, 1), place(0, 1), place(1)], [place(0, 1), place(1)]
    )
    assert slices.rounds == ()
    same(run(slices, args, 0, [0])[0], jnp.array(4))


def test_a_loop_on_one_stage_stays_whole():
    def loop(x, y):
        looped = jax.lax.fori_loop(0, 3, lambda _, x: x * 1.5, x)
        return looped, y

    args = [BIG, OTHER_BIG]
    slices = cut(loop, args, [place(0), place(1)], [place(0), place(1)])
    same(run(slices, args, 0, [0])[0], jax.jit(loop)(*args)[0])


def test_a_loop_over_two_stages_is_refused():
    def loop(x, y):
        return jax.lax.while_loop(
            lambda pair: jnp.max(pair[0]) < 3, lambda pair: (pair[1], pair[0]), (x, y)
        )

    with pytest.raises(fo.CrossStageError, match=r"`while` at .*test_slicing\.py"):
        cut(loop, [BIG, OTHER_BIG], [place(0), place(1)], [place(0), place(1)])


def test_division_by_a_shared_scalar_keeps_its_bits():
    """With one reader left, XLA would multiply with the reciprocal instead."""

    def corrected(count, x, y):
        scale = 1 - 0.999**count
        return x / scale, y / scale

    values = jax.random.normal(jax.random.key(0), (2, 4096))
    args = [jnp.array(1.0), *values]
    slices = cut(
        corrected, args, [place(0, 1), place(0), place(1)], [place(0), place(1)]
    )
    expected = jax.jit(corrected)(*args)
    for stage in (0, 1):
        same(run(slices, args, stage, [stage])[0], expected[stage])


def test_a_value_travels_as_late_as_it_may():
    def clip(x, y, z):
        norm = jnp.sum(x / (jnp.sum(x) + jnp.sum(y))) + jnp.sum(z)
        return x / norm, y / norm, z / norm

    args = [BIG, OTHER_BIG, BIG]
    places = [place(0), place(1), place(2)]
    slices = cut(clip, args, places, places)
    senders = [[m.sender for m in messages] for messages in slices.rounds]
    assert senders == [[1], [0, 2]]


@pytest.mark.parametrize("reverse", [False, True])
def test_a_scan_over_two_stages_is_unrolled(reverse):
    def scan(history, other, x, y):
        def step(carry, slices):
            x, y = carry
            scale = jnp.sum(slices[0] * x) + jnp.sum(slices[1] * y)
            return (x * scale, y * scale), scale

        (x, y), scales = jax.lax.scan(step, (x, y), (history, other), reverse=reverse)
        return x, y, scales

    args = [BIG.reshape(2, 1024) / 50, OTHER_BIG.reshape(2, 1024) / 50]
    args += [args[0][0], args[1][1]]
    places = [place(0), place(1), place(0), place(1)]
    slices = cut(scan, args, places, [place(0), place(1), place(0, 1)])
    assert len(slices.rounds) == 2
    expected = jax.jit(scan)(*args)
    for stage in (0, 1):
        found = run(slices, args, stage, [stage, 2])
        fo.testing.assert_equal(found[0], expected[stage])
        fo.testing.assert_equal(found[1], expected[2])


def test_what_follows_from_a_value_that_travels_does_not_travel_too():
    def clip(x, y):
        norm = jnp.sum(x)
        return jnp.where(norm < 1.0, y, y / norm)

    args = [BIG, OTHER_BIG]
    slices = cut(clip, args, [place(0), place(1)], [place(1)])
    assert [[str(m.var.aval) for m in messages] for messages in slices.rounds] == [
        ["float32[]"]
    ]
    same(run(slices, args, 1, [0])[0], jax.jit(clip)(*args))
