"""Which stage owns which parameter."""

import functools
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from .._annotations import shown
from .._paths import path_text
from .._signatures import shown_short
from .._slicing.stage_sets import stages_text, StageSet
from .._types import typed
from .trees import check_stages, leaf_paths, leaves_or_none, Pieces, TreeSplit


StageOf = Callable[[tuple[Any, ...], Any], Any]


@dataclass(frozen=True)
class StagePartition:
    """Which stages own each parameter of a tree. Made by `partition`.

    Parameters are the leaves that are inexact arrays (or their shapes). Every other
    leaf rides along: it is part of every stage's piece, as it is.

    **Attributes:**

    - `num_stages`: how many stages there are.
    - `model`: how the tree as it was given is split.
    - `params`: how its parameters alone are split, with None for every other leaf.

    !!! Example

        >>> import functional_opt as fo, jax.numpy as jnp
        >>> params = {"embed": jnp.ones((8, 2)), "head": jnp.ones((2, 8))}
        >>> partition = fo.partition(params, {"embed": 0, "head": 1})
        >>> pieces = partition.split(params)
        >>> [sorted(k for k, v in piece.items() if v is not None) for piece in pieces]
        [['embed'], ['head']]
        >>> partition.merge(pieces).keys() == params.keys()
        True
    """

    REMEDY: ClassVar[str] = "Make one with `fo.partition(params, stage_of)`."

    num_stages: int
    model: TreeSplit
    params: TreeSplit

    @typed
    def split_gradients(self, grads: PyTree) -> tuple[PyTree, ...]:
        """Cuts whole gradients so that the sum over a parameter's owners is the whole.

        The lowest owner is given the gradient, the others -0.0, which adds nothing.

        **Arguments:**

        - `grads`: the gradients of the whole tree, as `split` takes it.
        """
        leaves = self.gradients("grads", grads)
        lowest = list(map(min, self.params.stage_sets))

        def summand(stage: int, i: int) -> Any:
            given = leaves[i] is None or lowest[i] == stage
            return leaves[i] if given else -jnp.zeros_like(leaves[i])

        return tuple(
            self.params.unflatten(stage, [summand(stage, i) for i in held])
            for stage, held in enumerate(self.params.held)
        )

    @typed
    def split(self, tree: PyTree) -> tuple[PyTree, ...]:
        """Cuts a whole tree into one piece a stage.

        **Arguments:**

        - `tree`: parameters, gradients, or anything else of the structure that was
            partitioned, with or without the leaves that ride along.

        **Returns:** a tuple of pieces. A piece has the structure of `tree`, and None
        where the stage does not own the leaf.

        **Raises:** `ValueError` naming the first path that differs.
        """
        split = self.form_of(tree)
        return split.pieces(split.flatten_whole("tree", tree))

    @shown_short
    def merge(self, pieces: Pieces) -> PyTree:
        """Puts the pieces that `split` made together again.

        A leaf that several stages own is taken from the lowest of them.
        """
        check_stages("pieces", pieces, self.num_stages)
        forms = [self._form_of_piece(s, piece) for s, piece in enumerate(pieces)]
        if any(form is not forms[0] for form in forms):
            raise ValueError(
                "Some `pieces` hold the leaves that ride along and some do not. Give "
                "all of them as `split` made them, or filter all of them."
            )
        return forms[0].merge(
            [forms[0].flatten("pieces", s, piece) for s, piece in enumerate(pieces)]
        )

    def gradients(self, name: str, grads: PyTree) -> list[Any]:
        """The gradients of the whole tree's parameters, None where one is None."""
        leaves = leaves_or_none(self.params.structure, grads)
        if leaves is None:
            leaves = leaves_or_none(self.model.structure, grads)
            leaves = leaves and [leaves[k] for k in self._params_of_model]
        if leaves is None:
            leaves = self.form_of(grads).flatten_whole(name, grads)
        return leaves

    def take_whole(
        self, name: str, tree: PyTree
    ) -> tuple[list[Any], Callable[[Sequence[Any]], PyTree]]:
        """The parameters of a whole tree, and how to make a tree of new ones."""
        leaves, structure = jax.tree.flatten(tree)
        if structure == self.params.structure:
            return leaves, self.params.tree
        self.model.flatten_whole(name, tree)
        positions = self._params_of_model
        put = functools.partial(_replaced, self.model.structure, leaves, positions)
        return [leaves[position] for position in positions], put

    @functools.cached_property
    def _params_of_model(self) -> tuple[int, ...]:
        params = set(self.params.paths)
        return tuple(k for k, path in enumerate(self.model.paths) if path in params)

    def take(
        self, name: str, stage: int, piece: PyTree
    ) -> tuple[list[Any], Callable[[Sequence[Any]], PyTree]]:
        """The parameters of a stage's piece, and how to make a piece of new ones."""
        leaves, structure = jax.tree.flatten(piece)
        if structure == self.params.structures[stage]:
            return leaves, functools.partial(self.params.unflatten, stage)
        if structure != self.model.structures[stage]:
            self._form_of_piece(stage, piece).flatten(name, stage, piece)
        positions = self._positions[stage]
        put = functools.partial(_replaced, structure, leaves, positions)
        return [leaves[position] for position in positions], put

    def take_gradients(self, stage: int, piece: PyTree) -> list[Any]:
        """The gradients of a stage's parameters, None where a gradient is None."""
        leaves, structure = jax.tree.flatten(piece)
        if structure == self.params.structures[stage]:
            return leaves
        found = leaves_or_none(self.params.structures[stage], piece)
        if found is None:
            found = leaves_or_none(self.model.structures[stage], piece)
            found = found and [found[k] for k in self._positions[stage]]
        if found is None:
            return self._form_of_piece(stage, piece).flatten("grads", stage, piece)
        return found

    @functools.cached_property
    def _positions(self) -> tuple[tuple[int, ...], ...]:
        """For each stage, where among the leaves of its piece its parameters are."""
        params = set(self.params.paths)
        return tuple(
            tuple(k for k, i in enumerate(held) if self.model.paths[i] in params)
            for held in self.model.held
        )

    def form_of(self, tree: PyTree) -> TreeSplit:
        """How a tree is split: with the leaves that are not parameters or without."""
        return self._form(tree, self.params.structure)

    def _form_of_piece(self, stage: int, piece: PyTree) -> TreeSplit:
        return self._form(piece, self.params.structures[stage])

    def _form(self, tree: PyTree, params: jax.tree_util.PyTreeDef) -> TreeSplit:
        leaves, structure = jax.tree.flatten(tree)
        if structure == params or all(map(is_param, leaves)):
            return self.params
        return self.model


