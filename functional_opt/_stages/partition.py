"""Assigns the parameters of a pytree to stages."""

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
from .trees import check_stages, leaf_paths, leaves_of, Pieces, TreeSplit


StageOf = Callable[[tuple[Any, ...], Any], Any]


@dataclass(frozen=True)
class StagePartition:
    """The stages that own each parameter of a tree. Returned by `partition`.

    Parameters are the leaves that are inexact arrays, or shapes and dtypes of these.
    All other leaves are replicated on every stage, unchanged.

    **Attributes:**

    - `num_stages`: the number of stages.
    - `model`: the split of the tree that was partitioned.
    - `params`: the split of its parameters, with None in place of all other leaves.

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
        """Splits whole gradients such that tied gradients sum to the whole gradient.

        The lowest owner of a parameter gets the gradient, and the others get -0.0,
        since adding -0.0 changes no bit.

        **Arguments:**

        - `grads`: the gradients of the whole tree.
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
        """Splits a whole tree into one piece per stage.

        **Arguments:**

        - `tree`: parameters, gradients, or another tree with the structure that was
            partitioned, with or without the leaves that are not parameters.

        **Returns:** a tuple of pieces. A piece has the structure of `tree`, with None
        in place of the parameters that its stage does not own.

        **Raises:** `ValueError` with the first path that differs.
        """
        split = self.form_of(tree)
        return split.pieces(split.flatten_whole("tree", tree))

    @shown_short
    def merge(self, pieces: Pieces) -> PyTree:
        """Merges the pieces of all stages into the whole tree: the inverse of `split`.

        A leaf that several stages hold is taken from the lowest of them.
        """
        check_stages("pieces", pieces, self.num_stages)
        forms = [self._form_of_piece(s, piece) for s, piece in enumerate(pieces)]
        if any(form is not forms[0] for form in forms):
            raise ValueError(
                "Some `pieces` hold the leaves that are not parameters and some do "
                "not. Pass all pieces as `split` returned them, or filter all of them."
            )
        return forms[0].merge(
            [forms[0].flatten("pieces", s, piece) for s, piece in enumerate(pieces)]
        )

    def gradients(self, name: str, grads: PyTree) -> list[Any]:
        """The gradients of all parameters, some of which may be None."""
        leaves = leaves_of(self.params.structure, grads, or_none=True)
        if leaves is None:
            leaves = leaves_of(self.model.structure, grads, or_none=True)
            leaves = leaves and [leaves[k] for k in self._params_of_model]
        if leaves is None:
            leaves = self.form_of(grads).flatten_whole(name, grads)
        return leaves

    def take_whole(
        self, name: str, tree: PyTree
    ) -> tuple[list[Any], Callable[[Sequence[Any]], PyTree]]:
        """The parameters of a whole tree, and a function that replaces them in it."""
        leaves = leaves_of(self.params.structure, tree)
        if leaves is not None:
            return leaves, self.params.tree
        leaves = self.model.flatten_whole(name, tree)
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
        """The parameters of a piece, and a function that replaces them in it."""
        found = self.params.leaves_of(stage, piece)
        if found is not None:
            return found, functools.partial(self.params.unflatten, stage)
        leaves = self.model.leaves_of(stage, piece)
        if leaves is None:
            leaves = self._form_of_piece(stage, piece).flatten(name, stage, piece)
        positions, structure = self._positions[stage], self.model.structures[stage]
        put = functools.partial(_replaced, structure, leaves, positions)
        return [leaves[position] for position in positions], put

    def take_gradients(self, stage: int, piece: PyTree) -> list[Any]:
        """The gradients of the parameters of a stage, some of which may be None."""
        found = leaves_of(self.params.structures[stage], piece, or_none=True)
        if found is None:
            found = leaves_of(self.model.structures[stage], piece, or_none=True)
            found = found and [found[k] for k in self._positions[stage]]
        if found is None:
            return self._form_of_piece(stage, piece).flatten("grads", stage, piece)
        return found

    @functools.cached_property
    def _positions(self) -> tuple[tuple[int, ...], ...]:
        """For each stage the positions of its parameters in the leaves of its piece."""
        params = set(self.params.paths)
        return tuple(
            tuple(k for k, i in enumerate(held) if self.model.paths[i] in params)
            for held in self.model.held
        )

    def form_of(self, tree: PyTree) -> TreeSplit:
        """The split that fits a tree: `params` if it holds only parameters."""
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
    """A tree with new parameters and all other leaves unchanged."""
    replaced = list(leaves)
    for position, param in zip(positions, params, strict=True):
        replaced[position] = param
    return jax.tree.unflatten(structure, replaced)


@typed
def partition(
    params: PyTree, stage_of: Any, *, num_stages: int | None = None
) -> StagePartition:
    """Assigns each parameter of a tree to the stage that owns it.

    **Arguments:**

    - `params`: an Equinox model, or any pytree of arrays or `jax.ShapeDtypeStruct`s.
    - `stage_of`: a function of the key path (of `jax.tree_util`) and the leaf of each
        parameter. It returns the stage that owns the parameter, counted from 0, or a
        collection of stages if the parameter is tied, with a copy on each. Instead of a
        function, a pytree prefix of `params` with stages or sets of stages as leaves.
    - `num_stages`: the number of stages. If omitted, one more than the highest stage
        that owns a parameter.

    **Returns:** a `StagePartition`, for `stage_local`.

    **Raises:** `ValueError` with the path of a parameter that has no stage, or a stage
    out of range.

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
    """The tree with None in place of every leaf that is not a parameter."""
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
    if type(stages) is not type(params):
        is_leaf = jax.tree_util.all_leaves([params])
        kind = "single array" if is_leaf else type(params).__name__
        return (
            f"{text}, got a {type(stages).__name__} for a {kind}. "
            f"Pass a function of the key path and the leaf{_example(params)}."
        )
    for path in needed:
        if not any(path.startswith(x) for x in given):
            return f"{text}, but it has no stage for `{path}`. Add its stage."
    for path in given:
        if not any(x.startswith(path) for x in needed):
            return f"{text}, but `{path}` is not in `params`. Remove it."
    return f"{text}, got {shown(stages)}. Its containers must be of the same types."


def _example(params: PyTree) -> str:
    """An example of a function that looks up the stage by the first key of a path."""
    paths = (path for path, _ in jax.tree.leaves_with_path(params) if path)
    for first, *_ in paths:
        for name in ("name", "key", "idx"):
            if hasattr(first, name):
                return f", such as `lambda path, leaf: stages[path[0].{name}]`"
    return ""


def _is_none(node: Any) -> bool:
    return node is None


def check_stage_set(path: str, stages: StageSet, num_stages: int) -> None:
    """Raises an error if a stage is out of range."""
    if not stages <= set(range(num_stages)):
        raise ValueError(
            f"`{path}` is assigned to {stages_text(stages)}, but the stages are 0 to "
            f"{num_stages - 1}."
        )


def as_stage_set(path: str, given: Any) -> StageSet:
    stages = given if isinstance(given, Collection) else (given,)
    if given is None or not stages:
        raise ValueError(
            f"`{path}` has no stage: `stage_of` assigns {given!r}. Assign the stage "
            "that owns it, an int from 0, or a collection of stages."
        )
    for stage in stages:
        if isinstance(stage, bool) or not isinstance(stage, int | np.integer):
            raise TypeError(
                f"`stage_of` must assign a stage, an int from 0, or a collection of "
                f"stages to `{path}`, got {given!r}."
            )
    return frozenset(map(int, stages))
