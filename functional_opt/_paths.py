"""How a place in a pytree is written in errors, tables and patterns."""

from typing import Any

import jax


def path_text(path: tuple[Any, ...]) -> str:
    """A key path as one would write it: `layers[3].mlp.weight`."""
    return jax.tree_util.keystr(path).removeprefix(".")
