"""Models described by the paths, shapes, dtypes and stages of their parameters."""

import dataclasses
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from annotated_types import Interval

import functional_opt as fo

from .._codec.decode import read
from .._codec.files import Document, parse
from .._codec.notation import Notation
from .._codec.problems import MOST_PROBLEMS, Problem, Refused
from .._paths import path_text
from .documents import read_text


FLOAT32 = jnp.dtype("float32")
Size = Annotated[int, Interval(ge=0)]


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One parameter of a model.

    **Arguments:**

    - `shape`: its dimensions.
    - `dtype`: the dtype of its entries.
    - `stage`: the pipeline stage that owns it, or the stages that share it.
    """

    shape: tuple[Size, ...]
    dtype: np.dtype = FLOAT32
    stage: Size | tuple[Size, ...] = 0


class PathKey(str):
    """The whole path of a parameter, as one key of a tree."""


@jax.tree_util.register_pytree_with_keys_class
class Model:
    """A flat tree whose leaves have the paths of the parameters of a real model."""

    def __init__(self, leaves: dict[str, Any]) -> None:
        self.leaves = leaves

    def tree_flatten_with_keys(self) -> tuple[Any, Any]:
        pairs = [(PathKey(f".{path}"), leaf) for path, leaf in self.leaves.items()]
        return pairs, tuple(self.leaves)

    @classmethod
    def tree_unflatten(cls, paths: tuple[str, ...], leaves: Any) -> "Model":
        return cls(dict(zip(paths, leaves, strict=True)))


def read_model(path: str) -> tuple[Model, fo.StagePartition]:
    """Reads the shapes of the parameters, and their stages, from a JSON file."""
    document = parse(read_text(path, path), "json", path)
    parameters = _parameters(document)
    shapes = Model(
        {
            path: jax.ShapeDtypeStruct(parameter.shape, parameter.dtype)
            for path, parameter in parameters.items()
        }
    )
    return shapes, fo.partition(
        shapes, lambda path, _: parameters[path_text(path)].stage
    )


def _parameters(document: Document) -> dict[str, Parameter]:
    if not isinstance(document.data, dict) or not document.data:
        text = "expected the parameters by their paths"
        raise document.error([Problem((), text)])
    found, problems = {}, []
    for path, value in document.data.items():
        try:
            found[path] = read((), value, Parameter, Notation())
        except Refused as refused:
            inner = refused.problems
            problems += [x._replace(location=(path, *x.location)) for x in inner]
    if problems:
        raise document.error(problems[:MOST_PROBLEMS])
    return found
