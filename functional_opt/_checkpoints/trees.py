"""What a checkpoint holds of parameters and state, whether whole or in pieces."""

import functools
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
from jaxtyping import PyTree

from .._slicing.stage_sets import StageSet as Place
from .._stages.local import StageLocal
from .._stages.run.processes import check_pieces_here
from .._stages.trees import check_stages, Cut, Pieces
from .records import is_array, is_storable, Record, record_of


class Held(NamedTuple):
    """A leaf of a piece: its path in the whole tree, and the stages that hold it."""

    path: str
    place: Place
    leaf: Any


@dataclass(frozen=True)
class Tree:
    """A tree in pieces. A whole tree is in one piece.

    **Attributes:**

    - `name`: what its paths start with.
    - `cut`: how it is cut.
    - `pieces`: for each stage its piece, or None if another process has it.
    - `required`: the paths that a checkpoint must have.
    """

    name: str
    cut: Cut
    pieces: tuple[PyTree, ...]
    required: frozenset[str]

    @classmethod
    def of(
        cls, name: str, cut: Cut, pieces: Pieces, required: Collection[str]
    ) -> "Tree":
        if len(set(cut.paths)) < len(cut.paths):
            raise ValueError(
                f"Leaves of `{name}` have the same path, so that a checkpoint cannot "
                "tell them apart: register its nodes with distinct keys."
            )
        full = frozenset(_full_path(name, path) for path in required)
        return cls(name, cut, tuple(pieces), full)

    @classmethod
    def whole(cls, name: str, tree: PyTree) -> "Tree":
        leaves = jax.tree.leaves(tree)
        cut = Cut.of(tree, [frozenset({0})] * len(leaves), 1)
        records = zip(cut.paths, map(record_of, leaves), strict=True)
        required = [path for path, record in records if is_array(record)]
        return cls.of(name, cut, (tree,), required)

    @functools.cached_property
    def paths(self) -> tuple[str, ...]:
        """The paths of all leaves, in the order of the whole tree."""
        return tuple(_full_path(self.name, path) for path in self.cut.paths)

    def held(self, stage: int) -> list[Held]:
        """The leaves of a stage's piece; none if another process has it."""
        piece = self.pieces[stage]
        if piece is None:
            return []
        leaves = self.cut.flatten(self.name, stage, piece)
        return [
            Held(self.paths[i], self.cut.places[i], leaf)
            for i, leaf in zip(self.cut.held[stage], leaves, strict=True)
        ]

    def replace(self, stage: int, leaves: Sequence[Any]) -> PyTree:
        """A stage's piece with other leaves."""
        if self.pieces[stage] is None:
            return None
        return self.cut.unflatten(stage, leaves)


@dataclass(frozen=True)
class Training:
    """The parameters and the state of a training."""

    trees: tuple[Tree, Tree]

    @classmethod
    def of(
        cls, params: PyTree | Pieces, state: PyTree | Pieces, staged: StageLocal | None
    ) -> "Training":
        """Of pieces, if it is said of what they are, or else of whole trees."""
        if staged is None:
            return cls((Tree.whole("params", params), Tree.whole("state", state)))
        partition, state_cut = staged.partition, staged.programs[0].state
        for name, pieces in (("params", params), ("state", state)):
            check_stages(name, pieces, partition.num_stages)
            check_pieces_here(name, pieces, staged.local_stages, partition.num_stages)
        forms = [partition.form_of(piece) for piece in params if piece is not None]
        form = next(iter(forms), partition.model)
        return cls(
            (
                Tree.of("params", form, params, partition.params.paths),
                Tree.of("state", state_cut, state, state_cut.paths),
            )
        )

    @property
    def paths(self) -> list[str]:
        """The paths of all leaves, in the order of the whole trees."""
        return [path for tree in self.trees for path in tree.paths]

    @property
    def required(self) -> frozenset[str]:
        """The paths that a checkpoint must have."""
        return self.trees[0].required | self.trees[1].required

    @functools.cached_property
    def by_stage(self) -> list[list[Held]]:
        """The leaves that are in the hands of this process, by stage."""
        stages = range(self.trees[0].cut.num_stages)
        return [[h for tree in self.trees for h in tree.held(s)] for s in stages]

    @functools.cached_property
    def saved(self) -> list[list[Held]]:
        """Those of these leaves that a checkpoint holds."""
        return [list(filter(_is_saved, held)) for held in self.by_stage]

    @property
    def written(self) -> dict[str, Any]:
        """The leaves to write by path, each of the lowest stage that holds it."""
        return {
            h.path: h.leaf
            for stage, held in enumerate(self.saved)
            for h in held
            if min(h.place) == stage
        }

    @property
    def copies(self) -> list[tuple[str, str, Any]]:
        """The leaves that several stages hold, with the stage of each copy."""
        return [
            (h.path, f"stage {stage}", h.leaf)
            for stage, held in enumerate(self.saved)
            for h in held
            if len(h.place) > 1
        ]

    @property
    def records(self) -> dict[str, Record | None]:
        """The records of these leaves."""
        return {h.path: record_of(h.leaf) for held in self.by_stage for h in held}

    def replace(self, by_stage: Sequence[Sequence[Any]]) -> list[tuple[PyTree, ...]]:
        """The pieces of parameters and of state with other leaves."""
        params, state = self.trees
        sizes = [len(params.held(stage)) for stage in range(len(by_stage))]
        rows = list(enumerate(zip(by_stage, sizes, strict=True)))
        return [
            tuple(params.replace(stage, row[:size]) for stage, (row, size) in rows),
            tuple(state.replace(stage, row[size:]) for stage, (row, size) in rows),
        ]


def _is_saved(held: Held) -> bool:
    """Whether a checkpoint holds a leaf. `ValueError` if it should and cannot."""
    path, _, leaf = held
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
    if record is not None:
        return True
    if path.startswith("state"):
        raise ValueError(
            f"`{path}` is {leaf!r}, which no checkpoint can hold. Only arrays, numbers "
            "and strings of a state can be saved."
        )
    return False


def _full_path(name: str, path: str) -> str:
    return f"{name}{path}" if path[:1] in ("", "[") else f"{name}.{path}"
