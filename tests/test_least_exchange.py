"""The bounds on what stages exchange, on functions where they are known."""

import jax
import jax.numpy as jnp
import pytest
from least_exchange import Least, least_exchange, NEVER


X = jnp.ones(8)
Y = jnp.ones(8)


def least(function, input_stages, result_stages, *arguments, num_stages=3):
    closed = jax.make_jaxpr(function)(*arguments)
    inputs, results = map(frozenset, input_stages), map(frozenset, result_stages)
    return least_exchange(closed, [*inputs], [*results], num_stages, 8)


def norm(*trees):
    return sum(jnp.sum(x * x) for x in trees)


def test_nothing_is_exchanged_by_one_stage():
    assert least(norm, [{0}, {0}], [{0}], X, Y) == Least(0, 0)
    assert least(lambda x, y: (x + 1, y), [{0}, {1}], [{0}, {1}], X, Y) == (0, 0)


def test_a_sum_of_all_takes_a_round_and_a_number_each():
    assert least(norm, [{0}, {1}], [{0, 1, 2}], X, Y) == (1, 8)


def test_one_reader_is_not_sent_its_own():
    assert least(norm, [{0}, {1}], [{0}], X, Y) == (1, 4)


def test_a_stage_adds_up_what_are_neighbors():
    stages = [{0}, {0}, {1}]
    assert least(norm, stages, [{0, 1}], X, X, Y) == (1, 8)
    stages = [{0}, {1}, {0}]
    assert least(norm, stages, [{0, 1}], X, Y, X) == (1, 12)


def test_the_smallest_cut_is_taken():
    def four(x, y):
        parts = x[:3]
        return jnp.sum(parts) * y

    assert least(four, [{0}, {1}], [{1}], X, Y) == (1, 4)

    def spread(x, y):
        scale = jnp.sum(x)
        return y * jnp.stack([scale, scale + 1, scale + 2, scale + 3]).sum()

    assert least(spread, [{0}, {1}], [{1}], X, Y) == (1, 4)


def test_a_sum_of_scaled_values_takes_a_second_round():
    def twice(x, y):
        total = norm(x, y)
        return norm(x / total, y / total)

    assert least(twice, [{0}, {1}], [{0, 1}], X, Y) == (2, 16)


def test_whole_tensors_do_not_travel():
    assert least(jnp.add, [{0}, {1}], [{0}], X, Y) == (NEVER, 0)


def test_words_are_whole():
    def finite(x, y):
        return jnp.isfinite(x).all() & jnp.isfinite(y).all()

    assert least(finite, [{0}, {1}], [{0, 1}], X, Y) == (1, 8)


@pytest.mark.parametrize("depends_on_index", [False, True])
def test_a_cond_result_depends_on_its_own_cases(depends_on_index):
    def choose(count, x, y):
        index = count > 1
        if depends_on_index:
            index = jnp.sum(x) > 1
        return jax.lax.cond(index, lambda: (x, y), lambda: (x + 1, y * 2))

    rounds, nbytes = least(choose, [{0, 1}, {0}, {1}], [{0}, {1}], 1, X, Y)
    assert (rounds, nbytes) == ((1, 4) if depends_on_index else (0, 0))


def test_a_loop_over_stages_is_unrolled():
    def loop(x, y):
        def body(carry, _):
            x, y = carry
            total = norm(x, y)
            return (x / total, y / total), None

        return jax.lax.scan(body, (x, y), None, length=3)[0]

    assert least(loop, [{0}, {1}], [{0}, {1}], X, Y) == (3, 24)