def _replaced(
    structure: jax.tree_util.PyTreeDef,
    leaves: Sequence[Any],
    positions: Sequence[int],
    params: Sequence[Any],
) -> PyTree:
    """A tree with new parameters, and all other leaves as they are."""
    replaced = list(leaves)
    for position, param in zip(positions, params, strict=True):
        replaced[position] = param
    return jax.tree.unflatten(structure, replaced)


@typed
def partition(
    params: PyTree, stage_of: Any, *, num_stages: int | None = None
) -> StagePartition:
    """Says which stages own each parameter of a tree.

    **Arguments:**

    - `params`: an Equinox model as it is, or any pytree of arrays or
        `jax.ShapeDtypeStruct`s.
    - `stage_of`: called with the key path (of `jax.tree_util`) and the leaf of each
        parameter, gives the stage that owns it, counted from 0, or a collection of
        stages if several own a copy of it. Or a pytree prefix of `params` of stages,
        and of sets of stages.
    - `num_stages`: how many stages there are, if not one more than the highest that
        owns a parameter.

    **Returns:** a `StagePartition`, for `stage_local`.

    **Raises:** `ValueError` naming the path of a parameter without a stage, or whose
    stage is out of range.

    !!! Example

        >>> import functional_opt as fo, jax.numpy as jnp
        >>> params = {"embed": jnp.ones((8, 2)), "head": jnp.ones((2, 8))}
        >>> partition = fo.partition(params, {"embed": 0, "head": 1})
        >>> first, last = partition.split(params)
        >>> first["head"] is None
        True
    """
    owners = _owners(params, stage_of)
    highest = max((max(stages) for stages in owners.values()), default=-1)
    if num_stages is None:
        num_stages = highest + 1
    for path, stages in owners.items():
        check_stage_set(path, stages, num_stages)
    everywhere = frozenset(range(num_stages))
    model = TreeSplit.of(
        params,
        [owners.get(path, everywhere) for path in leaf_paths(params)],
        num_stages,
    )
    trainable = TreeSplit.of(only_params(params), list(owners.values()), num_stages)
    return StagePartition(num_stages, model, trainable)


