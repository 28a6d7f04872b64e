"""The abstract modules: what every optimizer and every schedule is."""

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import equinox as eqx
import jax
import numpy as np
import optax
from jax import Device
from jax.sharding import Mesh
from jaxtyping import PyTree

from ._config import AbstractConfig
from ._durations import resolved
from ._explain import assigned
from ._previews import check_fits, corners, describe, plot, values
from ._stages.local import stage_local, StageLocal
from ._stages.partition import StagePartition
from ._types import LearningRate, PositiveCount, Scalar, Scalars, typed
from ._where import Mask


S = TypeVar("S", bound="AbstractSchedule")


class AbstractSchedule(AbstractConfig):
    """A hyperparameter as a function of the number of updates completed.

    An instance is itself an `optax.Schedule`: pass it wherever Optax takes one.
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


class AbstractOptimizer(AbstractConfig):
    """An optimizer without its learning rate: hyperparameters, checked and frozen.

    Subclass it, declare the hyperparameters as fields and implement `build`.
    """

    @abc.abstractmethod
    def build(self, schedule: LearningRate) -> optax.GradientTransformationExtraArgs:
        """The Optax transformation with these hyperparameters.

        **Arguments:**

        - `schedule`: the learning rate: an `AbstractSchedule`, any other function of
            the number of updates completed, or a number.
        """

    @typed
    def build_decayed(
        self,
        schedule: LearningRate,
        weight_decay: Scalar,
        mask: Mask | None = None,
    ) -> optax.GradientTransformationExtraArgs:
        """The transformation with this weight decay in place of the optimizer's own.

        The decay is decoupled: `schedule(count) * weight_decay * params` is taken off
        beside the optimizer's own update: algorithm 2 of [Loshchilov and Hutter
        2019](https://arxiv.org/abs/1711.05101). An optimizer that has a weight decay
        among its own hyperparameters overrides this.

        **Arguments:**

        - `schedule`: as in `build`.
        - `weight_decay`: the factor, at least 0.
        - `mask`: from the parameters to a tree of bools: which of them decay. Left
            out, the optimizer's own mask if it has one, or else all.
        """
        rate = scaled(schedule, -weight_decay)
        return optax.chain(self.build(schedule), optax.add_decayed_weights(rate, mask))

    def assign(
        self,
        params: PyTree,
        weight_decay: Scalar | None = None,
        mask: Mask | None = None,
    ) -> PyTree:
        """What each parameter gets, as `Recipe.explain` shows it.

        **Arguments:**

        - `params`: the parameters, or their shapes.
        - `weight_decay`, `mask`: as in `build_decayed`. `None` is the optimizer's own.

        **Returns:** a tree of `Assigned`.
        """
        return assigned(self, params, weight_decay, mask)

    def frozen(self) -> Mask | None:
        """From the parameters to a tree of bools: which never change. None are none."""
        return None

    @typed
    def build_mpmd(
        self,
        schedule: LearningRate,
        params: PyTree,
        partition: StagePartition,
        *,
        meshes: Sequence[Mesh | Device] | None = None,
        donate: bool = False,
        extra_args: Mapping[str, Any] | None = None,
    ) -> StageLocal:
        """`build(schedule)`, cut into one program a stage. See `stage_local`."""
        return stage_local(
            self.build(schedule),
            params,
            partition,
            meshes=meshes,
            donate=donate,
            extra_args=extra_args,
        )


class AbstractDecayedOptimizer(AbstractOptimizer):
    """An optimizer with a decoupled weight decay among its own hyperparameters."""

    weight_decay: eqx.AbstractVar[Scalar]
    mask: eqx.AbstractVar[Mask | None]

    @typed
    def build_decayed(
        self,
        schedule: LearningRate,
        weight_decay: Scalar,
        mask: Mask | None = None,
    ) -> optax.GradientTransformationExtraArgs:
        decayed = dataclasses.replace(
            self, weight_decay=weight_decay, mask=mask or self.mask
        )
        return decayed.build(schedule)


def scaled(schedule: LearningRate, factor: Scalar) -> optax.Schedule | Scalar:
    if callable(schedule):
        return lambda count: factor * schedule(count)
    return factor * schedule
