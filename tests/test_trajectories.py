"""Twenty steps as the authors' own implementations take them.

`record_trajectories` has recorded these, and says from what.
"""

from pathlib import Path

import functional_opt as fo
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import trajectory_inputs as inputs


FOLDER = Path(__file__).parent / "trajectories"


CASES = {
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
}


@pytest.mark.parametrize("name", CASES)
def test_steps_as_the_authors_do(name):
    recorded = np.load(FOLDER / f"{name}.npz")
    with jax.enable_x64(True):
        transformation = CASES[name].build(0.1)
        params = jax.tree.map(jnp.asarray, inputs.params())
        state = transformation.init(params)

        @jax.jit
        def step(gradients, state, params):
            updates, state = transformation.update(gradients, state, params)
            return optax.apply_updates(params, updates), state

        for number, gradients in enumerate(inputs.gradients()):
            params, state = step(gradients, state, params)
            expected = {leaf: recorded[leaf][number] for leaf in params}
            fo.testing.assert_equal(params, expected, grade="close")
