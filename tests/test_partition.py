"""Who owns what; splitting and merging."""

from collections.abc import Callable

import equinox as eqx
import functional_opt as fo
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array


class Model(eqx.Module):
    embed: Array
    layers: list[eqx.nn.Linear]
    activation: Callable
    missing: None
    count: int

    def __init__(self, key):
        keys = jax.random.split(key, 3)
        self.embed = jax.random.normal(keys[0], (8, 4))
        self.layers = [
            eqx.nn.Linear(4, 4, key=keys[1]),
            eqx.nn.Linear(4, 4, use_bias=False, key=keys[2]),
        ]
        self.activation = jax.nn.relu
        self.missing = None
        self.count = 3


def stage_of(path, leaf):
    layer = [key for key in path if isinstance(key, jax.tree_util.SequenceKey)]
    return layer[0].idx if layer else 0


@pytest.fixture
def model():
    return Model(jax.random.key(0))


@pytest.fixture
def partition(model):
    return fo.partition(model, stage_of)


def test_a_piece_has_its_parameters_and_all_that_is_no_parameter(model, partition):
    first, second = partition.split(model)
    assert first.embed is model.embed and second.embed is None
    assert first.layers[1].weight is None
    assert second.layers[1].weight is model.layers[1].weight
    for piece in (first, second):
        assert piece.activation is jax.nn.relu and piece.count == 3


@pytest.mark.parametrize("filtered", [False, True])
def test_merge_undoes_split(model, partition, filtered):
    tree = eqx.filter(model, eqx.is_inexact_array) if filtered else model
    merged = partition.merge(partition.split(tree))
    assert jax.tree.structure(merged) == jax.tree.structure(tree)
    pairs = zip(jax.tree.leaves(merged), jax.tree.leaves(tree), strict=True)
    assert all(found is expected for found, expected in pairs)


def test_shapes_are_partitioned_like_arrays(model, partition):
    shapes = eqx.filter_eval_shape(Model, jax.random.key(0))
    assert fo.partition(shapes, stage_of) == partition


def test_a_prefix_of_stages_says_the_same_as_a_function(model):
    params = {"a": {"x": jnp.ones(2), "y": jnp.ones(3)}, "b": [jnp.ones(4)]}
    by_name = fo.partition(params, lambda path, _: {"a": 0, "b": 1}[path[0].key])
    assert fo.partition(params, {"a": 0, "b": [1]}) == by_name
    assert fo.partition(params, {"a": 0, "b": 1}) == by_name


def test_several_stages_may_own_a_parameter():
    params = {"embed": jnp.ones(2), "head": jnp.ones(3)}
    partition = fo.partition(params, {"embed": {0, 1}, "head": 1})
    first, second = partition.split(params)
    assert first["embed"] is second["embed"] is params["embed"]
    assert first["head"] is None


def test_stages_may_own_nothing():
    params = {"a": jnp.ones(2)}
    partition = fo.partition(params, {"a": 1}, num_stages=4)
    pieces = partition.split(params)
    assert [jax.tree.leaves(piece) for piece in pieces] == [[], [params["a"]], [], []]
    assert partition.merge(pieces)["a"] is params["a"]


def test_numpy_integers_are_stages():
    params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    stages = {"a": np.int64(0), "b": np.int32(1)}
    assert fo.partition(params, stages) == fo.partition(params, {"a": 0, "b": 1})


@pytest.mark.parametrize("nothing", [None, set(), ()])
def test_a_leaf_without_a_stage(nothing):
    with pytest.raises(ValueError, match=r"`\['b'\]` has no stage.*Assign the stage"):
        fo.partition(
            {"a": jnp.ones(2), "b": jnp.ones(2)},
            lambda path, _: 0 if path[0].key == "a" else nothing,
        )


class Pair(eqx.Module):
    embed: Array
    head: Array


ONES, BY_NAME = jnp.ones(2), {"embed": 0, "head": 1}


@pytest.mark.parametrize(
    "params, wrong, stages, key",
    [
        (Pair(ONES, ONES), BY_NAME, BY_NAME, "name"),
        ({"embed": ONES, "head": ONES}, [0, 1], BY_NAME, "key"),
        ((ONES, ONES), BY_NAME, [0, 1], "idx"),
    ],
)
def test_a_prefix_of_another_type_names_a_function_that_works(
    params, wrong, stages, key
):
    with pytest.raises(ValueError, match=r"got a (list|dict) for a") as error:
        fo.partition(params, wrong)
    assert f"`lambda path, leaf: stages[path[0].{key}]`" in str(error.value)
    found = fo.partition(params, lambda path, leaf: stages[getattr(path[0], key)])
    assert found.num_stages == 2


def test_a_prefix_of_a_bare_array():
    with pytest.raises(ValueError, match=r"got a dict for a single array.*the leaf\.$"):
        fo.partition(ONES, {"a": 1})


def test_a_prefix_without_a_stage():
    with pytest.raises(ValueError, match=r"`\['b'\]\[0\]` has no stage"):
        fo.partition({"a": jnp.ones(2), "b": [jnp.ones(2)]}, {"a": 0, "b": None})


@pytest.mark.parametrize("stage", [-1, 2])
def test_a_stage_out_of_range(stage):
    with pytest.raises(ValueError, match=rf"`\['a'\]`.*stage {stage}.*are 0 to 1\."):
        fo.partition({"a": jnp.ones(2)}, {"a": stage}, num_stages=2)


@pytest.mark.parametrize("stage", [1.0, "first", True])
def test_a_stage_that_is_no_int(stage):
    with pytest.raises(TypeError, match=r"must assign a stage.*to `\['a'\]`"):
        fo.partition({"a": jnp.ones(2)}, lambda path, leaf: stage)


def test_splitting_another_tree_names_the_first_path_that_differs(partition):
    with pytest.raises(
        ValueError, match=r"expected a leaf at `embed`, found.*`\['a'\]"
    ):
        partition.split({"a": jnp.ones(2)})


def test_merging_another_piece_names_the_first_path_that_differs(model, partition):
    first, _ = partition.split(model)
    with pytest.raises(ValueError, match=r"`pieces\[1\]`.*layers\[1\].weight"):
        partition.merge((first, first))


def test_merging_a_whole_tree_says_what_to_do(model, partition):
    with pytest.raises(TypeError, match=r"tuple of 2 trees.*partition\.split"):
        partition.merge(model)


def test_merging_too_few_pieces(model, partition):
    with pytest.raises(ValueError, match="each of the 2 stages, got 1"):
        partition.merge(partition.split(model)[:1])


def test_merging_pieces_of_two_kinds(model, partition):
    filtered = eqx.filter(model, eqx.is_inexact_array)
    mixed = (partition.split(model)[0], partition.split(filtered)[1])
    with pytest.raises(ValueError, match="leaves that are not parameters"):
        partition.merge(mixed)
