"""A pytree split into one piece per stage, and the errors for trees that do not fit."""

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TYPE_CHECKING

import jax
from jaxtyping import PyTree

from .._annotations import Named
from .._paths import path_text
from .._slicing.stage_sets import stages_text, StageSet
from .piece_forms import form_of, PieceForm


# One tree per stage: of parameters or gradients, and of states.
if TYPE_CHECKING:
    Pieces = Sequence[PyTree]
    States = Sequence[PyTree]
else:  # `check_stages` has a better error than beartype for a whole tree.
    Pieces = Annotated[Any, Named("Pieces", "one tree per stage")]
    States = Annotated[Any, Named("States", "one state per stage")]


@dataclass(frozen=True)
class TreeSplit:
    """The structure of a tree, and for each of its leaves the stages that hold it.

    The *piece* of a stage is the tree with None in place of the leaves that the stage
    does not hold.
    """

    structure: jax.tree_util.PyTreeDef
    paths: tuple[str, ...]
    stage_sets: tuple[StageSet, ...]
    num_stages: int
    description: str = "the tree that was partitioned"

    @classmethod
    def of(
        cls,
        tree: PyTree,
        stage_sets: Sequence[StageSet],
        num_stages: int,
        *description: str,
    ) -> "TreeSplit":
        structure, paths = jax.tree.structure(tree), leaf_paths(tree)
        return cls(structure, paths, tuple(stage_sets), num_stages, *description)

    def named(self, paths: Sequence[str]) -> "TreeSplit":
        return dataclasses.replace(self, paths=tuple(paths))

    @functools.cached_property
    def held(self) -> tuple[tuple[int, ...], ...]:
        """For each stage the indices of the leaves that it holds."""
        held: list[list[int]] = [[] for _ in range(self.num_stages)]
        for i, stages in enumerate(self.stage_sets):
            for stage in stages:
                held[stage].append(i)
        return tuple(map(tuple, held))

    @functools.cached_property
    def structures(self) -> tuple[jax.tree_util.PyTreeDef, ...]:
        """For each stage the structure of its piece."""
        blank = [object()] * len(self.paths)
        return tuple(
            jax.tree.structure(self._piece(stage, blank))
            for stage in range(self.num_stages)
        )

    @functools.cached_property
    def _forms(self) -> tuple[PieceForm | None, ...]:
        return tuple(map(form_of, self.structures))

    @functools.cached_property
    def shared(self) -> tuple[tuple[int, tuple[tuple[int, int], ...]], ...]:
        """The leaves that several stages hold, with their position on each of these."""
        return tuple(
            (i, tuple((s, self.held[s].index(i)) for s in sorted(stages)))
            for i, stages in enumerate(self.stage_sets)
            if len(stages) > 1
        )

    def tree(self, leaves: Sequence[Any]) -> PyTree:
        return jax.tree.unflatten(self.structure, leaves)

    def _piece(self, stage: int, leaves: Sequence[Any]) -> PyTree:
        held = [
            leaf if stage in stages else None
            for leaf, stages in zip(leaves, self.stage_sets, strict=True)
        ]
        return jax.tree.unflatten(self.structure, held)

    def flatten(self, name: str, stage: int, piece: PyTree) -> list[Any]:
        """The leaves of the piece of a stage."""
        leaves = self.leaves_of(stage, piece)
        if leaves is None:
            paths = [self.paths[i] for i in self.held[stage]]
            difference = difference_text(self.structures[stage], paths, piece)
            raise ValueError(
                f"`{name}[{stage}]` does not match stage {stage} of "
                f"{self.description}: {difference}."
            )
        return leaves

    def leaves_of(self, stage: int, piece: PyTree) -> list[Any] | None:
        """The leaves of the piece of a stage; None if it does not fit."""
        return leaves_of(self.structures[stage], piece)

    def flatten_whole(self, name: str, tree: PyTree) -> list[Any]:
        leaves = leaves_of(self.structure, tree)
        if leaves is None:
            difference = difference_text(self.structure, self.paths, tree)
            raise ValueError(
                f"`{name}` does not match {self.description}: {difference}."
            )
        return leaves

    def pieces(self, leaves: Sequence[Any]) -> tuple[PyTree, ...]:
        return tuple(self._piece(s, leaves) for s in range(self.num_stages))

    def merge(self, leaves_by_stage: Sequence[Sequence[Any]]) -> PyTree:
        """The whole tree: each leaf from the lowest of the stages that hold it."""
        leaves: list[Any] = [None] * len(self.paths)
        for stage in reversed(range(self.num_stages)):
            for i, leaf in zip(self.held[stage], leaves_by_stage[stage], strict=True):
                leaves[i] = leaf
        return jax.tree.unflatten(self.structure, leaves)

    def unflatten(self, stage: int, leaves: Sequence[Any]) -> PyTree:
        form = self._forms[stage]
        if form is None:
            return jax.tree.unflatten(self.structures[stage], leaves)
        return form.unflatten(leaves)


