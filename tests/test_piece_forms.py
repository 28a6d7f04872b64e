"""Pieces are flattened and unflattened as JAX does it, also if most is empty."""

import enum
import functools
from collections import defaultdict, OrderedDict
from typing import Any, NamedTuple

import equinox as eqx
import functional_opt as fo
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest


STAGES, LEAVES = 8, 5


def params():
    """Containers of several kinds, some nested, on each of eight stages."""
    x = jnp.ones(2)
    return {
        f"stage{k}": {"list": [x] * LEAVES, "tuple": (x, [x, {"deep": x}])}
        for k in range(STAGES)
    } | {"none": None, "nothing": []}


PARTITION = fo.partition(
    params(), lambda path, leaf: int(path[0].key.removeprefix("stage"))
)
PIECES = PARTITION.split(params())


def opened(stage, piece):
    """The leaves of a piece, and a function from leaves to a piece."""
    split = PARTITION.params
    leaves = split.flatten("pieces", stage, piece)
    return leaves, functools.partial(split.unflatten, stage)


def test_pieces_keep_their_structure_and_leaves():
    for stage, piece in enumerate(PIECES):
        leaves, replaced_by = opened(stage, piece)
        expected, structure = jax.tree.flatten(piece)
        assert [*map(id, leaves)] == [*map(id, expected)]
        new = [object() for _ in leaves]
        made = replaced_by(new)
        assert jax.tree.structure(made) == structure
        assert [*map(id, jax.tree.leaves(made))] == [*map(id, new)]
        assert made["stage7" if stage == 0 else "stage0"]["tuple"][1][0] is None
        assert [*map(id, jax.tree.leaves(piece))] == [*map(id, expected)]


def test_containers_are_not_shared():
    """A caller may change a piece in place, also the parts of other stages."""
    (piece, *_), split = PARTITION.split(params()), PARTITION.params
    leaves, replaced_by = opened(0, piece)
    one, other = replaced_by(leaves), replaced_by(leaves)
    for changed in (piece, one):
        stage3 = changed["stage3"]
        stage3["list"][0] = stage3["tuple"][1][1]["deep"] = 1
        changed["stage0"]["list"][0] = 1
        changed["nothing"].append(1)
        del changed["stage4"]
    for made in (other, replaced_by(leaves), split.unflatten(0, leaves)):
        assert jax.tree.structure(made) == split.structures[0]
        assert int not in map(type, jax.tree.leaves(made))


class Name(enum.StrEnum):
    WEIGHT, BIAS = "weight", "bias"


def test_keys_may_be_members_of_an_enum():
    model = {f"layer{k}": {name: jnp.ones(2) for name in Name} for k in range(STAGES)}
    partition = fo.partition(model, {f"layer{k}": k for k in range(STAGES)})
    pieces = partition.split(model)
    staged = fo.stage_local(optax.sgd(1.0), model, partition)
    states = staged.init(pieces)
    staged.step(pieces, states, pieces)
    other = {**pieces[0], "layer1": {Name.WEIGHT: {}}}
    for wrong in (model, other):
        with pytest.raises(ValueError, match="does not match stage 0"):
            staged.step(pieces, states, (wrong, *pieces[1:]))


def test_keys_may_be_in_another_order():
    split, leaves = PARTITION.params, jax.tree.leaves(PIECES[0])
    piece = dict(reversed(PIECES[0].items()))
    piece["stage3"] = dict(reversed(piece["stage3"].items()))
    found, replaced_by = opened(0, piece)
    assert [*map(id, found)] == [*map(id, leaves)]
    assert jax.tree.structure(replaced_by(found)) == split.structures[0]


class Names(NamedTuple):
    a: Any
    b: Any


class Others(NamedTuple):
    a: Any
    b: Any


class Model(eqx.Module):
    a: Any
    b: Any
    label: str = eqx.field(static=True, default="")


class Other(Model):
    pass


ALIKE = [
    *[(1,), (1, 2), (1, 2, 3), [1, 2], (None, 1), (1, None)],
    *[(1, (2,)), (1, {}), (1, []), None, 1, {}, [], (), OrderedDict(), np.ones(2)],
    *[{"a": 1}, {"a": 1, "b": 2}, {"b": 1, "a": 2}, {"a": 1, "c": 2}],
    *[{"a": 1, "b": {"c": 2}}, OrderedDict(a=1, b=2), OrderedDict(b=1, a=2)],
    *[defaultdict(int, a=1, b=2), defaultdict(list, a=1, b=2)],
    *[Names(1, 2), Others(1, 2), Model(1, 2), Model(1, 2, "other"), Other(1, 2)],
    *[jax.tree_util.Partial(print, 1, 2), jax.tree_util.Partial(max, 1, 2)],
]


@pytest.mark.parametrize("tree", [*filter(jax.tree.leaves, ALIKE)], ids=repr)
def test_trees_of_the_same_structure_alone_fit(tree):
    params = jax.tree.map(jnp.float32, tree)
    partition = fo.partition(params, lambda path, leaf: 0)
    for other in ALIKE:
        if jax.tree.structure(other) == jax.tree.structure(tree):
            (piece,) = partition.split(other)
            assert jax.tree.leaves(partition.merge([piece])) == jax.tree.leaves(other)
        else:
            with pytest.raises(ValueError, match="does not match"):
                partition.split(other)


class Equal:
    def __eq__(self, other):
        return True


def replaced(value, *path):
    (piece,) = PARTITION.split(params())[:1]
    *inner, last = path
    node = piece
    for key in inner:
        node = node[key]
    node[last] = value
    return piece


@pytest.mark.parametrize(
    "piece, name",
    [
        (replaced(jnp.ones(2), "stage3", "list", 1), "['stage3']['list'][1]"),
        (replaced(jnp.ones(()), "stage3", "tuple", 1, 0), "['stage3']['tuple'][1][0]"),
        (replaced(jnp.ones(3), "stage3", "tuple", 1, 1, "deep"), "['deep']"),
        (replaced(None, "stage0", "list", 4), "['stage0']['list'][4]"),
        (replaced([None] * 4, "stage3", "list"), "containers"),
        (replaced({"more": None}, "stage3"), "containers"),
        (replaced(OrderedDict(), "nothing"), "containers"),
        (replaced((), "nothing"), "containers"),
        (replaced(OrderedDict(deep=None), "stage3", "tuple", 1, 1), "containers"),
    ],
)
def test_a_piece_that_does_not_fit_is_named(piece, name):
    with pytest.raises(ValueError, match="stage 0") as error:
        PARTITION.merge([piece, *PIECES[1:]])
    assert name in str(error.value)


@pytest.mark.parametrize(
    "piece",
    [
        replaced(Equal(), "nothing"),
        replaced(np.array(None, object), "stage3", "list", 1),
    ],
)
def test_what_equals_none_is_not_empty(piece):
    assert PARTITION.params.leaves_of(0, piece) is None
