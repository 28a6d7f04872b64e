"""The update of one stage as pure functions."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from jaxtyping import Array, PyTree, UInt32

from .derive.functions import Gathered, Leaves
from .partition import StagePartition
from .run.runners import StageRunner
from .run.tied import TiedGradients
from .trees import Cut


@dataclass(frozen=True, eq=False)
class StageProgram:
    """The update of one stage as pure functions. For authors of pipeline runtimes.

    `grads`, `state` and `params` are the stage's pieces of these trees. `gathered` has
    for each round so far the vectors that the stages sent in it, by stage: on each of
    them what `message` returned there. These are of one length: a matrix with a row for
    each stage, as `jax.lax.all_gather` makes it, will do.

    !!! Example

        >>> import functional_opt as fo, jax.numpy as jnp, optax
        >>> params = {"embed": jnp.ones((8, 2)), "head": jnp.ones((2, 8))}
        >>> partition = fo.partition(params, {"embed": 0, "head": 1})
        >>> tx = optax.clip_by_global_norm(1.0)
        >>> staged = fo.stage_local(tx, params, partition)
        >>> pieces = partition.split(params)
        >>> stages = [*zip(staged.programs, pieces, staged.init(pieces), pieces)]
        >>> gathered = [[program.message(0, *trees) for program, *trees in stages]]
        >>> updated = [program.update(*trees, gathered) for program, *trees in stages]
        >>> float(optax.tree.norm([update for update, _ in updated]).round(3))
        1.0
    """

    partition: StagePartition
    state: Cut
    extra_args: Cut
    tied: TiedGradients | None
    runner: StageRunner

    @property
    def stage(self) -> int:
        """The number of the stage, from 0."""
        return self.runner.stage

    @property
    def rounds(self) -> int:
        """How many rounds of exchange come before `step` or `update`."""
        return self._rounds_of_sums + self.runner.function.num_rounds

    @property
    def _rounds_of_sums(self) -> int:
        return 0 if self.tied is None else self.tied.runners.function.num_rounds

    def message(
        self,
        round: int,
        grads: PyTree,
        state: PyTree,
        params: PyTree,
        gathered: Gathered = (),
        **extra_args: Any,
    ) -> UInt32[Array, " words"]:
        """What the stage tells the others in a round, packed. It may be empty."""
        arguments, _ = self.take(grads, state, params, extra_args)
        if self.tied is not None and round < self._rounds_of_sums:
            summands = self.tied.summands(self.stage, arguments)
            return self.tied.runners.stages[self.stage].tell(round, summands, gathered)
        arguments, gathered = self._sum_tied(arguments, gathered)
        return self.runner.tell(round - self._rounds_of_sums, arguments, gathered)

    def step(
        self,
        grads: PyTree,
        state: PyTree,
        params: PyTree,
        gathered: Gathered = (),
        **extra_args: Any,
    ) -> tuple[PyTree, PyTree]:
        """The stage's new parameters and new state, after all rounds."""
        arguments, put = self.take(grads, state, params, extra_args)
        new, new_state = self._finish(("params", "state"), arguments, gathered)
        return put(new), self.state.unflatten(self.stage, new_state)

    def update(
        self,
        grads: PyTree,
        state: PyTree,
        params: PyTree,
        gathered: Gathered = (),
        **extra_args: Any,
    ) -> tuple[PyTree, PyTree]:
        """The stage's updates and new state, after all rounds, as Optax has them."""
        arguments, _ = self.take(grads, state, params, extra_args)
        updates, new_state = self._finish(("updates", "state"), arguments, gathered)
        updates = self.partition.params.unflatten(self.stage, updates)
        return updates, self.state.unflatten(self.stage, new_state)

    def _finish(
        self,
        names: tuple[str, ...],
        arguments: dict[str, Leaves],
        gathered: Gathered,
    ) -> tuple[Leaves, ...]:
        arguments, gathered = self._sum_tied(arguments, gathered)
        return self.runner.compute(names, arguments, gathered)

    def _sum_tied(
        self, arguments: dict[str, Leaves], gathered: Gathered
    ) -> tuple[dict[str, Leaves], Gathered]:
        """Takes the first rounds for the sums of tied gradients."""
        if self.tied is None:
            return arguments, gathered
        summands = self.tied.summands(self.stage, arguments)
        runner = self.tied.runners.stages[self.stage]
        (sums,) = runner.compute(("grads",), summands, gathered)
        summed = self.tied.replace(self.stage, arguments, sums)
        return summed, gathered[self._rounds_of_sums :]

    def take(
        self,
        grads: PyTree,
        state: PyTree,
        params: PyTree,
        extra_args: Mapping[str, PyTree],
    ) -> tuple[dict[str, Leaves], Callable[[Leaves], PyTree]]:
        """The pieces' leaves, by name, and how to make a piece of new parameters."""
        parameters, put = self.partition.take("params", self.stage, params)
        arguments: dict[str, Leaves] = {
            "params": parameters,
            "state": self.state.flatten("states", self.stage, state),
            "grads": self.partition.take("grads", self.stage, grads)[0],
            "extra_args": self.extra_args.flatten("extra_args", self.stage, extra_args),
        }
        return arguments, put
