"""Assertions for authors: stage-local updates equal whole-tree updates."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, overload, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree

from ._paths import path_text
from ._stages.extra import values_of
from ._stages.local import stage_local, StageLocal
from ._stages.partition import only_params, StagePartition
from ._stages.staged import Staged
from ._types import Transformation, typed


__all__ = ["assert_equal", "assert_stage_local_equal"]

Grade = Literal["exact", "close", "bounded"]

_MOST_DIFFERENCES = 10  # that an error names
_CLOSE = 4  # units in the last place of an entry
_BOUNDED = 1e-6  # of the largest entry of a leaf


@typed
def assert_equal(found: PyTree, expected: PyTree, grade: Grade = "exact") -> None:
    """Asserts that two trees of arrays are equal.

    **Arguments:**

    - `found`, `expected`: trees of the same structure.
    - `grade`: the grade of equality. In all grades, dtypes, shapes, integers and bools
        must be equal, and infinities and NaN must be in the same entries.

        - "exact" requires the same bytes: -0.0 does not equal 0.0.
        - "close" allows every entry to differ by 4 units in its own last place. The
            real and the imaginary part of a complex number are two entries.
        - "bounded" is for arithmetic that cancels, such as a product of matrices: it
            allows every entry to differ by 1e-6 of the largest finite entry of its leaf
            in float32 and wider, and by one unit in the last place of that entry in
            narrower dtypes.

    **Raises:** `AssertionError` with the first leaves that differ, and by how much.

    !!! Example

        >>> import functional_opt as fo, jax.numpy as jnp
        >>> fo.testing.assert_equal(jnp.float32(1 + 2**-22), jnp.float32(1), "close")
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
    found, expected = _finite(found), _finite(expected)
    differing = _DIFFERING[grade](found, expected)
    return _largest_difference(found, expected, differing) if differing.any() else None


def _same_non_finite(found: np.ndarray, expected: np.ndarray) -> bool:
    found, expected = np.atleast_1d(found), np.atleast_1d(expected)
    finite = np.isfinite(found) & np.isfinite(expected)
    return np.array_equal(found[~finite], expected[~finite], equal_nan=True)


def _finite(array: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(array), array, np.zeros_like(array))


def _not_exact(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    same = np.dtype((np.void, expected.dtype.itemsize))
    return np.asarray(found.view(same) != expected.view(same))


def _not_close(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    wide = _wide(expected)
    apart = _wide(found) - wide
    real, imaginary = (
        np.abs(part(apart)) > _CLOSE * _last_place(part(wide), expected.dtype)
        for part in (np.real, np.imag)
    )
    return np.asarray(real | imaginary)


def _not_bounded(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    wide = _wide(expected)
    largest = np.max(np.abs(wide), initial=0.0)
    allowed = _BOUNDED * largest
    if jnp.finfo(expected.dtype).bits < 32:
        allowed = _last_place(largest, expected.dtype)
    return np.asarray(np.abs(_wide(found) - wide) > allowed)


_DIFFERING = MappingProxyType(
    {"exact": _not_exact, "close": _not_close, "bounded": _not_bounded}
)


def _wide(array: np.ndarray) -> np.ndarray:
    return array.astype(np.result_type(array.dtype, np.float64))


def _last_place(values: np.ndarray | np.floating, dtype: np.dtype) -> np.ndarray:
    """The unit in the last place of each of some values, in a dtype."""
    limits = jnp.finfo(dtype)
    _, exponents = np.frexp(np.abs(values))
    unit = np.where(values == 0, 0.0, np.ldexp(float(limits.eps), exponents - 1))
    return np.asarray(np.maximum(unit, float(limits.smallest_subnormal)))


def _largest_difference(
    found: np.ndarray, expected: np.ndarray, differing: np.ndarray
) -> str:
    wide = _wide(expected)
    apart = np.where(differing, np.abs(_wide(found) - wide), -1.0)
    where = np.unravel_index(np.argmax(apart), apart.shape)
    entry = f" at {[int(i) for i in where]}" if where else ""
    return (
        f"{found[where]} instead of {expected[where]}{entry}, apart by "
        f"{apart[where]:.3g}, where the largest entry is {np.max(np.abs(wide)):.3g}"
    )


S = TypeVar("S", bound=Staged)


@overload
def assert_stage_local_equal(
    tx: Transformation,
    params: PyTree,
    partition: StagePartition,
    *,
    steps: int = ...,
    grads: Sequence[PyTree] | None = ...,
    extra_args: Mapping[str, Any] | None = ...,
    grade: Grade = ...,
    seed: int = ...,
    staged: None = None,
) -> StageLocal: ...


@overload
def assert_stage_local_equal(
    tx: Transformation,
    params: PyTree,
    partition: StagePartition,
    *,
    steps: int = ...,
    grads: Sequence[PyTree] | None = ...,
    extra_args: Mapping[str, Any] | None = ...,
    grade: Grade = ...,
    seed: int = ...,
    staged: S,
) -> S: ...


@typed
def assert_stage_local_equal(
    tx: Transformation,
    params: PyTree,
    partition: StagePartition,
    *,
    steps: int = 3,
    grads: Sequence[PyTree] | None = None,
    extra_args: Mapping[str, Any] | None = None,
    grade: Grade = "exact",
    seed: int = 0,
    staged: Any = None,
) -> Any:
    """Asserts that stage-local updates equal those of Optax on the whole tree.

    The reference is a jitted `tx.update` followed by `optax.apply_updates` on the whole
    tree. Updates, parameters and state are compared after every step, including every
    copy of a leaf that several stages hold.

    **Arguments:**

    - `tx`: any Optax transformation.
    - `params`: the tree that was partitioned. Shapes are replaced by normal random
        values.
    - `partition`: the stages that own each parameter.
    - `steps`: the number of steps.
    - `grads`: a whole tree of gradients for each step, in place of `steps` trees of
        normal random values. Tied gradients are passed to the lowest owner only.
    - `extra_args`: extra arguments of `tx.update`, the same at every step; see
        `stage_local`.
    - `grade`: as in `assert_equal`. With "close" and "bounded", every step starts from
        the parameters and state of the reference, since differences of the last bit may
        grow from step to step.
    - `seed`: the seed of the random values.
    - `staged`: the stage-local optimizer to compare with `tx`, such as the result of a
        custom `build_mpmd`. If omitted, the result of `stage_local`.

    **Returns:** the stage-local optimizer.

    **Raises:** `AssertionError` with the first leaves that differ, and by how much.

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
    if staged is None:
        staged = stage_local(
            tx, params, partition, grads=example, extra_args=extra_args
        )
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
        if grade != "exact":
            pieces, states = partition.split(whole), staged.split_state(state)
        summed = getattr(staged, "tied_grads", "partial") == "summed"
        split = partition.split if summed else partition.split_gradients
        given = split(tree), states, pieces
        updates, _ = staged.update(*given, **extra)
        pieces, states = staged.step(*given, **extra)
        expected, _ = update(tree, state, whole, **extra)
        whole, state = step(tree, state, whole, **extra)
        _assert_pieces_equal("updates", updates, partition.split(expected), grade)
        _assert_pieces_equal("params", pieces, partition.split(whole), grade)
        _assert_pieces_equal("state", states, staged.split_state(state), grade)
    return staged


def __dir__() -> list[str]:
    return __all__


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
    """Compares piece by piece, and so every copy of a leaf that several stages hold."""
    for stage, pieces in enumerate(zip(found, expected, strict=True)):
        one, other = ({f"{name} of stage {stage}": piece} for piece in pieces)
        assert_equal(one, other, grade)
