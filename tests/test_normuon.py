"""NorMuon: the steps of Muon with neurons of equal size."""

from typing import Any

import functional_opt as fo
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax.contrib import MuonDimensionNumbers
from recipe_runs import PARAMS, recipe, run, SCHEDULE


def sines(params: Any, _: Any) -> Any:
    return jax.tree.map(lambda x: jnp.sin(3 * x), params)


def test_with_one_neuron_it_is_muon():
    """There is nothing to equalize."""
    params = {"matrix": jnp.array([[0.3, 1.0, -0.7]]).T, "norm": PARAMS["norm"]}
    normuon = run(fo.NorMuon(beta2=0.0).build(SCHEDULE), params=params, grads_of=sines)
    muon = run(fo.Muon().build(SCHEDULE), params=params, grads_of=sines)
    found, expected = normuon.params["matrix"], muon.params["matrix"]
    fo.testing.assert_equal(found, expected, grade="bounded")


@pytest.mark.parametrize("rms", [None, 0.2])
def test_against_numpy(rms):
    params = {"matrix": jax.random.normal(jax.random.key(0), (4, 6))}
    options: dict[str, Any] = dict(ns_steps=3, beta=0.9)
    ours = fo.NorMuon(beta2=0.8, consistent_rms=rms, **options).build(0.1)
    numbers = {"matrix": MuonDimensionNumbers()}
    muon = optax.contrib.scale_by_muon(**options, weight_dimension_numbers=numbers)
    state, their_state, average = ours.init(params), muon.init(params), np.zeros((1, 6))
    scale = np.sqrt(6 / 4) if rms is None else np.sqrt(6) * rms
    update, their_update = jax.jit(ours.update), jax.jit(muon.update)
    for count in range(4):
        grads = jax.tree.map(lambda x, i=count: jnp.sin((i + 2) * x), params)
        found, state = update(grads, state, params)
        theirs: Any
        theirs, their_state = their_update(grads, their_state, params)
        step = np.asarray(theirs["matrix"], np.float64)
        average = 0.8 * average + 0.2 * (step**2).mean(0, keepdims=True)
        scaled = step / np.sqrt(average)
        scaled *= np.linalg.norm(step) / np.linalg.norm(scaled)
        np.testing.assert_allclose(found["matrix"], -0.1 * scale * scaled, rtol=2e-5)


def test_of_any_axes_and_dtype():
    numbers = MuonDimensionNumbers(reduction_axis=(1, 2), output_axis=0)
    leaf = jax.random.normal(jax.random.key(0), (6, 2, 3))
    of_axes = fo.NorMuon(muon_weight_dimension_numbers=numbers).build(0.1)
    found = run(of_axes, params={"w": leaf}, grads_of=sines)
    plain = fo.NorMuon().build(0.1)
    matrix = run(plain, params={"w": leaf.reshape(6, 6).T}, grads_of=sines)
    expected = matrix.params["w"].T.reshape(6, 2, 3)
    fo.testing.assert_equal(found.params["w"], expected, grade="bounded")
    narrow = of_axes.init({"w": leaf.astype("bfloat16")})
    shapes = [(x.shape, x.dtype.name) for x in jax.tree.leaves(narrow)]
    assert ((6, 1, 1), "float32") in shapes and ((6, 2, 3), "bfloat16") in shapes


def test_decays_and_explains():
    ours = recipe(optimizer=fo.NorMuon(), weight_decay=0.1)
    assert "muon: NorMuonMatrices" in ours.explain(PARAMS)
    assert {x.split()[-1] for x in ours.explain(PARAMS).splitlines()} == {
        "decay",
        "0.1",
    }


def test_coefficients_are_checked():
    triple = (3.0, -4.0, 2.0)
    with pytest.raises(ValueError, match=r"`NorMuon.ns_steps` must be at least .*3"):
        fo.NorMuon(ns_coeffs=(triple,) * 3, ns_steps=2)
    with pytest.raises(ValueError, match=r"`NorMuon.ns_coeffs` must have at least one"):
        fo.NorMuon(ns_coeffs=())
    # A gradient of 0 would be divided by it.
    with pytest.raises(ValueError, match=r"`NorMuon.eps` must be greater than 0"):
        fo.NorMuon(eps=0.0)
