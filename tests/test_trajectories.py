"""Twenty steps as the authors' own implementations take them.

`record_trajectories` has recorded these, and says from what.
"""

from collections.abc import Hashable
from typing import Any

import functional_opt as fo
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import quick_compiler
import trajectory_inputs as inputs


class Anneal(fo.AbstractSchedule):
    """What the recording was given: flat for 5 updates, then falling to 0.2."""

    def __call__(self, count):
        return jnp.clip(jnp.exp(-0.3 * (count - 5.0)), 0.2, 1.0)


def scion_of_each(unconstrained, **norms: Any):
    transformations: dict[Hashable, Any] = {
        name: fo.Scion(unconstrained=unconstrained, **fields).build(0.1)
        for name, fields in norms.items()
    }
    return optax.partition(transformations, {name: name for name in norms})


OPTIMIZERS = {
    "mars": fo.Mars(gamma=0.05, weight_decay=0.2),
    "mars_1d": fo.Mars(b1=0.8, b2=0.9, eps=1e-3, optimize_1d=True),
    "soap": fo.SOAP(weight_decay=0.0, precondition_frequency=3, max_precond_dim=6),
    "soap_merged": fo.SOAP(
        b1=0.8,
        b2=0.9,
        shampoo_beta=0.7,
        eps=1e-3,
        weight_decay=0.0,
        precondition_frequency=4,
        max_precond_dim=6,
        merge_dims=True,
        normalize_grads=True,
        correct_bias=False,
    ),
    "scion": fo.Scion(momentum=0.3, scale=2.0),
    "kron": fo.Kron(
        weight_decay=0.2,
        mask=fo.Where(min_ndim=2),
        precond_lr=0.3,
        precond_dtype="float64",
    ),
    "kron_every_third": fo.Kron(
        b1=0.5,
        preconditioner_update_probability=0.35,
        max_size_triangular=6,
        min_ndim_triangular=1,
        memory_save_mode="smart_one_diag",
        momentum_into_precond_update=False,
        precond_init_scale=0.5,
        merge_dims=False,
        precond_dtype="float64",
    ),
    "kron_flat_start": fo.Kron(
        preconditioner_update_probability=Anneal(),
        memory_save_mode="one_diag",
        precond_dtype="float64",
    ),
    "quad": fo.Quad(weight_decay=0.2),
    "quad_diagonal": fo.Quad(
        lr_style=None,
        momentum=0.6,
        weight_decay=0.0,
        max_size_dense=6,
        max_skew_dense=2.0,
        preconditioner_lr=0.4,
        noise_scale=1e-3,
    ),
    "skew": fo.Skew(
        lr_style=None,
        momentum=0.5,
        weight_decay=0.0,
        preconditioner_lr=0.3,
        preconditioner_init_scale=1.0,
    ),
    "skew_diagonal": fo.Skew(
        lr_style=None,
        momentum=0.4,
        weight_decay=0.0,
        max_size_dense=6,
        max_skew_dense=2.0,
        preconditioner_lr=0.3,
        preconditioner_init_scale=1.0,
        noise_scale=1e-3,
    ),
    "ademamix": fo.AdEMAMix(b1=0.8, b2=0.95, b3=0.99, alpha=3.0, weight_decay=0.2),
    "adopt": fo.ADOPT(b1=0.8, b2=0.95, eps=1e-3),
    "cautious": fo.Cautious(fo.AdamW(b1=0.8, b2=0.95, eps=0.0, weight_decay=0.2)),
    "sophia": fo.Sophia(
        b1=0.8,
        b2=0.95,
        weight_decay=0.2,
        gamma=0.3,
        update_interval=3,
        hessian_diagonal_fn=optax.stateless(
            lambda gradients, _: jax.tree.map(jnp.square, gradients)
        ),
    ),
    "adam_mini": fo.AdamMini(
        b1=0.8,
        b2=0.95,
        blocks=(
            fo.Blocks(fo.Where("square"), count=3),
            fo.Blocks(fo.Where("wide|vector")),
        ),
        weight_decay=0.2,
        mask=fo.Where(min_ndim=2),
    ),
}

TRANSFORMATIONS = {
    **{name: optimizer.build(0.1) for name, optimizer in OPTIMIZERS.items()},
    "prodigy": fo.Prodigy(weight_decay=0.2).build(1.0),
    "prodigy_safeguard": fo.Prodigy(
        betas=(0.8, 0.95), estim_lr0=1e-3, safeguard_warmup=True
    ).build(1.0),
    "scion_norms": scion_of_each(
        unconstrained=True,
        scalar=dict(norm="BiasRMS"),
        vector=dict(norm="BiasRMS"),
        square=dict(norm="Sign", normalized=False),
        wide=dict(norm="ColNorm", normalized=True, transpose=True),
        stacked=dict(norm="SpectralConv", steps=3),
    ),
    "scion_more_norms": scion_of_each(
        unconstrained=False,
        scalar=dict(norm="BiasRMS"),
        vector=dict(norm="BiasRMS"),
        square=dict(norm="RowNorm"),
        wide=dict(norm="Spectral", max=True),
        stacked=dict(norm="SpectralConv"),
    ),
}


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_steps_as_the_authors_do(name, monkeypatch):
    monkeypatch.setattr(
        jax.random, "normal", lambda _, shape, *__: jnp.asarray(inputs.stand_in(shape))
    )
    recorded = np.load(inputs.TRAJECTORIES / f"{name}.npz")
    with jax.enable_x64(True):
        transformation = TRANSFORMATIONS[name]
        params = jax.tree.map(jnp.asarray, inputs.params())
        state = transformation.init(params)

        @quick_compiler.jit
        def step(gradients, state, params):
            updates, state = transformation.update(gradients, state, params)
            return optax.apply_updates(params, updates), state

        for number, gradients in enumerate(inputs.gradients()):
            params, state = step(gradients, state, params)
            expected = {leaf: recorded[leaf][number] for leaf in params}
            # The authors' libraries add up products of matrices in other orders.
            fo.testing.assert_equal(params, expected, grade="bounded")
