"""Gradients of tied parameters that are summed already, and gradients that are lent."""

import contextlib
import inspect

import functional_opt as fo
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec


STAGES = 8
DEVICES = jax.devices()
CLIPPED = optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(1e-2))
OWNERS = [0, 3, 7]
DEVICES_OF_OWNERS = [DEVICES[stage] for stage in OWNERS]


def make_params():
    keys = iter(jax.random.split(jax.random.key(0), 5 * STAGES + 1))
    blocks = [
        [jax.random.normal(next(keys), (4, 3)) for _ in range(5)] for _ in range(STAGES)
    ]
    return {"blocks": blocks, "embed": jax.random.normal(next(keys), (6, 4))}


PARAMS = make_params()
PARTITION = fo.partition(
    PARAMS, {"blocks": list(range(STAGES)), "embed": frozenset(OWNERS)}
)


def on_first(grad):
    """On one owner; the others have None."""
    return [jax.device_put(grad, DEVICES[0]), None, None]


def on_last(grad):
    return [None, None, jax.device_put(grad, DEVICES[7])]


def on_each(grad):
    return [jax.device_put(grad, device) for device in DEVICES_OF_OWNERS]


def on_owners(grad):
    """One array on the devices of all owners."""
    mesh = Mesh(np.array(DEVICES_OF_OWNERS), ("stage",))
    return [jax.device_put(grad, NamedSharding(mesh, PartitionSpec()))] * 3


def on_all(grad):
    mesh = Mesh(np.array(DEVICES).reshape(4, 2), ("a", "b"))
    return [jax.device_put(grad, NamedSharding(mesh, PartitionSpec())), None, None]


WAYS = [on_first, on_last, on_each, on_owners, on_all]


def place(tree):
    """Each stage's piece on its device, in memory of its own."""
    pieces = PARTITION.split(jax.tree.map(jnp.copy, tree))
    return jax.device_put(pieces, tuple(DEVICES), may_alias=False)


def split(grads, way):
    pieces = list(place(grads))
    for stage, grad in zip(OWNERS, way(jnp.copy(grads["embed"])), strict=True):
        pieces[stage] = pieces[stage] | {"embed": grad}
    return tuple(pieces)


@jax.jit
def reference(grads, state, params):
    updates, state = CLIPPED.update(grads, state, params)
    return optax.apply_updates(params, updates), state


@pytest.mark.parametrize("way", WAYS)
def test_the_bits_of_the_whole_tree(way):
    staged = fo.stage_local(CLIPPED, PARAMS, PARTITION, tied_grads="summed")
    assert staged.rounds == 1
    pieces = place(PARAMS)
    states, whole, state = staged.init(pieces), PARAMS, CLIPPED.init(PARAMS)
    for step in range(3):
        grads = jax.tree.map(lambda x, k=step: jnp.sin(x + k), PARAMS)
        pieces, states = staged.step(split(grads, way), states, pieces)
        whole, state = reference(grads, state, whole)
    fo.testing.assert_equal(PARTITION.merge(pieces), whole)
    fo.testing.assert_equal(staged.merge_state(states), state)
    for stage in OWNERS:
        assert pieces[stage]["embed"].devices() == {DEVICES[stage]}
        fo.testing.assert_equal(pieces[stage]["embed"], pieces[0]["embed"])


@pytest.mark.parametrize("way", WAYS)
def test_only_a_broadcast_copies(way):
    staged = fo.stage_local(CLIPPED, PARAMS, PARTITION, tied_grads="summed")
    pieces = place(PARAMS)
    states, grads = staged.init(pieces), split(PARAMS, way)
    staged.step(grads, states, pieces)
    copies = way in (on_first, on_last)
    expected = pytest.raises(Exception, match="isallowed") if copies else None
    guard = jax.transfer_guard_device_to_device("disallow_explicit")
    with guard, expected or contextlib.nullcontext():
        jax.block_until_ready(staged.step(grads, states, pieces))


