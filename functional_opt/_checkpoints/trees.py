"""The leaves of parameters and state by path, whether whole or in pieces."""

import functools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import optax
from jaxtyping import PyTree

from .._slicing.stage_sets import StageSet
from .._stages.local import StageLocal
from .._stages.trees import check_pieces_here, check_stages, Pieces, TreeSplit
from .records import is_array, is_storable, Record, record_of


class Held(NamedTuple):
    """A leaf of a piece: its path in the whole tree, and the set of its stages."""

    path: str
    stages: StageSet
    leaf: Any


@dataclass(frozen=True)
class Tree:
    """A tree that is split into pieces. A whole tree is one piece.

    **Attributes:**

    - `name`: the start of its paths.
    - `split`: the structure of the tree and the stages of its leaves.
    - `pieces`: one per stage, or None if another process holds it.
    - `required`: the paths that a checkpoint must contain.
    """

    name: str
    split: TreeSplit
    pieces: tuple[PyTree, ...]
    required: frozenset[str]

    @classmethod
    def of(
        cls, name: str, split: TreeSplit, pieces: Pieces, required: Collection[str]
    ) -> "Tree":
        if len(set(split.paths)) < len(split.paths):
            raise ValueError(
                f"Leaves of `{name}` have the same path, and a checkpoint cannot tell "
                "them apart. Register their nodes with distinct keys."
            )
        full = frozenset(_full_path(name, path) for path in required)
        return cls(name, split, tuple(pieces), full)

    @classmethod
    def whole(cls, name: str, tree: PyTree) -> "Tree":
        leaves = jax.tree.leaves(tree)
        split = TreeSplit.of(tree, [frozenset({0})] * len(leaves), 1)
        records = zip(split.paths, map(record_of, leaves), strict=True)
        required = [path for path, record in records if is_array(record)]
        return cls.of(name, split, (tree,), required)

    @functools.cached_property
    def paths(self) -> tuple[str, ...]:
        """The paths of all leaves, in the order of the whole tree."""
        return tuple(_full_path(self.name, path) for path in self.split.paths)

    def held(self, stage: int) -> list[Held]:
        """The leaves of the piece of a stage; empty if another process holds it."""
        piece = self.pieces[stage]
        if piece is None:
            return []
        leaves = self.split.flatten(self.name, stage, piece)
        return [
            Held(self.paths[i], self.split.stage_sets[i], leaf)
            for i, leaf in zip(self.split.held[stage], leaves, strict=True)
        ]

    def replace(self, stage: int, leaves: Sequence[Any]) -> PyTree:
        """The piece of a stage with other leaves."""
        if self.pieces[stage] is None:
            return None
        return self.split.unflatten(stage, leaves)


@dataclass(frozen=True)
class Training:
    """The parameters of a training run, and its state if that is asked for."""

    trees: tuple[Tree, ...]

    @classmethod
    def of(
        cls, params: PyTree | Pieces, state: PyTree | Pieces, staged: StageLocal | None
    ) -> "Training":
        """Trees in pieces if their `StageLocal` is given, and else whole trees."""
        tree = cls.of_params(params, staged).trees[0]
        if staged is None:
            return cls((tree, Tree.whole("state", state)))
        split = staged.programs[0].state
        _check_pieces("state", state, staged, split)
        return cls((tree, Tree.of("state", split, state, split.paths)))

    @classmethod
    def of_params(
        cls, params: PyTree | Pieces, staged: StageLocal | None
    ) -> "Training":
        if staged is None:
            return cls((Tree.whole("params", params),))
        partition = staged.partition
        _check_pieces("params", params, staged, partition.params)
        forms = [partition.form_of(piece) for piece in params if piece is not None]
        form = next(iter(forms), partition.model)
        return cls((Tree.of("params", form, params, partition.params.paths),))

    @property
    def paths(self) -> list[str]:
        """The paths of all leaves, in the order of the whole trees."""
        return [path for tree in self.trees for path in tree.paths]

    @property
    def required(self) -> frozenset[str]:
        """The paths that a checkpoint must contain."""
        return frozenset[str]().union(*(tree.required for tree in self.trees))

    def of_these(self, records: Mapping[str, Record]) -> dict[str, Record]:
        """The records of a checkpoint that belong to these trees."""
        names = tuple(tree.name for tree in self.trees)
        return {p: record for p, record in records.items() if p.startswith(names)}

    @functools.cached_property
    def by_stage(self) -> list[list[Held]]:
        """The leaves that this process holds, by stage."""
        stages = range(self.trees[0].split.num_stages)
        return [[h for tree in self.trees for h in tree.held(s)] for s in stages]

    @functools.cached_property
    def saved(self) -> list[list[Held]]:
        """The leaves among these that a checkpoint stores."""
        return [
            [h for h in held if check_saved(h.path, h.leaf)] for held in self.by_stage
        ]

    @property
    def written(self) -> dict[str, Any]:
        """The leaves to write by path, each of the lowest stage that holds it."""
        return {
            h.path: h.leaf
            for stage, held in enumerate(self.saved)
            for h in held
            if min(h.stages) == stage
        }

    @property
    def copies(self) -> list[tuple[str, str, Any]]:
        """The leaves that several stages hold, with the stage of each copy."""
        return [
            (h.path, f"stage {stage}", h.leaf)
            for stage, held in enumerate(self.saved)
            for h in held
            if len(h.stages) > 1
        ]

    @property
    def records(self) -> dict[str, Record | None]:
        """The records of these leaves."""
        return {h.path: record_of(h.leaf) for held in self.by_stage for h in held}

    def replace(self, by_stage: Sequence[Sequence[Any]]) -> list[tuple[PyTree, ...]]:
        """The pieces of each tree with other leaves."""
        rows = [list(leaves) for leaves in by_stage]
        pieces: list[tuple[PyTree, ...]] = []
        for tree in self.trees:
            sizes = [len(tree.held(stage)) for stage in range(len(rows))]
            own = [row[:size] for row, size in zip(rows, sizes, strict=True)]
            rows = [row[size:] for row, size in zip(rows, sizes, strict=True)]
            pieces.append(tuple(map(tree.replace, range(len(own)), own)))
        return pieces


