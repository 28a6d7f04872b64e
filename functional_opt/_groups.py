"""Other optimizers for other parameters."""

from collections.abc import Mapping
from dataclasses import KW_ONLY
from typing import Any, final

import jax
import optax
from jaxtyping import PyTree

from ._base import AbstractOptimizer
from ._composition.decay import WithDecay
from ._composition.held import AbstractPartitionedOptimizer
from ._composition.rates import WithRate
from ._config import AbstractConfig
from ._fields import number, part, setting
from ._paths import path_text
from ._types import LearningRate, NonNegative, typed
from ._where import check_finds, is_whole, Selection


@final
class Group(AbstractConfig):
    """Some parameters and what they get.

    ```python
    >>> import functional_opt as fo
    >>> group = fo.Group(fo.Where("embed"), optimizer=fo.Lion(), schedule_scale=0.1)

    ```

    **Arguments:**

    - `where`: which parameters, among those that no group before this one has.
    - `optimizer`: what makes a step of their gradient.
    - `schedule_scale`: what the learning rate is multiplied with; at least 0.
    - `weight_decay`: in place of the optimizer's own and of the recipe's; per unit of
        (scaled) learning rate, at least 0. None leaves it to them.
    """

    where: Selection = setting()
    optimizer: AbstractOptimizer = part()
    _: KW_ONLY
    schedule_scale: NonNegative = number(default=1.0)
    weight_decay: NonNegative | None = number(default=None)


@final
class Groups(AbstractPartitionedOptimizer):
    """Optimizers by groups of parameters: `optax.partition`.

    The first group that finds a parameter has it. All is decided on the whole tree: a
    group that has no parameter there is an error, on one stage of a pipeline it is
    usual.

    ```python
    >>> import functional_opt as fo
    >>> import jax.numpy as jnp
    >>> optimizer = fo.Groups(
    ...     (
    ...         fo.Group(fo.Where("embed"), optimizer=fo.Lion(), schedule_scale=0.1),
    ...         fo.Group(fo.Where("norm"), optimizer=fo.Frozen()),
    ...     ),
    ...     rest=fo.AdamW(),
    ... )
    >>> params = {"embed": jnp.ones(2), "norm": jnp.ones(2), "head": jnp.ones(2)}
    >>> state = optimizer.build(1e-3).init(params)

    ```

    **Arguments:**

    - `groups`: a tuple of `Group`; the order counts.
    - `rest`: the optimizer of the parameters that no group finds. None makes it an
        error if there are any.
    """

    groups: tuple[Group, ...] = part()
    _: KW_ONLY
    rest: AbstractOptimizer | None = part(default=None)

    @typed
    def build(self, schedule: LearningRate) -> optax.GradientTransformationExtraArgs:
        return self.build_parts(schedule)

    def parts(self) -> Mapping[str, AbstractOptimizer]:
        groups = {str(index): _part(group) for index, group in enumerate(self.groups)}
        return groups if self.rest is None else groups | {"rest": self.rest}

    def labels(self, params: PyTree) -> PyTree[str]:
        unfound: list[str] = []

        def label(path: tuple[Any, ...], leaf: Any) -> str:
            text = path_text(path)
            for index, group in enumerate(self.groups):
                if group.where.finds(text, leaf):
                    return str(index)
            if self.rest is None:
                unfound.append(text)
            return "rest"

        labels = jax.tree_util.tree_map_with_path(label, params)
        if unfound:
            raise ValueError(_unfound_text(unfound))
        if is_whole(params):
            self._check_groups(params, labels)
        return labels

    def _check_groups(self, params: PyTree, labels: PyTree) -> None:
        taken = set(jax.tree.leaves(labels))
        for index, group in enumerate(self.groups):
            check_finds(group.where, params)
            if str(index) not in taken:
                raise ValueError(
                    f"`Groups.groups[{index}]` has no parameter: the groups before it "
                    f"have all that `{group.where}` finds. Put it before them, or "
                    "leave it out."
                )


def _part(group: Group) -> AbstractOptimizer:
    optimizer = group.optimizer
    if group.weight_decay is not None:
        optimizer = WithDecay(optimizer=optimizer, weight_decay=group.weight_decay)
    return WithRate(optimizer=optimizer, scale=group.schedule_scale)


def _unfound_text(paths: list[str]) -> str:
    shown = ", ".join(f"`{path}`" for path in paths[:4])
    more = f" and {len(paths) - 4} more" if len(paths) > 4 else ""
    return (
        f"No group finds {shown}{more}, and `Groups.rest` is None. Say what makes "
        "their steps: `rest=...`; `Frozen()` makes none."
    )
