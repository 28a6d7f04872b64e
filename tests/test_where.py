import equinox as eqx
import functional_opt as fo
import jax
import jax.numpy as jnp
import optax
import pytest
from hypothesis import given, settings, strategies as st


def model():
    key = jax.random.key(0)
    return eqx.filter(eqx.nn.MLP(2, 2, 2, 2, key=key), eqx.is_inexact_array)


TREE = {"head": {"weight": jnp.ones((2, 2)), "bias": jnp.ones(2)}, "norm": jnp.ones(())}


def test_everything():
    assert all(jax.tree.leaves(fo.Where()(TREE)))


@pytest.mark.parametrize(
    "where, expected",
    [
        (fo.Where("bias"), (True, False, False)),
        (fo.Where(r"^\['head'\]"), (True, True, False)),
        (fo.Where(min_ndim=1), (True, True, False)),
        (fo.Where("head", min_ndim=2), (False, True, False)),
    ],
)
def test_found(where, expected):
    found = where(TREE)
    assert jax.tree.structure(found) == jax.tree.structure(TREE)
    assert tuple(jax.tree.leaves(found)) == expected
    shapes = jax.eval_shape(lambda: TREE)
    assert where(shapes) == found


def test_paths_of_a_model():
    params = model()
    found = fo.Where(r"^layers\[1\]\.weight$")(params)
    assert jax.tree.structure(found) == jax.tree.structure(params)
    assert found.layers[1].weight is True
    assert sum(jax.tree.leaves(found)) == 1
    assert params.activation is None and found.activation is None


def test_mask_of_optax():
    where = fo.Where(min_ndim=2)
    transformation = optax.masked(optax.scale(2.0), where)
    updates, _ = transformation.update(TREE, transformation.init(TREE))
    by_leaf = jax.tree.map(lambda found: 2.0 if found else 1.0, where(TREE))
    scaled = jax.tree.map(lambda x, factor: x * factor, TREE, by_leaf)
    assert eqx.tree_equal(updates, scaled)


def test_nothing_found():
    message = (
        r"`Where\(path='tail', min_ndim=0\)` finds no parameter\. There are "
        r"`\['head'\]\['bias'\]` \(2,\), `\['head'\]\['weight'\]` \(2, 2\), "
        r"`\['norm'\]` \(\)\."
    )
    with pytest.raises(ValueError, match=message):
        fo.Where("tail")(TREE)
    with pytest.raises(ValueError, match="and 2 more"):
        fo.Where("tail")([jnp.ones(1)] * 6)
    with pytest.raises(ValueError, match="no leaves"):
        fo.Where("tail")({})


def test_nothing_found_beside_holes():
    params = TREE | {"norm": optax.MaskedNode()}
    assert not any(jax.tree.leaves(fo.Where("tail")(params)))


def test_wrong_fields():
    with pytest.raises(ValueError, match=r"`Where.path` must be a regular .* got '\('"):
        fo.Where("(")
    with pytest.raises(
        ValueError, match=r"`Where.min_ndim` must be at least 0, got -1"
    ):
        fo.Where(min_ndim=-1)
    with pytest.raises(TypeError, match=r"`Where.min_ndim` must be an int, got True"):
        fo.Where(min_ndim=True)
    with pytest.raises(TypeError, match="path"):
        fo.Where(path=3)  # pyright: ignore[reportArgumentType]


def test_is_a_value():
    assert fo.Where("a", 2) == fo.Where("a", 2) != fo.Where("a", 1)
    assert hash(fo.Where("a", 2)) == hash(fo.Where("a", 2))
    with pytest.raises(AttributeError):
        fo.Where().path = "a"  # pyright: ignore[reportAttributeAccessIssue]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=5), st.integers(0, 3))
def test_min_ndim(ndims, least):
    params = [jax.ShapeDtypeStruct((1,) * ndim, jnp.float32) for ndim in ndims]
    expected = [ndim >= least for ndim in ndims]
    if any(expected):
        assert fo.Where(min_ndim=least)(params) == expected
    else:
        with pytest.raises(ValueError, match="finds no parameter"):
            fo.Where(min_ndim=least)(params)