def check_whole(params: PyTree, state: PyTree) -> None:
    """Refuses pieces in place of whole trees.

    Trees are taken for pieces if each lacks leaves that another one has, and they are
    equal otherwise.
    """
    if not (_are_pieces(params) and _have_one_form(state)):
        return
    if len(params) == len(state):
        raise ValueError(
            f"`params` and `state` look like the pieces of {len(params)} stages, with "
            "None in place of leaves of other stages. Pass their `StageLocal` as "
            "`staged`."
        )


def _are_pieces(tree: Any) -> bool:
    if not _have_one_form(tree):
        return False
    held = [
        [leaf is not None for leaf in jax.tree.leaves(piece, is_leaf=_is_none)]
        for piece in tree
    ]
    known = list(map(any, zip(*held, strict=True)))
    return all(row != known for row in held)


def _have_one_form(tree: Any) -> bool:
    if type(tree) not in (tuple, list) or len(tree) < 2:
        return False
    forms = {jax.tree.structure(_filled(piece), is_leaf=_is_none) for piece in tree}
    return len(forms) == 1


def _filled(piece: PyTree) -> PyTree:
    """A piece with placeholders for the leaves of other stages."""

    def is_hole(node: Any) -> bool:
        return node is None or isinstance(node, optax.MaskedNode)

    return jax.tree.map(lambda _: 0, piece, is_leaf=is_hole)


def _is_none(node: Any) -> bool:
    return node is None


def _check_pieces(
    name: str, pieces: Pieces, staged: StageLocal, split: TreeSplit
) -> None:
    check_stages(name, pieces, split.num_stages)
    check_pieces_here(name, pieces, staged.local_stages, split)


def check_saved(path: str, leaf: Any) -> bool:
    """Whether a checkpoint holds a leaf. `ValueError` if it should and cannot."""
    if isinstance(leaf, jax.ShapeDtypeStruct):
        raise ValueError(f"`{path}` is only a shape: there is nothing to save.")
    if isinstance(leaf, jax.Array) and leaf.is_deleted():
        raise ValueError(
            f"`{path}` is deleted: it was donated to a step. Save what the step "
            "returned."
        )
    record = record_of(leaf)
    if is_array(record) and not is_storable(leaf.dtype):
        raise ValueError(
            f"`{path}` has dtype {leaf.dtype}, which no checkpoint can hold. Only "
            "numbers, bools and PRNG keys can be saved."
        )
    if record is None and not path.startswith("params"):
        raise ValueError(
            f"`{path}` is {leaf!r}, which no checkpoint can hold. Only arrays, numbers "
            "and strings can be saved."
        )
    return record is not None


def _full_path(name: str, path: str) -> str:
    return f"{name}{path}" if path[:1] in ("", "[") else f"{name}.{path}"