def test_no_owner_has_a_gradient():
    staged = fo.stage_local(CLIPPED, PARAMS, PARTITION, tied_grads="summed")
    pieces = place(PARAMS)
    none = split(PARAMS, lambda grad: [None] * 3)
    zeros = split(PARAMS, lambda grad: on_each(jnp.zeros_like(grad)))
    found = staged.step(none, staged.init(pieces), pieces)
    fo.testing.assert_equal(found, staged.step(zeros, staged.init(pieces), pieces))


def test_a_gradient_on_no_owner_is_refused():
    staged = fo.stage_local(CLIPPED, PARAMS, PARTITION, tied_grads="summed")
    pieces = place(PARAMS)
    grads = split(PARAMS, lambda grad: [jax.device_put(grad, DEVICES[1]), None, None])
    with pytest.raises(ValueError, match="the same devices"):
        staged.step(grads, staged.init(pieces), pieces)


def test_in_one_program_and_against_the_oracle():
    staged = fo.stage_local(CLIPPED, PARAMS, PARTITION, tied_grads="summed")
    fo.testing.assert_stage_local_equal(CLIPPED, PARAMS, PARTITION, staged=staged)
    pieces = PARTITION.split(PARAMS)
    grads = [*pieces]
    grads[3] = pieces[3] | {"embed": None}
    given = tuple(grads), staged.init(pieces), pieces
    found = jax.jit(staged.step)(*given)
    fo.testing.assert_equal(found, staged.step(*given))


@pytest.mark.parametrize("method", ["step", "update"])
@pytest.mark.parametrize("tied_grads", ["partial", "summed"])
def test_donated_gradients_are_deleted(method, tied_grads):
    options = {"tied_grads": tied_grads, "donate": "all"}
    staged = fo.stage_local(CLIPPED, PARAMS, PARTITION, **options)
    kept = fo.stage_local(CLIPPED, PARAMS, PARTITION, tied_grads=tied_grads)
    pieces = place(PARAMS)
    states, grads = staged.init(pieces), split(jax.tree.map(jnp.sin, PARAMS), on_each)
    expected = getattr(kept, method)(grads, states, pieces)
    found = getattr(staged, method)(grads, states, pieces)
    fo.testing.assert_equal(found, expected)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((grads, states)))
    lost = [leaf.is_deleted() for leaf in jax.tree.leaves(pieces)]
    assert lost == [method == "step"] * len(lost)


def test_deleted_gradients_are_named():
    staged = fo.stage_local(CLIPPED, PARAMS, PARTITION, donate="all")
    pieces = place(PARAMS)
    grads = split(PARAMS, on_each)
    pieces, states = staged.step(grads, staged.init(pieces), pieces)
    with pytest.raises(ValueError, match=r"of `grads\[0\]` has been deleted.*'all'"):
        staged.step(grads, states, pieces)


def test_gradients_that_are_the_donated_parameters():
    staged = fo.stage_local(CLIPPED, PARAMS, PARTITION, donate="all")
    pieces = place(PARAMS)
    with pytest.raises(ValueError, match=r"the same buffer.*`donate='all'`"):
        staged.step(pieces, staged.init(pieces), pieces)


@pytest.mark.parametrize(
    "function", [fo.AbstractOptimizer.build_mpmd, fo.Recipe.build_mpmd]
)
def test_build_mpmd_takes_the_options_of_stage_local(function):
    known = inspect.signature(fo.stage_local).parameters
    taken = inspect.signature(function).parameters
    assert known.keys() - taken.keys() == {"tx"}
    for name in known.keys() & taken.keys():
        assert str(taken[name]) == str(known[name])


@pytest.mark.parametrize("options", [{"tied_grads": "sum"}, {"donate": "some"}])
def test_other_words(options):
    with pytest.raises((TypeError, ValueError), match=next(iter(options))):
        fo.stage_local(CLIPPED, PARAMS, PARTITION, **options)
