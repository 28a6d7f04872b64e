"""The abstract base classes of optimizers and schedules."""

import abc
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, TypeVar

import jax
import numpy as np
import optax
from jax import Device
from jax.sharding import Mesh
from jaxtyping import PyTree

from ._config import AbstractConfig
from ._durations import resolved
from ._extra_args import check_staged, ExtraArg, required
from ._previews import check_fits, corners, describe, plot, values
from ._stages.hyperparameters import Hyperparameters
from ._stages.options import Donate, MeshAxes, StageOptions, TiedGrads
from ._stages.partition import StagePartition
from ._stages.splitting import split
from ._stages.staged import Staged
from ._types import (
    LearningRate,
    NonNegative,
    PositiveCount,
    Scalars,
    Schedule,
    typed,
)
from ._undone import check_undone, UNDECLARED


S = TypeVar("S", bound="AbstractSchedule")


class AbstractSchedule(AbstractConfig):
    """A hyperparameter as a function of the number of completed updates.

    An instance is an `optax.Schedule`, and can be passed wherever Optax accepts one. To
    write a schedule, subclass this, declare fields and implement `__call__`.

    !!! Example

        >>> import functional_opt as fo
        >>> class Halving(fo.AbstractSchedule):
        ...     init_value: float = 0.1
        ...     every: int = 100
        ...
        ...     def __call__(self, count):
        ...         return self.init_value * 0.5 ** (count // self.every)
        >>> Halving(every=10)(20)
        0.025
    """

    @abc.abstractmethod
    def __call__(self, count: jax.typing.ArrayLike) -> Scalars:
        """The value after `count` updates.

        **Arguments:**

        - `count`: the number of completed updates, 0 at the first update; an int or an
            array of ints.

        **Returns:** a scalar, or an array of the shape of `count`.
        """

    def phases(self) -> tuple[tuple[str, int | None], ...]:
        """The names and durations of the phases of the schedule, in order.

        Durations are in updates. The last one may be None, for a phase without an end.
        After the last phase the value is constant. By default, a schedule is one phase
        without an end.
        """
        return ((type(self).__name__, None),)

    @typed
    def resolve(self: S, total_steps: PositiveCount) -> S:
        """The same schedule with every duration in updates.

        **Arguments:**

        - `total_steps`: the number of updates of the run, at least 1.

        **Raises:** `ValueError` with the phases if they exceed the run.
        """
        schedule = resolved(self, total_steps)
        check_fits(schedule, total_steps)
        return schedule

    def corners(self) -> tuple[int, ...]:
        """The numbers of completed updates at which phases begin or end."""
        return corners(self)

    @typed
    def values(self, counts: Sequence[int] | jax.typing.ArrayLike) -> np.ndarray:
        """The values after these numbers of updates, computed under `jit`.

        **Arguments:**

        - `counts`: numbers of completed updates, such as `range(1_000)`.

        **Returns:** a NumPy array of the shape of `counts`.
        """
        return values(self, counts)

    def describe(self) -> str:
        """A table of the corners: completed updates, value, phase that begins."""
        return describe(self)

    @typed
    def plot(self, target: Any, total_steps: PositiveCount | None = None) -> None:
        """Draws the value over the updates, with a dot at each corner.

        This requires Matplotlib, which `functional_opt[plot]` installs.

        **Arguments:**

        - `target`: the path of an image file, in the format of its suffix, or `Axes` of
            Matplotlib.
        - `total_steps`: the number of updates to draw. If omitted, a little more than
            all phases; required for a schedule without an end.
        """
        plot(self, target, total_steps)


# A weight decay per unit of learning rate: a number or a function of the count.
WeightDecay = AbstractSchedule | Schedule | NonNegative


