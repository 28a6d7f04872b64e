"""A model that is known by the paths, shapes, dtypes and stages of its parameters."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from annotated_types import Interval

import functional_opt as fo

from .._codec.errors import ConfigError
from .._codec.files import decode_text, parse
from .._paths import path_text


FLOAT32 = jnp.dtype("float32")
Size = Annotated[int, Interval(ge=0)]


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One parameter of a model.

    **Arguments:**

    - `shape`: its dimensions.
    - `dtype`: what its entries are.
    - `stage`: the pipeline stage that has it, or the stages that share it.
    """

    shape: tuple[Size, ...]
    dtype: np.dtype = FLOAT32
    stage: Size | tuple[Size, ...] = 0


class Place(str):
    """The path of a parameter, as one key of a tree."""


@jax.tree_util.register_pytree_with_keys_class
class Model:
    """A flat tree whose leaves have the paths that the real model's have."""

    def __init__(self, leaves: dict[str, Any]) -> None:
        self.leaves = leaves

    def tree_flatten_with_keys(self) -> tuple[Any, Any]:
        pairs = [(Place(f".{path}"), leaf) for path, leaf in self.leaves.items()]
        return pairs, tuple(self.leaves)

    @classmethod
    def tree_unflatten(cls, paths: tuple[str, ...], leaves: Any) -> "Model":
        return cls(dict(zip(paths, leaves, strict=True)))


def read_model(path: str) -> tuple[Model, fo.StagePartition]:
    """The parameters' shapes and their stages, from a JSON file."""
    data = parse(decode_text(Path(path).read_bytes(), path), "json", path)
    parameters = _parameters(data, path)
    shapes = Model(
        {
            place: jax.ShapeDtypeStruct(parameter.shape, parameter.dtype)
            for place, parameter in parameters.items()
        }
    )
    return shapes, fo.partition(
        shapes, lambda path, _: parameters[path_text(path)].stage
    )


def _parameters(data: Any, source: str) -> dict[str, Parameter]:
    if not isinstance(data, dict) or not data:
        text = "expected parameters by their paths, as JSON"
        raise ConfigError([("", text)], source)
    found, problems = {}, []
    for place, value in data.items():
        try:
            found[place] = fo.Registry().decode(value, Parameter)
        except ConfigError as error:
            problems += [(f"{place}: {at}", text) for at, text in error.problems]
    if problems:
        raise ConfigError(problems, source)
    return found
