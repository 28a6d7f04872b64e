"""Pieces in which most is empty are flattened and unflattened like any others."""

from collections import OrderedDict

import functional_opt as fo
import jax
import jax.numpy as jnp
import numpy as np
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


def test_pieces_keep_their_structure_and_leaves():
    split = PARTITION.params
    for stage, piece in enumerate(PIECES):
        leaves = split.leaves_of(stage, piece)
        expected, structure = jax.tree.flatten(piece)
        assert leaves is not None
        assert [*map(id, leaves)] == [*map(id, expected)]
        made = split.unflatten(stage, leaves)
        assert jax.tree.structure(made) == structure
        assert made["stage7" if stage == 0 else "stage0"]["tuple"][1][0] is None


def test_empty_containers_are_not_shared():
    split = PARTITION.params
    leaves = split.leaves_of(0, PIECES[0])
    assert leaves is not None
    one, other = (split.unflatten(0, leaves) for _ in range(2))
    one["stage3"]["list"][0] = one["stage3"]["tuple"][1][1]["deep"] = 1
    one["nothing"].append(1)
    assert jax.tree.structure(other) == split.structures[0]
    assert jax.tree.structure(split.unflatten(0, leaves)) == split.structures[0]


def test_keys_may_be_in_another_order():
    split, leaves = PARTITION.params, jax.tree.leaves(PIECES[0])
    piece = dict(reversed(PIECES[0].items()))
    piece["stage3"] = dict(reversed(piece["stage3"].items()))
    found = split.leaves_of(0, piece)
    assert found is not None and [*map(id, found)] == [*map(id, leaves)]


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
