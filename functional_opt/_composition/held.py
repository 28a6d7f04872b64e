"""The tree of optimizers: which ones an optimizer holds, and for which parameters."""

import abc
import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import KW_ONLY
from typing import Any, ClassVar, final, TypeVar

import jax
import optax
from jaxtyping import PyTree

from .._base import AbstractOptimizer, held_by, is_optimizer
from .._fields import part, setting
from .._types import LearningRate, typed


class AbstractPartitionedOptimizer(AbstractOptimizer):
    """An optimizer that holds several, each for some of the parameters.

    Subclass it and implement `parts`, `labels` and `build`, for which `build_parts` is
    usually all that is required. `Recipe.weight_decay`, `Frozen` and `Recipe.explain`
    follow from `parts` and `labels`.

    ```python
    >>> import functional_opt as fo
    >>> import jax, jax.numpy as jnp
    >>> class LionForMatrices(fo.AbstractPartitionedOptimizer):
    ...     rest: fo.AbstractOptimizer
    ...
    ...     def parts(self):
    ...         return {"matrix": fo.Lion(), "rest": self.rest}
    ...
    ...     def labels(self, params):
    ...         return jax.tree.map(
    ...             lambda leaf: "matrix" if leaf.ndim == 2 else "rest", params
    ...         )
    ...
    ...     def build(self, schedule):
    ...         return self.build_parts(schedule)
    >>> recipe = fo.Recipe(optimizer=LionForMatrices(fo.SGD()), schedule=1e-3)
    >>> print(recipe.explain({"kernel": jnp.ones((4, 2)), "scale": jnp.ones(4)}))
    path        shape   optimizer     schedule  decay
    ['kernel']  (4, 2)  matrix: Lion  x 1       0.001
    ['scale']   (4,)    rest: SGD     x 1       0

    ```
    """

    UNDOES: ClassVar[str | None] = None

    @abc.abstractmethod
    def parts(self) -> Mapping[str, AbstractOptimizer]:
        """The optimizers, by label."""

    @abc.abstractmethod
    def labels(self, params: PyTree) -> PyTree[str]:
        """The label of the optimizer of each parameter.

        **Arguments:**

        - `params`: the parameters, their gradients or their shapes. There may be holes
            (`optax.MaskedNode`) in place of some: on a stage of a pipeline, or inside
            another partitioned optimizer.

        **Returns:** a tree of the same structure.
        """

    @typed
    def build_parts(
        self, schedule: LearningRate
    ) -> optax.GradientTransformationExtraArgs:
        """`optax.partition` of the parts, all built with one learning rate.

        **Arguments:**

        - `schedule`: as in `build`.
        """
        built: dict[Any, Any] = {
            label: optimizer.build(schedule)
            for label, optimizer in self.parts().items()
        }
        return optax.partition(built, self.labels)


@final
class Partitioned(AbstractPartitionedOptimizer):
    """A partitioned optimizer whose parts were replaced.

    **Arguments:**

    - `source`: the partitioned optimizer, which assigns the labels.
    - `names`: the labels.
    - `replaced`: the optimizer of each label.
    """

    _: KW_ONLY
    source: AbstractPartitionedOptimizer = part()
    names: tuple[str, ...] = setting()
    replaced: tuple[AbstractOptimizer, ...] = part()

    def parts(self) -> Mapping[str, AbstractOptimizer]:
        return dict(zip(self.names, self.replaced, strict=True))

    def labels(self, params: PyTree) -> PyTree[str]:
        return self.source.labels(params)

    @typed
    def build(self, schedule: LearningRate) -> optax.GradientTransformationExtraArgs:
        return self.build_parts(schedule)


O = TypeVar("O", bound=AbstractOptimizer)  # noqa: E741


@held_by.register
def _(optimizer: AbstractPartitionedOptimizer) -> Iterator[AbstractOptimizer]:
    yield from optimizer.parts().values()


def only_held(optimizer: AbstractOptimizer, purpose: str) -> AbstractOptimizer | None:
    """The one optimizer inside another that is not partitioned, or None.

    **Raises:** `ValueError` if it holds several, since it does not declare which
    parameters each of them updates.
    """
    held = list(held_by(optimizer))
    if len(held) > 1:
        names = ", ".join(f"`{type(inner).__name__}`" for inner in held)
        raise ValueError(
            f"`{type(optimizer).__name__}` holds {len(held)} optimizers ({names}) and "
            f"does not declare which parameters each of them updates, which {purpose} "
            "requires. Make it an `AbstractPartitionedOptimizer`."
        )
    return held[0] if held else None


def replace_held(
    optimizer: O, change: Callable[[AbstractOptimizer], AbstractOptimizer]
) -> O | Partitioned:
    """The same optimizer with a function applied to each one directly inside it."""
    if isinstance(optimizer, AbstractPartitionedOptimizer):
        parts = optimizer.parts()
        changed = tuple(map(change, parts.values()))
        if all(map(_is, changed, parts.values())):
            return optimizer
        return Partitioned(source=optimizer, names=tuple(parts), replaced=changed)

    def replaced(value: Any) -> Any:
        return jax.tree.map(
            lambda node: change(node) if is_optimizer(node) else node,
            value,
            is_leaf=is_optimizer,
        )

    holding = [
        (name, value)
        for name, value in vars(optimizer).items()
        if any(map(is_optimizer, jax.tree.leaves(value, is_leaf=is_optimizer)))
    ]
    return with_fields(optimizer, **{name: replaced(value) for name, value in holding})


def with_fields(optimizer: O, /, **changes: Any) -> O:
    """The same optimizer with other values in some fields.

    Unlike `dataclasses.replace` it works for a class with an `__init__` of its own.
    """
    if not changes:
        return optimizer
    copied = copy.copy(optimizer)
    for name, value in changes.items():
        object.__setattr__(copied, name, value)
    return copied


def by_part(
    optimizer: AbstractPartitionedOptimizer,
    params: PyTree,
    function: Callable[[str, AbstractOptimizer, PyTree], PyTree],
    is_leaf: Callable[[Any], bool] | None = None,
) -> PyTree:
    """Applies a function to each part and its parameters, and merges the results.

    The other parameters are holes.
    """
    labels, parts = optimizer.labels(params), optimizer.parts()
    leaves, structure = jax.tree.flatten(labels)
    for label in leaves:
        if label not in parts:
            raise ValueError(
                f"`{type(optimizer).__name__}.labels` has {label!r}, which is not one "
                f"of the labels of its parts, {list(parts)}."
            )
    for name, held in parts.items():
        own = jax.tree.map(
            lambda label, leaf, name=name: (
                leaf if label == name else optax.MaskedNode()
            ),
            *(labels, params),
        )
        results = iter(jax.tree.leaves(function(name, held, own), is_leaf))
        leaves = [next(results) if leaf == name else leaf for leaf in leaves]
    return jax.tree.unflatten(structure, leaves)


def _is(one: Any, other: Any) -> bool:
    return one is other
