"""Other optimizers for other parameters."""

import dataclasses
from collections.abc import Callable
from dataclasses import KW_ONLY
from typing import Any, final

import jax
import numpy as np
import optax
from jaxtyping import PyTree

from ._base import AbstractOptimizer, scaled
from ._config import AbstractConfig
from ._explain import Assigned, is_assigned
from ._fields import number, part, setting
from ._optimizers.kept import with_state_dtype
from ._paths import path_text
from ._types import LearningRate, NonNegative, Scalar, typed
from ._where import check_finds, has_holes, Mask, Selection, Where


@final
class Frozen(AbstractOptimizer):
    """No step, no decay and no state: `optax.set_to_zero`.

    In a `Recipe` the gradient of what is frozen counts for nothing either: not in the
    norm that is clipped, nor for steps that are skipped.

    ```python
    >>> import functional_opt as fo
    >>> import jax
    >>> jax.tree.leaves(fo.Frozen().build(0.1).init(1.0))
    []

    ```
    """

    @typed
    def build(self, schedule: LearningRate) -> optax.GradientTransformationExtraArgs:
        del schedule
        return optax.with_extra_args_support(optax.set_to_zero())

    @typed
    def build_decayed(
        self,
        schedule: LearningRate,
        weight_decay: Scalar,
        mask: Mask | None = None,
    ) -> optax.GradientTransformationExtraArgs:
        del weight_decay, mask
        return self.build(schedule)

    def assign(
        self,
        params: PyTree,
        weight_decay: Scalar | None = None,
        mask: Mask | None = None,
    ) -> PyTree:
        del weight_decay, mask
        return jax.tree.map(lambda _: Assigned("Frozen", 0.0, 0.0), params)

    def frozen(self) -> Mask | None:
        return lambda params: jax.tree.map(lambda _: True, params)


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
class Groups(AbstractOptimizer):
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
        return self._build(schedule, None, None)

    @typed
    def build_decayed(
        self,
        schedule: LearningRate,
        weight_decay: Scalar,
        mask: Mask | None = None,
    ) -> optax.GradientTransformationExtraArgs:
        return self._build(schedule, weight_decay, mask)

    def assign(
        self,
        params: PyTree,
        weight_decay: Scalar | None = None,
        mask: Mask | None = None,
    ) -> PyTree:
        def assign(name: str, group: Group, part: PyTree) -> PyTree:
            decay = _decay(group, weight_decay)
            return jax.tree.map(
                lambda found: found._replace(
                    optimizer=f"{name}: {found.optimizer}",
                    schedule_scale=found.schedule_scale * group.schedule_scale,
                ),
                group.optimizer.assign(part, decay, mask),
                is_leaf=is_assigned,
            )

        return self._by_group(params, assign, is_leaf=is_assigned)

    def frozen(self) -> Mask | None:
        if all(x.optimizer.frozen() is None for x in self._members().values()):
            return None

        def frozen(name: str, group: Group, part: PyTree) -> PyTree:
            del name
            inner = group.optimizer.frozen()
            return jax.tree.map(lambda _: False, part) if inner is None else inner(part)

        return lambda params: self._by_group(params, frozen)

    def _members(self) -> dict[str, Group]:
        """The groups by name, and the rest as one."""
        members = {str(index): group for index, group in enumerate(self.groups)}
        if self.rest is not None:
            members["rest"] = Group(Where(), optimizer=self.rest)
        return members

    def _build(
        self,
        schedule: LearningRate,
        weight_decay: Scalar | None,
        mask: Mask | None,
    ) -> optax.GradientTransformationExtraArgs:
        def build(group: Group) -> optax.GradientTransformationExtraArgs:
            rate = scaled(schedule, group.schedule_scale)
            decay = _decay(group, weight_decay)
            if decay is None:
                return group.optimizer.build(rate)
            return group.optimizer.build_decayed(rate, decay, mask)

        members = self._members().items()
        built: dict[Any, Any] = {name: build(group) for name, group in members}
        return optax.partition(built, self._labels)

    def _labels(self, params: PyTree) -> PyTree:
        """For each parameter the name of its group."""
        members = self._members()
        unfound: list[str] = []

        def label(path: tuple[Any, ...], leaf: Any) -> str:
            text = path_text(path)
            for name, group in members.items():
                if group.where.finds(text, leaf):
                    return name
            unfound.append(text)
            return ""

        labels = jax.tree_util.tree_map_with_path(label, params)
        if unfound:
            raise ValueError(_unfound_text(unfound))
        if not has_holes(params):
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

    def _by_group(
        self,
        params: PyTree,
        function: Callable[[str, Group, PyTree], PyTree],
        is_leaf: Callable[[Any], bool] | None = None,
    ) -> PyTree:
        """What a function makes of the parts of the tree, put together again."""
        labels = self._labels(params)
        leaves, structure = jax.tree.flatten(labels)
        for name, group in self._members().items():
            part = jax.tree.map(
                lambda label, leaf, name=name: (
                    leaf if label == name else optax.MaskedNode()
                ),
                labels,
                params,
            )
            found = iter(jax.tree.leaves(function(name, group, part), is_leaf))
            leaves = [next(found) if leaf == name else leaf for leaf in leaves]
        return jax.tree.unflatten(structure, leaves)


def _decay(group: Group, weight_decay: Scalar | None) -> Scalar | None:
    return weight_decay if group.weight_decay is None else group.weight_decay


def _unfound_text(paths: list[str]) -> str:
    shown = ", ".join(f"`{path}`" for path in paths[:4])
    more = f" and {len(paths) - 4} more" if len(paths) > 4 else ""
    return (
        f"No group finds {shown}{more}, and `Groups.rest` is None. Say what makes "
        "their steps: `rest=...`; `Frozen()` makes none."
    )


@with_state_dtype.register
def _(optimizer: Frozen, dtype: np.dtype) -> AbstractOptimizer:
    del dtype
    return optimizer


@with_state_dtype.register
def _(optimizer: Groups, dtype: np.dtype) -> AbstractOptimizer:
    groups = tuple(
        dataclasses.replace(x, optimizer=with_state_dtype(x.optimizer, dtype))
        for x in optimizer.groups
    )
    rest = None if optimizer.rest is None else with_state_dtype(optimizer.rest, dtype)
    return Groups(groups, rest=rest)
