"""Stages as slices of a named axis, inside `jax.shard_map`."""

import functional_opt as fo
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec


STAGES = 4
CLIPPED = optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(1e-2))


def make_params(widths=(6,) * STAGES):
    keys = iter(jax.random.split(jax.random.key(0), 2 * len(widths)))
    return [
        {
            "weight": jax.random.normal(next(keys), (width, 4)),
            "bias": jax.random.normal(next(keys), (4,)),
        }
        for width in widths
    ]


@pytest.mark.parametrize(
    "tx, rounds",
    [
        (optax.adam(1e-2), 0),
        (CLIPPED, 1),
        (optax.chain(CLIPPED, optax.clip_by_global_norm(1e-3)), 2),
    ],
    ids=["adam", "clipped", "clipped twice"],
)
def test_the_same_step_as_stage_by_stage(tx, rounds):
    params = make_params()
    partition = fo.partition(params, list(range(STAGES)))
    staged = fo.stage_local(tx, params, partition)
    assert staged.rounds == rounds
    pieces = partition.split(params)
    states = staged.init(pieces)
    axis = staged.over_axis("stage")
    spec = PartitionSpec("stage")
    mesh = Mesh(np.array(jax.devices()[:STAGES]), ("stage",))

    def step(*trees):
        of_slice = jax.tree.map(lambda leaf: leaf[0], trees)
        return jax.tree.map(lambda leaf: leaf[None], axis.step(*of_slice))

    step = jax.jit(
        jax.shard_map(step, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    )
    where = NamedSharding(mesh, spec)
    stacked = jax.device_put((axis.stack(pieces), axis.stack(states)), where)
    for _ in range(2):
        grads = jax.tree.map(jnp.sin, pieces)
        pieces, states = staged.step(grads, states, pieces)
        sharded = jax.tree.map(jnp.sin, stacked[0]), stacked[1], stacked[0]
        stacked = step(*sharded)
        expected = axis.stack(pieces), axis.stack(states)
        fo.testing.assert_equal(stacked, expected)


def test_slices_must_be_of_one_form():
    params = make_params((6, 6, 5, 6))
    partition = fo.partition(params, list(range(STAGES)))
    staged = fo.stage_local(CLIPPED, params, partition)
    with pytest.raises(ValueError, match="Stage 2 has leaves of other shapes"):
        staged.over_axis("stage")


def test_tied_parameters_are_refused():
    params = {"tied": jnp.ones((4, 4))}
    partition = fo.partition(params, {"tied": {0, 1}})
    staged = fo.stage_local(CLIPPED, params, partition)
    with pytest.raises(ValueError, match="A parameter is owned by several"):
        staged.over_axis("stage")
