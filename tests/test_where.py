from typing import Any

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


SMALL = settings(max_examples=50, deadline=None)
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


def test_a_tree_without_leaves_has_nothing_to_be_found():
    """Tools of Optax ask a mask about one, such as `optax.tree.map_params`."""
    assert fo.Where("tail")({}) == {}


def test_rules_of_rules():
    head, bias, matrices = fo.Where("head"), fo.Where("bias"), fo.Where(min_ndim=2)
    for where, expected in [
        (head & matrices, (False, True, False)),
        (bias | fo.Where("norm"), (True, False, True)),
        (~head, (False, False, True)),
        (~(head & matrices), (True, False, True)),
        (head & ~bias | fo.Where("norm"), (False, True, True)),
    ]:
        assert tuple(jax.tree.leaves(where(TREE))) == expected
    assert head & bias & matrices == fo.AllOf((head, bias, matrices))
    assert head | bias | matrices == fo.AnyOf((head, bias, matrices))
    assert ~head == fo.Not(head) and hash(~head) == hash(fo.Not(head))


@SMALL
@given(st.data())
def test_rules_are_those_of_sets(data):
    """Over paths and ranks, `&`, `|` and `~` are what they are of sets."""
    paths = ["a", "ab", "abc", "b", "bc", "c"]
    params = {
        path: jax.ShapeDtypeStruct((2,) * ndim, jnp.float32)
        for ndim, path in enumerate(paths)
    }

    def plain(letter, least):
        expected = {
            path for path in paths if letter in path and params[path].ndim >= least
        }
        return fo.Where(letter, least), expected

    def join(pairs):
        (one, first), (other, second) = pairs
        return data.draw(
            st.sampled_from(
                [
                    (one & other, first & second),
                    (one | other, first | second),
                    (~one, set(params) - first),
                ]
            )
        )

    where, expected = data.draw(
        st.recursive(
            st.builds(plain, st.sampled_from("abc"), st.integers(0, 3)),
            lambda inner: st.tuples(inner, inner).map(join),
            max_leaves=6,
        )
    )
    holed = params | {"hole": optax.MaskedNode()}
    found = where(holed)
    assert {path for path in params if found[path]} == expected


@pytest.mark.parametrize(
    "where, message",
    [
        (fo.Where("head") | fo.Where("tail"), r"`Where\(path='tail'.*, in `AnyOf\("),
        (~fo.Where("tail"), r"`Where\(path='tail'.*, in `Not\("),
        (~fo.Where(), r"^`Not\(.* finds no parameter\. There are"),
        (fo.Where("head") & fo.Where("norm"), r"^`AllOf\(.* finds no parameter"),
    ],
    ids=repr,
)
def test_rule_that_finds_nothing(where, message):
    with pytest.raises(ValueError, match=message):
        where(TREE)
    assert where(TREE | {"hole": optax.MaskedNode()})["norm"] in (True, False)


def test_wrong_parts():
    with pytest.raises(ValueError, match=r"`AnyOf.parts` must have at least one rule"):
        fo.AnyOf(())
    wrong: Any = (fo.Where(), 3)
    message = (
        r"`AllOf.parts` must be a tuple, each item a Where, an AllOf, an AnyOf or a "
        r"Not, got \(Where"
    )
    for _ in range(10):  # beartype looks at one item by chance.
        with pytest.raises(TypeError, match=message):
            fo.AllOf(wrong)
    with pytest.raises(TypeError, match=r"`Not.part` must be a Where, .* got 'tail'"):
        fo.Not("tail")  # pyright: ignore[reportArgumentType]


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
