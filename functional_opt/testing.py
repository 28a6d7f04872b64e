"""Checks for authors of optimizers: does it give the same, stage by stage?"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree

from ._paths import path_text
from ._stages.extra import values_of
from ._stages.local import stage_local, StageLocal
from ._stages.partition import only_params, StagePartition
from ._types import typed


Grade = Literal["exact", "close"]

_MOST_DIFFERENCES = 10  # that an error names


@typed
def assert_equal(found: PyTree, expected: PyTree, grade: Grade = "exact") -> None:
    """Asserts that two trees of arrays are equal.

    **Arguments:**

    - `found`, `expected`: trees of the same structure.
    - `grade`: "exact" asks for the same dtypes, shapes and bytes, so that -0.0 is not
        0.0, and NaN only equals NaN. "close" allows a leaf to differ by 1e-6 of its
        largest finite entry in float32 and wider, and by one unit in the last place of
        that entry in narrower types; integers and bools must be the same.

    **Raises:** `AssertionError` naming the first leaves that differ, and by how much.
    """
    structures = jax.tree.structure(found), jax.tree.structure(expected)
    assert structures[0] == structures[1], f"{structures[0]} is not {structures[1]}"
    pairs = zip(
        jax.tree.leaves_with_path(found), jax.tree.leaves(expected), strict=True
    )
    differences = [
        f"  {path_text(path)}: {difference}"
        for (path, leaf), wanted in pairs
        if (difference := _difference(_numbers(leaf), _numbers(wanted), grade))
    ]
    if len(differences) > _MOST_DIFFERENCES:
        more = len(differences) - _MOST_DIFFERENCES
        differences[_MOST_DIFFERENCES:] = [f"  and {more} more"]
    assert not differences, "\n".join(["These leaves differ:", *differences])


def _numbers(leaf: Any) -> np.ndarray:
    if jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf)


def _difference(found: np.ndarray, expected: np.ndarray, grade: Grade) -> str | None:
    if (found.dtype, found.shape) != (expected.dtype, expected.shape):
        return (
            f"{found.dtype}{list(found.shape)} instead of "
            f"{expected.dtype}{list(expected.shape)}"
        )
    if not jnp.issubdtype(expected.dtype, jnp.inexact):
        same = found.tobytes() == expected.tobytes()
        return None if same else f"{found} instead of {expected}"
    if not _same_non_finite(found, expected):
        return f"{found} instead of {expected}, where not all are finite"
    if _finite_bytes(found) == _finite_bytes(expected):
        return None
    apart, largest = _distance(found, expected)
    if grade == "close" and apart <= _tolerance(expected.dtype) * largest:
        return None
    return f"apart by {apart:.3g}, where the largest entry is {largest:.3g}"


def _same_non_finite(found: np.ndarray, expected: np.ndarray) -> bool:
    found, expected = np.atleast_1d(found), np.atleast_1d(expected)
    finite = np.isfinite(found) & np.isfinite(expected)
    return np.array_equal(found[~finite], expected[~finite], equal_nan=True)


def _finite_bytes(array: np.ndarray) -> bytes:
    return np.where(np.isfinite(array), array, np.zeros_like(array)).tobytes()


def _distance(found: np.ndarray, expected: np.ndarray) -> tuple[float, float]:
    """The largest distance, and the largest entry, both among the finite ones."""
    wide = np.result_type(expected.dtype, np.float64)
    found, expected = found.astype(wide), expected.astype(wide)
    finite = np.isfinite(expected)
    apart = np.max(np.abs(found - expected), where=finite, initial=0.0)
    largest = np.max(np.abs(expected), where=finite, initial=0.0)
    return float(apart), float(largest)


def _tolerance(dtype: np.dtype) -> float:
    return max(1e-6, float(jnp.finfo(dtype).eps))


@typed
def assert_stage_local_equal(
    tx: Any,
    params: PyTree,
    partition: StagePartition,
    *,
    steps: int = 3,
    grads: Sequence[PyTree] | None = None,
    extra_args: Mapping[str, Any] | None = None,
    grade: Grade = "exact",
    seed: int = 0,
) -> StageLocal:
    """Asserts that a transformation gives the same stage by stage as on the whole tree.

    The reference is `tx.update` and `optax.apply_updates` on the whole tree under
    `jax.jit`. Updates, parameters and state are compared after every step, and every
    copy of what several stages hold.

    **Arguments:**

    - `tx`: any Optax transformation.
    - `params`: the tree that was partitioned. Normal random values stand in for
        shapes.
    - `partition`: which stages own which parameter.
    - `steps`: how many steps.
    - `grads`: a whole tree of gradients for each step, in place of `steps` normal
        random ones. For a parameter that several stages own, the lowest is given the
        gradient and the others nothing to add.
    - `extra_args`: extra arguments of `tx.update`, the same at every step; see
        `stage_local`.
    - `grade`: as in `assert_equal`. "close" starts every step from the reference's
        parameters and state, as a last bit may grow from step to step.
    - `seed`: of the random values.

    **Returns:** what `stage_local` made.

    **Raises:** `AssertionError` naming the first leaves that differ, and by how much.

    !!! Example

        >>> import functional_opt as fo, jax.numpy as jnp, optax
        >>> params = {"embed": jnp.ones((8, 2)), "head": jnp.ones((2, 8))}
        >>> partition = fo.partition(params, {"embed": 0, "head": 1})
        >>> tx = optax.chain(optax.clip_by_global_norm(1.0), optax.lion(1e-3))
        >>> staged = fo.testing.assert_stage_local_equal(tx, params, partition)
        >>> staged.rounds
        1
    """
    extra_args = extra_args or {}
    example = None if grads is None else grads[0]
    staged = stage_local(tx, params, partition, grads=example, extra_args=extra_args)
    extra = values_of(extra_args)
    keys = iter(jax.random.split(jax.random.key(seed), steps + 1))
    whole = only_params(params)
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(whole)):
        whole = _random_like(next(keys), whole)
    if grads is None:
        grads = [_random_like(next(keys), whole) for _ in range(steps)]
    update, step = _reference(tx)
    state = jax.jit(tx.init)(whole)
    pieces = partition.split(whole)
    states = staged.init(pieces)
    _assert_pieces_equal("state", states, staged.split_state(state), grade)
    for tree in map(only_params, grads):
        if grade == "close":
            pieces, states = partition.split(whole), staged.split_state(state)
        given = partition.split_gradients(tree), states, pieces
        updates, _ = staged.update(*given, **extra)
        pieces, states = staged.step(*given, **extra)
        expected, _ = update(tree, state, whole, **extra)
        whole, state = step(tree, state, whole, **extra)
        _assert_pieces_equal("updates", updates, partition.split(expected), grade)
        _assert_pieces_equal("params", pieces, partition.split(whole), grade)
        _assert_pieces_equal("state", states, staged.split_state(state), grade)
    return staged


def _random_like(key: Array, tree: PyTree) -> PyTree:
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(key, max(len(leaves), 1))
    normal = [
        jax.random.normal(key, leaf.shape, leaf.dtype)
        for key, leaf in zip(keys, leaves, strict=False)
    ]
    return jax.tree.unflatten(structure, normal)


def _reference(
    tx: optax.GradientTransformation,
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Update alone, and update with its application, which XLA may fuse into one."""

    update = optax.with_extra_args_support(tx).update

    def step(grads: PyTree, state: PyTree, params: PyTree, **extra_args: Any) -> Any:
        updates, state = update(grads, state, params, **extra_args)
        return optax.apply_updates(params, updates), state

    return jax.jit(update), jax.jit(step)


def _assert_pieces_equal(
    name: str, found: Sequence[PyTree], expected: Sequence[PyTree], grade: Grade
) -> None:
    """Compares piece by piece, and so every copy of what several stages hold."""
    for stage, pieces in enumerate(zip(found, expected, strict=True)):
        one, other = ({f"{name} of stage {stage}": piece} for piece in pieces)
        assert_equal(one, other, grade)
