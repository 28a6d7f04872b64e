"""The text form of a path in a pytree, in errors, tables and patterns."""

from typing import Any

import jax


def path_text(path: tuple[Any, ...]) -> str:
    """A key path as in Python code: `layers[3].mlp.weight`."""
    return jax.tree_util.keystr(path).removeprefix(".")
