"""The abstract modules: what every optimizer and every schedule is."""

import abc
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import optax
from jax import Device
from jax.sharding import Mesh
from jaxtyping import PyTree

from ._config import AbstractConfig
from ._stages.local import stage_local, StageLocal
from ._stages.partition import StagePartition
from ._types import LearningRate, Scalar, Scalars, typed


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
        mask: Callable[[PyTree], PyTree] | None = None,
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
        rate = _scaled(schedule, -weight_decay)
        return optax.chain(self.build(schedule), optax.add_decayed_weights(rate, mask))

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
    mask: eqx.AbstractVar[Callable[[PyTree], PyTree] | None]

    @typed
    def build_decayed(
        self,
        schedule: LearningRate,
        weight_decay: Scalar,
        mask: Callable[[PyTree], PyTree] | None = None,
    ) -> optax.GradientTransformationExtraArgs:
        decayed = dataclasses.replace(
            self, weight_decay=weight_decay, mask=mask or self.mask
        )
        return decayed.build(schedule)


def _scaled(schedule: LearningRate, factor: Scalar) -> optax.Schedule | Scalar:
    if callable(schedule):
        return lambda count: factor * schedule(count)
    return factor * schedule
