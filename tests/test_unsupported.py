"""Parameters that an optimizer does not support are refused before the first step."""

import functional_opt as fo
import jax.numpy as jnp
import pytest


INEXACT = [
    *(fo.AdamMini(), fo.NorMuon(), fo.Novograd(), fo.NoisySGD(), fo.Quad(), fo.Skew()),
    *(fo.LBFGS(), fo.Sophia(), fo.Mechanize(base_optimizer=fo.SGD())),
]
FILLED = [
    *(fo.Muon(), fo.NorMuon(), fo.Scion(), fo.Kron(), fo.Quad(), fo.Skew(), fo.SM3())
]


@pytest.mark.parametrize("optimizer", INEXACT)
def test_integers(optimizer):
    message = rf"`{type(optimizer).__name__}` supports floating.* `\['b'\]` is int32"
    with pytest.raises(ValueError, match=message):
        optimizer.build(0.1).init({"a": jnp.ones((2, 2)), "b": jnp.ones((2, 2), int)})


@pytest.mark.parametrize("optimizer", FILLED)
@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_no_entries(optimizer, shape):
    message = rf"`{type(optimizer).__name__}` requires .* `\['b'\]` has shape \("
    with pytest.raises(ValueError, match=message):
        optimizer.build(0.1).init({"a": jnp.ones((2, 2)), "b": jnp.ones(shape)})
    group = fo.Group(fo.Where("a"), optimizer)
    params = {"a": jnp.ones((2, 2)), "b": jnp.ones(shape)}
    fo.Groups((group,), rest=fo.Adam()).build(0.1).init(params)
