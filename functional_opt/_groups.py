"""Different optimizers for different parameters."""

from collections.abc import Mapping
from dataclasses import KW_ONLY
from typing import Any, final

import jax
import optax
from jaxtyping import PyTree

from ._base import AbstractOptimizer, AbstractSchedule, all_in, WeightDecay
from ._clips import Clip
from ._composition.clipped import Clipped, UpdateClipped
from ._composition.decay import WithDecay
from ._composition.held import AbstractPartitionedOptimizer
from ._composition.rates import is_one, WithRate
from ._config import AbstractConfig
from ._extra_args import check_grouped
from ._fields import number, part, setting
from ._paths import path_text
from ._schedules.constant import as_schedule
from ._types import LearningRate, NonNegative, Scalar, Schedule, typed
from ._undone import check_clip_update
from ._where import check_finds, is_whole, Selection


@final
class Group(AbstractConfig):
    """Some parameters, with their optimizer, learning rate and weight decay.

    ```python
    >>> import functional_opt as fo
    >>> group = fo.Group(fo.Where("embed"), optimizer=fo.Lion(), schedule_scale=0.1)

    ```

    **Arguments:**

    - `where`: the parameters, among those that are in no group before this one.
    - `optimizer`: their optimizer.
    - `schedule`: their learning rate in place of the recipe's: a schedule, any other
        function of the number of completed updates, or a number. It does not replace
        learning rates that are set inside `optimizer`.
    - `schedule_scale`: factor on the learning rate and on all learning rates that are
        set inside `optimizer`; at least 0. It cannot be combined with `schedule`.
    - `weight_decay`: decoupled weight decay per unit of the group's learning rate, at
        least 0, in place of the optimizer's own and of the recipe's: a number or a
        schedule. If None, they apply.
    - `clip`: how the gradients of the group are clipped, after the recipe's clips, if
        at all.
    - `clip_update`: how the updates of the group, with their weight decay, are clipped,
        if at all.
    """

    where: Selection = setting()
    optimizer: AbstractOptimizer = part()
    _: KW_ONLY
    schedule: AbstractSchedule | Schedule | Scalar | None = part(
        default=None, convert=as_schedule
    )
    schedule_scale: NonNegative = number(default=1.0)
    weight_decay: WeightDecay | None = part(default=None)
    clip: Clip | None = part(default=None)
    clip_update: Clip | None = part(default=None)

    def _check(self) -> None:
        held = all_in(self.optimizer)
        check_clip_update("Group", self.clip_update, UpdateClipped, held)
        if self.schedule is not None and not is_one(self.schedule_scale):
            raise ValueError(
                f"`Group.schedule_scale` = {self.schedule_scale} scales the recipe's "
                f"learning rate, which `Group.schedule` = {self.schedule} replaces. "
                "Omit one of them."
            )


@final
class Groups(AbstractPartitionedOptimizer):
    """Several optimizers, for groups of parameters: `optax.partition`.

    The first group that selects a parameter updates it. Groups are resolved on the
    whole tree: a group without parameters raises an error, but a group may have no
    parameters on a pipeline stage.

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

    - `groups`: a tuple of `Group`, in order of precedence.
    - `rest`: the optimizer of the parameters that no group selects. If None, such
        parameters raise an error.
    """

    groups: tuple[Group, ...] = part()
    _: KW_ONLY
    rest: AbstractOptimizer | None = part(default=None)

    def _check(self) -> None:
        places = {
            f"Groups.groups[{index}].optimizer": group.optimizer
            for index, group in enumerate(self.groups)
        }
        if self.rest is not None:
            places["Groups.rest"] = self.rest
        for place, optimizer in places.items():
            check_grouped(all_in(optimizer), place)

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
                    f"have all parameters that `{group.where}` finds. Move it before "
                    "them, or remove it."
                )


def _part(group: Group) -> AbstractOptimizer:
    optimizer = group.optimizer
    if group.weight_decay is not None:
        optimizer = WithDecay(optimizer=optimizer, weight_decay=group.weight_decay)
    if group.clip is not None:
        optimizer = Clipped(optimizer=optimizer, clip=group.clip)
    if group.clip_update is not None:
        optimizer = UpdateClipped(optimizer=optimizer, clip_update=group.clip_update)
    return WithRate(
        optimizer=optimizer, schedule=group.schedule, scale=group.schedule_scale
    )


def _unfound_text(paths: list[str]) -> str:
    shown = ", ".join(f"`{path}`" for path in paths[:4])
    more = f" and {len(paths) - 4} more" if len(paths) > 4 else ""
    return (
        f"No group finds {shown}{more}, and `Groups.rest` is None. Set `rest` to the "
        "optimizer of these parameters, or to `Frozen()`."
    )
