"""The abstract modules: what every optimizer and every schedule is."""

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
from ._extra_args import check_staged, ExtraArg
from ._previews import check_fits, corners, describe, plot, values
from ._stages.local import stage_local
from ._stages.partition import StagePartition
from ._stages.staged import Staged
from ._stages.steps import Donate, TiedGrads
from ._types import (
    LearningRate,
    NonNegative,
    PositiveCount,
    Scalars,
    Schedule,
    typed,
)


S = TypeVar("S", bound="AbstractSchedule")


class AbstractSchedule(AbstractConfig):
    """A hyperparameter as a function of the number of updates completed.

    An instance is itself an `optax.Schedule`: pass it wherever Optax takes one.
    Subclass it, declare the hyperparameters as fields and implement `__call__`.

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

        - `count`: how many updates are completed: 0 at the first one. An int or an
            integer array; an array of counts gives the array of values.

        **Returns:** a scalar, or an array of the shape of `count`.
        """

    def phases(self) -> tuple[tuple[str, int | None], ...]:
        """The parts of the schedule in their order, by name, with their lengths.

        A length is in updates; that of the last may be `None`: without an end. After
        the last the value stays. A schedule whose author says nothing is one phase
        without an end.
        """
        return ((type(self).__name__, None),)

    @typed
    def resolve(self: S, total_steps: PositiveCount) -> S:
        """The same schedule with every length in updates, in a run of so many.

        **Arguments:**

        - `total_steps`: how many updates the run makes, at least 1.

        **Raises:** `ValueError` naming the phases if they take longer than the run.
        """
        schedule = resolved(self, total_steps)
        check_fits(schedule, total_steps)
        return schedule

    def corners(self) -> tuple[int, ...]:
        """Where the phases meet: numbers of updates completed, from 0 on."""
        return corners(self)

    @typed
    def values(self, counts: Sequence[int] | jax.typing.ArrayLike) -> np.ndarray:
        """The values after so many updates, to look at: compiled, as in a run.

        **Arguments:**

        - `counts`: numbers of updates completed, such as `range(1_000)`.

        **Returns:** a NumPy array of the shape of `counts`.
        """
        return values(self, counts)

    def describe(self) -> str:
        """A table of the corners: updates completed, the value, what begins there."""
        return describe(self)

    @typed
    def plot(self, target: Any, total_steps: PositiveCount | None = None) -> None:
        """Draws the value over the updates, with a dot at each corner.

        It needs Matplotlib, which comes with `functional_opt[plot]`.

        **Arguments:**

        - `target`: the path of an image to write, whose suffix says the format, or
            Matplotlib's `Axes` to draw into.
        - `total_steps`: how far. Left out, a little beyond the last phase; a schedule
            without an end needs it.
        """
        plot(self, target, total_steps)


# A weight decay per unit of learning rate: a number or a function of the count.
WeightDecay = AbstractSchedule | Schedule | NonNegative


class AbstractOptimizer(AbstractConfig):
    """An optimizer without its learning rate: hyperparameters, validated and immutable.

    Subclass it, declare the hyperparameters as fields and implement `build`. Nothing
    else is required, and no other methods but `extra_args` and `build_mpmd` may be
    overridden:

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
    - An optimizer that works in no `Recipe` and in no `Groups` says why in its class
        variable `ALONE`.

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

    ALONE: ClassVar[str | None] = None

    def extra_args(self) -> Mapping[str, ExtraArg]:
        """What `update` requires besides gradients, state and parameters, by name.

        Override it in an optimizer that requires something, such as the loss. Extra
        arguments of optimizers inside this one are known from these.
        """
        return {}

    @abc.abstractmethod
    def build(self, schedule: LearningRate) -> optax.GradientTransformationExtraArgs:
        """The Optax transformation with these hyperparameters.

        **Arguments:**

        - `schedule`: the learning rate: an `AbstractSchedule`, any other function of
            the number of updates completed, or a number.
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
        grads: PyTree | None = None,
        extra_args: Mapping[str, Any] | None = None,
        state_stage_of: Callable[[tuple[Any, ...], Any], Any] | None = None,
        travel_limit: int = 0,
        process_timeout: float | int = 300,
    ) -> Staged:
        """`build(schedule)`, split into one program per stage. See `stage_local`.

        Override it in an optimizer that brings stage-local programs of its own: it may
        return any `Staged`, such as one that exchanges less. Prove it with
        `fo.testing.assert_stage_local_equal(..., staged=...)`. A `Recipe` around the
        optimizer does not call this method: it splits what `build` returns, together
        with its clip, decay and accumulation.

        **Arguments:**

        - `schedule`: as in `build`.
        - `params`, `partition`, `meshes`, `donate`, `tied_grads`, `grads`,
            `extra_args`, `state_stage_of`, `travel_limit`, `process_timeout`: as in
            `stage_local`.
        """
        check_staged(all_in(self), extra_args)
        return stage_local(
            self.build(schedule),
            params,
            partition,
            meshes=meshes,
            donate=donate,
            tied_grads=tied_grads,
            grads=grads,
            extra_args=extra_args,
            state_stage_of=state_stage_of,
            travel_limit=travel_limit,
            process_timeout=process_timeout,
        )


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