def only_params(tree: PyTree) -> PyTree:
    """The tree with None for every leaf that is no parameter."""
    return jax.tree.map(lambda leaf: leaf if is_param(leaf) else None, tree)


def is_param(leaf: Any) -> bool:
    """Whether a leaf is an inexact array, or the shape and dtype of one."""
    dtype = getattr(leaf, "dtype", None)
    return (
        dtype is not None
        and hasattr(leaf, "shape")
        and jnp.issubdtype(dtype, jnp.inexact)
    )


def _owners(params: PyTree, stage_of: Any) -> dict[str, StageSet]:
    call = stage_of if callable(stage_of) else _prefix(params, stage_of)
    return {
        path_text(path): as_stage_set(path_text(path), call(path, leaf))
        for path, leaf in jax.tree.leaves_with_path(params)
        if is_param(leaf)
    }


def _prefix(params: PyTree, stages: PyTree) -> StageOf:
    """A pytree prefix of stages, as a function of the path."""
    try:
        whole = jax.tree.broadcast(stages, params, is_leaf=_is_none)
    except ValueError:
        raise ValueError(_no_prefix(params, stages)) from None
    by_path = dict(jax.tree.leaves_with_path(whole, is_leaf=_is_none))
    return lambda path, leaf: by_path[path]


def _no_prefix(params: PyTree, stages: PyTree) -> str:
    """The first paths at which a tree of stages differs from the parameters."""
    given, needed = leaf_paths(stages), leaf_paths(params)
    text = "`stage_of` must be a function or a pytree prefix of `params`"
    for path in needed:
        if not any(path.startswith(x) for x in given):
            return f"{text}, but it has no stage for `{path}`. Add its stage."
    for path in given:
        if not any(x.startswith(path) for x in needed):
            return f"{text}, but `{path}` is not in `params`. Remove it."
    return f"{text}, got {shown(stages)}. Its containers must be of the same types."


def _is_none(node: Any) -> bool:
    return node is None


def check_stage_set(path: str, stages: StageSet, num_stages: int) -> None:
    """Refuses stages that there are not."""
    if not stages <= set(range(num_stages)):
        raise ValueError(
            f"`{path}` is given to {stages_text(stages)}, but the stages are 0 to "
            f"{num_stages - 1}."
        )


def as_stage_set(path: str, given: Any) -> StageSet:
    stages = given if isinstance(given, Collection) else (given,)
    if given is None or not stages:
        raise ValueError(
            f"`{path}` has no stage: `stage_of` gave {given!r}. Give the stage that "
            "owns it, an int from 0, or a collection of stages."
        )
    for stage in stages:
        if isinstance(stage, bool) or not isinstance(stage, int | np.integer):
            raise TypeError(
                f"`{path}` must be given a stage, an int from 0, or a collection of "
                f"stages; `stage_of` gave {given!r}."
            )
    return frozenset(map(int, stages))
