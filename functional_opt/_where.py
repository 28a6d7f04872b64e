"""Rules that select parameters, as data."""

import abc
import dataclasses
import re
from collections.abc import Callable
from typing import Any, final, Union

import jax
import optax
from jaxtyping import PyTree

from ._paths import path_text
from ._types import Count, typed


# No Equinox module: `optax.masked` takes a mask for a function only if it is a leaf.
class AbstractWhere(abc.ABC):
    """A rule that selects some of the parameters.

    An instance is a mask function for Optax: called with the parameters, it returns a
    tree of bools with their structure. Pass it wherever Optax accepts such a function.
    `&`, `|` and `~` combine rules.
    """

    @abc.abstractmethod
    def finds(self, path: str, leaf: Any) -> bool:
        """Whether the rule selects a leaf at a path."""

    @abc.abstractmethod
    def rules(self) -> "tuple[Where, ...]":
        """The plain rules that this one combines."""

    @typed
    def __call__(self, params: PyTree) -> PyTree[bool]:
        """The mask of the selected leaves.

        **Arguments:**

        - `params`: arrays, or anything else that has a `shape`.

        **Returns:** a tree of bools of the same structure.

        **Raises:** `ValueError` if this rule, or a rule that it combines, selects
        nothing, unless the tree has holes (`optax.MaskedNode`) or no leaves at all.
        """
        found = jax.tree_util.tree_map_with_path(
            lambda path, leaf: self.finds(path_text(path), leaf), params
        )
        if is_whole(params):
            check_finds(self, params)
        return found

    def __and__(self, other: "AbstractWhere") -> "AllOf":
        return AllOf((*_parts(AllOf, self), *_parts(AllOf, other)))  # pyright: ignore[reportArgumentType]

    def __or__(self, other: "AbstractWhere") -> "AnyOf":
        return AnyOf((*_parts(AnyOf, self), *_parts(AnyOf, other)))  # pyright: ignore[reportArgumentType]

    def __invert__(self) -> "Not":
        return Not(self)  # pyright: ignore[reportArgumentType]


@final
@typed
@dataclasses.dataclass(frozen=True)
class Where(AbstractWhere):
    """Selects parameters by their path and their rank.

    ```python
    >>> import functional_opt as fo
    >>> import jax.numpy as jnp
    >>> layer = {"weight": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    >>> params = {"head": layer, "norm": jnp.ones(2)}
    >>> fo.Where("head", min_ndim=2)(params)
    {'head': {'bias': False, 'weight': True}, 'norm': False}
    >>> (fo.Where("bias") | ~fo.Where("head"))(params)
    {'head': {'bias': True, 'weight': False}, 'norm': True}

    ```

    **Arguments:**

    - `path`: a regular expression that is searched for in the path of a parameter. A
        path is written as in Python, without the tree: `layers[3].mlp.weight`, or
        `['head']['bias']`. None matches all.
    - `min_ndim`: the smallest number of dimensions; 2 excludes biases and the scales
        of norms.
    """

    path: str | None = None
    min_ndim: Count = 0

    def __post_init__(self) -> None:
        try:
            re.compile(self.path or "")
        except re.error as error:
            raise ValueError(
                f"`Where.path` must be a regular expression, got {self.path!r}: "
                f"{error}. `re.escape` makes one of a plain path."
            ) from None

    def finds(self, path: str, leaf: Any) -> bool:
        if len(getattr(leaf, "shape", ())) < self.min_ndim:
            return False
        return self.path is None or re.search(self.path, path) is not None

    def rules(self) -> "tuple[Where, ...]":
        return (self,)


@final
@typed
@dataclasses.dataclass(frozen=True)
class AllOf(AbstractWhere):
    """Selects the parameters that all of several rules select. Also written `a & b`.

    ```python
    >>> import functional_opt as fo
    >>> fo.Where("head") & fo.Where(min_ndim=2)
    AllOf(parts=(Where(path='head', min_ndim=0), Where(path=None, min_ndim=2)))

    ```

    **Arguments:**

    - `parts`: a tuple of rules, at least one.
    """

    parts: "tuple[Selection, ...]"

    def __post_init__(self) -> None:
        _check_parts(self)

    def finds(self, path: str, leaf: Any) -> bool:
        return all(part.finds(path, leaf) for part in self.parts)

    def rules(self) -> tuple[Where, ...]:
        return tuple(rule for part in self.parts for rule in part.rules())


@final
@typed
@dataclasses.dataclass(frozen=True)
class AnyOf(AbstractWhere):
    """Selects the parameters that any of several rules selects. Also written `a | b`.

    ```python
    >>> import functional_opt as fo
    >>> fo.Where("embed") | fo.Where("head")
    AnyOf(parts=(Where(path='embed', min_ndim=0), Where(path='head', min_ndim=0)))

    ```

    **Arguments:**

    - `parts`: a tuple of rules, at least one.
    """

    parts: "tuple[Selection, ...]"

    def __post_init__(self) -> None:
        _check_parts(self)

    def finds(self, path: str, leaf: Any) -> bool:
        return any(part.finds(path, leaf) for part in self.parts)

    def rules(self) -> tuple[Where, ...]:
        return tuple(rule for part in self.parts for rule in part.rules())


@final
@typed
@dataclasses.dataclass(frozen=True)
class Not(AbstractWhere):
    """Selects the parameters that a rule does not select. Also written `~a`.

    ```python
    >>> import functional_opt as fo
    >>> ~fo.Where("norm")
    Not(part=Where(path='norm', min_ndim=0))

    ```

    **Arguments:**

    - `part`: the rule.
    """

    part: "Selection"

    def finds(self, path: str, leaf: Any) -> bool:
        return not self.part.finds(path, leaf)

    def rules(self) -> tuple[Where, ...]:
        return self.part.rules()


Selection = Union[Where, AllOf, AnyOf, Not]  # noqa: UP007
Mask = Selection | Callable[[PyTree], PyTree]


def _parts(kind: type, where: Any) -> tuple[Any, ...]:
    """Keeps `a & b & c` one rule of three."""
    return where.parts if isinstance(where, kind) else (where,)


def _check_parts(where: AllOf | AnyOf) -> None:
    if not where.parts:
        raise ValueError(
            f"`{type(where).__name__}.parts` must have at least one rule, got ()."
        )


def check_finds(where: AbstractWhere, params: PyTree) -> None:
    """Raises an error if a rule, or one that it combines, finds nothing in a tree."""
    leaves = [
        (path_text(path), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    ]
    for rule in (*where.rules(), where):
        if not any(rule.finds(path, leaf) for path, leaf in leaves):
            inside = "" if rule == where else f", in `{where}`,"
            raise ValueError(
                f"`{rule}`{inside} finds no parameter. {_some_paths(leaves)}"
            )


def is_whole(params: PyTree) -> bool:
    """Whether a tree may be expected to have all parameters.

    One with holes (`optax.MaskedNode`) does not, nor one without any leaf:
    `optax.tree.map_params` passes a placeholder in place of the parameters.
    """
    nodes = jax.tree.leaves(params, is_leaf=_is_hole)
    return bool(nodes) and not any(map(_is_hole, nodes))


def _is_hole(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)


def _some_paths(leaves: list[tuple[str, Any]]) -> str:
    shown = [f"`{path}` {getattr(leaf, 'shape', ())}" for path, leaf in leaves[:4]]
    more = f" and {len(leaves) - 4} more" if len(leaves) > 4 else ""
    return f"There are {', '.join(shown)}{more}."