def leaves_of(
    structure: jax.tree_util.PyTreeDef, tree: PyTree, *, or_none: bool = False
) -> list[Any] | None:
    """The leaves of a tree, if it has this structure.

    **Arguments:**

    - `or_none`: whether there may be None in place of a leaf.
    """
    try:
        # Half the time of `jax.tree.flatten` and a comparison of structures.
        leaves = structure.flatten_up_to(tree)
    except (TypeError, ValueError):
        return None
    held = [leaf for leaf in leaves if leaf is not None] if or_none else leaves
    return leaves if jax.tree_util.all_leaves(held) else None


def leaf_paths(tree: PyTree) -> tuple[str, ...]:
    return tuple(path_text(path) for path, _ in jax.tree.leaves_with_path(tree))


def difference_text(
    expected: jax.tree_util.PyTreeDef, expected_paths: Sequence[str], found: PyTree
) -> str:
    """Describes the first path at which a tree differs from the expected one."""
    pairs = itertools.zip_longest(expected_paths, leaf_paths(found))
    for wanted, got in pairs:
        if wanted != got:
            return f"expected {_leaf_text(wanted)}, found {_leaf_text(got)}"
    return (
        "the leaves are the same, but containers or static fields differ: expected "
        f"{expected}, found {jax.tree.structure(found)}"
    )


def _leaf_text(path: str | None) -> str:
    return "no further leaf" if path is None else f"a leaf at `{path}`"


def check_stages(name: str, pieces: Pieces, num_stages: int) -> None:
    """Requires a tuple or list with one piece per stage."""
    if not isinstance(pieces, tuple | list) or hasattr(pieces, "_fields"):
        raise TypeError(
            f"`{name}` must be a tuple of {num_stages} trees, one per stage, got a "
            f"{type(pieces).__name__}. Use `partition.split` on a whole tree."
        )
    if len(pieces) != num_stages:
        raise ValueError(
            f"`{name}` must have one tree for each of the {num_stages} stages, got "
            f"{len(pieces)}."
        )


def check_pieces(
    name: str, pieces: Pieces, split: TreeSplit, here: frozenset[int]
) -> None:
    """Refuses anything but one piece for each stage of this process."""
    check_stages(name, pieces, split.num_stages)
    if len(here) < len(pieces):
        check_pieces_here(name, pieces, here, split)


def check_pieces_here(
    name: str, pieces: Sequence[Any], here: frozenset[int], split: TreeSplit
) -> None:
    """Requires the pieces of the stages of this process, and None for all others."""
    for stage, piece in enumerate(pieces):
        # If the tree is a single array, the piece of a stage without it is None, too.
        is_missing = piece is None and split.held[stage]
        if stage in here and is_missing:
            if len(here) == len(pieces):
                first = split.paths[split.held[stage][0]]
                raise ValueError(
                    f"`{name}[{stage}]` is None, but stage {stage} holds `{first}`."
                )
            raise ValueError(
                f"`{name}[{stage}]` is None, but stage {stage} is on devices of "
                f"process {jax.process_index()}, which has {stages_text(here)}. "
                "`meshes` of `stage_local` assigns the stages to processes."
            )
        if stage not in here and piece is not None:
            raise ValueError(
                f"`{name}[{stage}]` must be None: stage {stage} is on devices of other "
                f"processes, and process {jax.process_index()} has {stages_text(here)}."
            )
