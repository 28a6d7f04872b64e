"""Why Optax's own tests may fail is told from the errors that the library raises."""

import functional_opt as fo
import jax
import jax.numpy as jnp
import optax
import pytest
from optax_suite import reason_of, REASONS


PARAMS = {"a": jnp.ones((4, 4)), "b": jnp.ones((4, 4))}
PARTITION = fo.partition(PARAMS, {"a": 0, "b": 1})
COUNTED = optax.scale_by_schedule(lambda count: 0.1)


def mixing(updates, _):
    return {**updates, "a": updates["a"] @ updates["b"]}


def stateful(state, new_state):
    return optax.GradientTransformation(
        lambda params: state, lambda updates, state, params=None: (updates, new_state)
    )


def split(tx=COUNTED, **options):
    return fo.stage_local(tx, PARAMS, PARTITION, **options)


def step_with_another_state():
    staged = split()
    pieces = PARTITION.split(PARAMS)
    states = jax.tree.map(lambda x: x.astype("float32"), staged.init(pieces))
    staged.step(pieces, states, pieces)


RAISING = {
    "it calls a function with the whole parameters": (
        lambda: split(extra_args={"value_fn": jnp.sum})
    ),
    "it mixes whole tensors of different stages": (
        lambda: split(optax.stateless(mixing))
    ),
    "it is passed text, which `jax.jit` does not take": (
        lambda: split(extra_args={"name": "hi"})
    ),
    "it is passed gradients of another tree than the parameters": (
        lambda: split(grads={"a": PARAMS["a"]})
    ),
    "it returns a state of another structure than it takes": (
        lambda: split(stateful({"a": 1.0}, {"b": 1.0}))
    ),
    "it returns a state of other dtypes than it takes": (
        lambda: split(stateful(jnp.int32(1), jnp.float32(1)))
    ),
    "it is passed a state of other dtypes than `init` makes": step_with_another_state,
}


@pytest.mark.parametrize("reason", REASONS)
def test_an_error_has_its_reason(reason):
    with pytest.raises((TypeError, ValueError)) as caught:
        RAISING[reason]()
    assert reason_of("a test", f"{caught.typename}: {caught.value}") == reason


def test_any_other_error_has_none():
    assert reason_of("a test", "ValueError: These leaves differ.") is None
