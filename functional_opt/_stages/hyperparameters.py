"""A transformation as a function of the arrays in its hyperparameters."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from .._annotations import shown
from .._paths import path_text
from .trees import TreeSplit


@dataclass(frozen=True, eq=False)
class Hyperparameters:
    """The hyperparameters of a transformation. Their arrays are inputs of programs.

    **Attributes:**

    - `build`: builds the transformation of `configs`.
    - `configs`: pytrees, such as a `Recipe`. All of them but their arrays is part of
        the programs.
    """

    build: Callable[..., optax.GradientTransformation]
    configs: tuple[Any, ...] = ()

    @classmethod
    def of(cls, tx: optax.GradientTransformation) -> "Hyperparameters":
        """The hyperparameters of a built transformation, which has none."""
        return cls(lambda: tx)

    @functools.cached_property
    def tx(self) -> optax.GradientTransformation:
        return self.build(*self.configs)

    def tx_of(self, arrays: Sequence[Any]) -> optax.GradientTransformation:
        """The same transformation with other arrays, which may be traced."""
        if not arrays:
            return self.tx
        _, others = eqx.partition(self.configs, eqx.is_array)
        own = jax.tree.unflatten(jax.tree.structure(self._arrays), arrays)
        return self.build(*eqx.combine(own, others))

    @property
    def _arrays(self) -> tuple[Any, ...]:
        return eqx.filter(self.configs, eqx.is_array)

    @property
    def arrays(self) -> list[Any]:
        return jax.tree.leaves(self._arrays)

    def split(self, num_stages: int) -> TreeSplit:
        """Replicates all arrays on every stage."""
        arrays, everywhere = self.arrays, frozenset(range(num_stages))
        paths = [path_text(p[1:]) for p, _ in jax.tree.leaves_with_path(self._arrays)]
        split = TreeSplit.of(arrays, [everywhere] * len(arrays), num_stages)
        return split.named(paths)

    def replaced(self, configs: tuple[Any, ...]) -> "Hyperparameters":
        """The same but for its arrays.

        **Raises:** `ValueError` naming the first path at which anything else differs.
        """
        if not self.arrays:
            raise ValueError(
                "`with_hyperparameters` replaces arrays, and there are none in what "
                "this transformation was built of. Call `build_mpmd` of a recipe that "
                "holds what is to change as an array, such as `jnp.array(0.9)`."
            )
        if len(configs) != len(self.configs):
            names = ["the recipe", "the optimizer and its schedule"]
            raise TypeError(
                f"`with_hyperparameters` requires {names[len(self.configs) - 1]}, as "
                f"passed to `build_mpmd`, got {len(configs)} arguments."
            )
        pairs = zip(self.configs, configs, strict=True)
        differences = (text for pair in pairs for text in _differences(*pair, ""))
        difference = next(differences, None)
        if difference is not None:
            raise ValueError(
                f"`with_hyperparameters` replaces arrays alone, but {difference}. Call "
                "`build_mpmd` again; with an array there, such as `jnp.array(0.9)`, "
                "it is needed only once."
            )
        leaves, structure = jax.tree.flatten(self.configs)
        pairs = zip(leaves, jax.tree.leaves(configs), strict=True)
        new = [jnp.asarray(b, a.dtype) if eqx.is_array(a) else a for a, b in pairs]
        return Hyperparameters(self.build, jax.tree.unflatten(structure, new))


def _differences(before: Any, after: Any, path: str) -> Iterator[str]:
    """The first difference other than the values of arrays."""
    label = f"`{path}`" if path else "the argument"
    if eqx.is_array(before):
        if not _is_like(after, before):
            wanted, got = jax.typeof(before).str_short(), _text(after)
            yield f"{label} must be {wanted} or a number, got {got}"
    elif type(before) is not type(after):
        yield f"{label} is {_text(before)} in the programs, got {_text(after)}"
    elif (children := _children(before)) is not None:
        others = _children(after) or {}
        for key in {**children, **others}:
            one, other = (x.get(key, ...) for x in (children, others))
            yield from _differences(one, other, f"{path}{key}".removeprefix("."))
    elif before is not after and not bool(np.all(before == after)):
        yield f"{label} is {_text(before)} in the programs, got {_text(after)}"


def _is_like(value: Any, array: Any) -> bool:
    """Whether a value can replace an array: Python numbers take its dtype."""
    if not eqx.is_array_like(value):
        return False
    found = jax.typeof(value)
    same_dtype = found.weak_type or found.dtype == array.dtype
    return same_dtype and found.shape == array.shape


def _children(value: Any) -> dict[str, Any] | None:
    if isinstance(value, eqx.Module):
        names = [field.name for field in dataclasses.fields(value)]
        return {f".{name}": getattr(value, name) for name in names}
    if isinstance(value, Mapping):
        return {f"[{key!r}]": item for key, item in value.items()}
    if isinstance(value, tuple | list):
        return {f"[{number}]": item for number, item in enumerate(value)}
    return None


def _text(value: Any) -> str:
    return "nothing" if value is ... else shown(value)