class AbstractOptimizer(AbstractConfig):
    """An optimizer without its learning rate: hyperparameters, validated and immutable.

    Subclass it, declare the hyperparameters as fields and implement `build`. Nothing
    else is required, and no other method but `build_mpmd` may be overridden:

    - A field named `weight_decay`, with `mask` or `weight_decay_mask` for the
        parameters that decay, is the optimizer's own decoupled weight decay per unit of
        learning rate, as in Optax. `Recipe.weight_decay` replaces it. For an optimizer
        without such a field, it is added to the updates.
    - A field that holds another optimizer makes a wrapper of it: weight decay,
        `Frozen`, `Recipe.state_dtype`, `Group.schedule_scale` and `Recipe.explain` act
        on the optimizer inside.
    - An optimizer that holds several is an `AbstractPartitionedOptimizer`, which
        declares the parameters that each of them updates. Otherwise a weight decay,
        `Frozen` and `Recipe.explain` raise an error.
    - `Recipe.state_dtype` sets the fields `mu_dtype`, `accumulator_dtype` and
        `dtype_momentum`.
    - The class variable `EXTRA_ARGS` declares what an update requires besides
        gradients, state and parameters, such as the loss: an [`ExtraArg`][] for each
        name.
    - The class variable `DETERMINES` names what an optimizer makes true of the new
        parameters, such as "their norms". It cannot be inside a wrapper that changes
        its updates: `clip_update`, or a wrapper with the class variable `UNDOES`, which
        names that change, such as "its average". A wrapper that does not change what
        the optimizer inside determines sets `UNDOES` to None.
    - The class variable `REFUSED_BY` says why an optimizer does not work in a "Recipe",
        in "Groups", in a "Cautious", "Hyperball" or "QKClip", or with "build_mpmd".

    !!! Example

        >>> import functional_opt as fo, optax
        >>> class SignSGD(fo.AbstractOptimizer):
        ...     scale: float = 1.0
        ...
        ...     def build(self, schedule):
        ...         signs = optax.chain(optax.scale_by_sign(), optax.scale(self.scale))
        ...         return optax.chain(signs, optax.scale_by_learning_rate(schedule))
        >>> SignSGD(scale=2.0)
        SignSGD(scale=2.0)
    """

    REMEDY: ClassVar[str] = (
        "Pass a module such as `AdamW(...)`. `from_optax(factory)` makes a class of "
        "any function that returns an Optax transformation."
    )
    ELSEWHERE: ClassVar[Mapping[str, str]] = MappingProxyType(
        dict.fromkeys(
            ("learning_rate", "lr", "schedule"),
            "Pass the learning rate to `build`, or to `Recipe` as its `schedule`.",
        )
    )

    EXTRA_ARGS: ClassVar[Mapping[str, ExtraArg]] = MappingProxyType({})
    REFUSED_BY: ClassVar[Mapping[str, str]] = MappingProxyType({})
    DETERMINES: ClassVar[str | None] = None
    UNDOES: ClassVar[str | None] = UNDECLARED

    def __check_init__(self) -> None:
        if self.UNDOES is not None:
            check_undone(self, [x for inner in held_by(self) for x in all_in(inner)])

    def extra_args(self) -> dict[str, ExtraArg]:
        """The extra arguments of `update`, by name.

        They include what the optimizers inside this one require.
        """
        return {name: extra for _, name, extra in required(all_in(self))}

    @abc.abstractmethod
    def build(self, schedule: LearningRate) -> optax.GradientTransformationExtraArgs:
        """The Optax transformation with these hyperparameters.

        **Arguments:**

        - `schedule`: the learning rate: an `AbstractSchedule`, any other function of
            the number of completed updates, or a number.
        """

    @typed
    def build_mpmd(
        self,
        schedule: LearningRate,
        params: PyTree,
        partition: StagePartition,
        *,
        meshes: Sequence[Mesh | Device] | None = None,
        donate: Donate = False,
        tied_grads: TiedGrads = "partial",
        shard_state: MeshAxes | None = None,
        grads: PyTree | None = None,
        extra_args: Mapping[str, Any] | None = None,
        state_stage_of: Callable[[tuple[Any, ...], Any], Any] | None = None,
        travel_limit: int = 0,
        process_timeout: float | int = 300,
    ) -> Staged:
        """`build(schedule)`, split into one program per stage. See `stage_local`.

        Override it in an optimizer with its own stage-local programs: it may return any
        `Staged`, such as one that exchanges less. Test it with
        `fo.testing.assert_stage_local_equal(..., staged=...)`. A `Recipe` around the
        optimizer does not call this method: it splits the result of `build` together
        with its clip, decay and accumulation.

        **Arguments:**

        - `schedule`: as in `build`.
        - `params`, `partition`, `meshes`, `donate`, `tied_grads`, `shard_state`,
            `grads`, `extra_args`, `state_stage_of`, `travel_limit`, `process_timeout`:
            as in `stage_local`.
        """
        check_staged(all_in(self), extra_args)
        options = StageOptions(
            meshes=meshes,
            donate=donate,
            tied_grads=tied_grads,
            shard_state=shard_state,
            grads=grads,
            extra_args=extra_args,
            state_stage_of=state_stage_of,
            travel_limit=travel_limit,
            process_timeout=process_timeout,
        )
        hyperparameters = Hyperparameters(
            lambda optimizer, schedule: optimizer.build(schedule), (self, schedule)
        )
        return split(hyperparameters, params, partition, options)


@functools.singledispatch
def held_by(optimizer: AbstractOptimizer) -> Iterator[AbstractOptimizer]:
    """The optimizers directly inside one, in its parts or in its fields."""
    fields = [getattr(optimizer, x.name) for x in dataclasses.fields(optimizer)]
    yield from filter(is_optimizer, jax.tree.leaves(fields, is_leaf=is_optimizer))


def all_in(optimizer: AbstractOptimizer) -> Iterator[AbstractOptimizer]:
    """An optimizer, and all that it holds at any depth."""
    yield optimizer
    for inner in held_by(optimizer):
        yield from all_in(inner)


def is_optimizer(node: Any) -> bool:
    return isinstance(node, AbstractOptimizer)
