import dataclasses
import re
from typing import Any, final

import jax
import optax
from jaxtyping import PyTree

from ._config import check_fields
from ._paths import path_text
from ._types import Count, typed


# No Equinox module: `optax.masked` takes a mask for a function only if it is a leaf.
@final
@dataclasses.dataclass(frozen=True)
class Where:
    """Which parameters, by their path and their rank.

    An instance is a mask for Optax: called with the parameters it gives a tree of bools
    of their structure. Pass it wherever Optax takes such a function.

    ```python
    >>> import functional_opt as fo
    >>> import jax.numpy as jnp
    >>> layer = {"weight": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    >>> params = {"head": layer, "norm": jnp.ones(2)}
    >>> fo.Where("head", min_ndim=2)(params)
    {'head': {'bias': False, 'weight': True}, 'norm': False}

    ```

    **Arguments:**

    - `path`: a regular expression that is searched for in the path of a parameter,
        which is written as in Python, without the tree: `layers[3].mlp.weight`, or
        `['head']['bias']`. None finds all.
    - `min_ndim`: the smallest number of dimensions; 2 leaves out biases and the scales
        of norms.
    """

    path: str | None = None
    min_ndim: Count = 0

    def __post_init__(self) -> None:
        check_fields(self)
        try:
            re.compile(self.path or "")
        except re.error as error:
            raise ValueError(
                f"`Where.path` must be a regular expression, got {self.path!r}: "
                f"{error}. `re.escape` makes one of a plain path."
            ) from None

    @typed
    def __call__(self, params: PyTree) -> PyTree[bool]:
        """Which leaves of a tree are meant.

        **Arguments:**

        - `params`: arrays, or anything else that has a `shape`.

        **Returns:** a tree of bools of the same structure. It is an error if none is
        true, unless there are holes (`optax.MaskedNode`) where others may be.
        """
        found = jax.tree_util.tree_map_with_path(self._finds, params)
        if not any(jax.tree.leaves(found)) and not _has_holes(params):
            raise ValueError(f"`{self}` finds no parameter. {_some_paths(params)}")
        return found

    def _finds(self, path: tuple[Any, ...], leaf: Any) -> bool:
        if len(getattr(leaf, "shape", ())) < self.min_ndim:
            return False
        return self.path is None or re.search(self.path, path_text(path)) is not None


def _has_holes(params: PyTree) -> bool:
    nodes = jax.tree.leaves(params, is_leaf=_is_hole)
    return any(_is_hole(node) for node in nodes)


def _is_hole(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)


def _some_paths(params: PyTree) -> str:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    if not leaves:
        return "The tree has no leaves."
    shown = [
        f"`{path_text(path)}` {getattr(leaf, 'shape', ())}" for path, leaf in leaves[:4]
    ]
    more = f" and {len(leaves) - 4} more" if len(leaves) > 4 else ""
    return f"There are {', '.join(shown)}{more}."
