"""Builds the executor of a function: its compiled programs and their exchanges."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jax.sharding import NamedSharding, Sharding

from ..derive.functions import SplitFunction
from ..derive.slices import StageSlice
from ..derive.ties import Ties
from .compiling import CompileCache, groups_of, options_for
from .exchange import Exchange
from .executor import Executor, Executors, Launch
from .layout import Layout, Layouts
from .state_sharding import StateAxes, UNSHARDED
from .sums import DeviceCopies, DeviceSums, TiedSum


@dataclass(frozen=True, eq=False)
class ExecutorBuilder:
    """Builds the executors of a function, one per layout.

    **Attributes:**

    - `function`: the function.
    - `stages`: the stages of this process.
    - `donated`: for each tuple of result names, the arguments with buffers to donate.
    - `cache`: the compiled programs.
    - `ties`: the tied gradients; None if no parameter is tied.
    - `are_summed`: whether tied gradients are passed as their sums.
    """

    function: SplitFunction
    stages: Iterable[int]
    donated: Mapping[tuple[str, ...], Sequence[str]]
    cache: CompileCache
    ties: Ties | None = None
    are_summed: bool = False

    def executors(
        self,
        meshes: Sequence[Sharding] | None,
        deletes: str | None = None,
        state_axes: StateAxes = UNSHARDED,
    ) -> Executors:
        """The executors of the function, which are built as layouts occur."""
        layouts = Layouts(self.function, meshes, state_axes)
        return Executors(self.function, self.build, layouts, self.donated, deletes)

    def build(self, layout: Layout) -> Executor:
        finish = self.function.finish[layout.names]
        donated = () if layout.is_traced else self.donated[layout.names]
        rounds = []
        for number, round in enumerate(self.function.rounds):
            exchange = Exchange.of(self.function, number, finish, layout.stages)
            shardings = message_shardings(layout.stages, exchange)
            rounds.append((self._launches(layout, round.slices, shardings), exchange))
        launches = self._launches(layout, finish, layout.results, donated)
        return Executor(layout, self._sums(layout), rounds, launches)

    def _sums(self, layout: Layout) -> list[TiedSum]:
        ties = self.ties
        if ties is None:
            return []
        each = ties.by_owners().items()
        if self.are_summed:
            return [DeviceCopies(ties, *group) for group in each]
        return [DeviceSums(ties, *group, layout.stages) for group in each]

    def _launches(
        self,
        layout: Layout,
        slices: Sequence[StageSlice | None],
        shardings: Sequence[Any],
        donated: Iterable[str] = (),
    ) -> list[Launch]:
        """One program per group of stages that compute any of the slices.

        **Arguments:**

        - `shardings`: for each stage the shardings of its results; None if XLA decides.
        """
        launches, options = [], options_for(layout.stages)
        for group in groups_of(sorted(self.stages), layout.stages, self.function.held):
            own = [s for stage in group if (s := slices[stage]) is not None]
            if own:
                wanted = tuple(shardings[s.stage] for s in own)
                program = self.cache.jit(
                    own,
                    packed=not layout.is_traced,
                    out_shardings=wanted if any(wanted) else None,
                    options=options,
                )
                lent = [self.function.positions(s.stage, *donated) for s in own]
                launches.append(Launch(own, lent, program))
        return launches


def message_shardings(
    stages: Sequence[Sharding | None], exchange: Exchange
) -> list[Sharding | None]:
    """How each stage's message is sharded; None where that follows from the operands.

    It does not where the message must be on its stage's device for the exchange: with
    gradients that are all None, its program may have no operand that is on any device.
    Where nothing travels, messages stay uncommitted, as what they are computed from.
    """
    return [
        s if exchange.is_needed or isinstance(s, NamedSharding) else None
        for s in stages
    ]
