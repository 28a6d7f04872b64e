"""Runs the slices of all stages, each on its devices, and their exchanges."""

from collections.abc import Collection, Sequence
from typing import Any

import jax

from ..derive.slices import Inbox, StageSlice
from .compiling import compile_together, ToCompile
from .exchange import Exchange
from .layout import Layout, LeavesByStage
from .sums import TiedSum


class Launch:
    """One program for one stage, or for several that share their devices.

    **Arguments:**

    - `slices`: the slices that it computes.
    - `donated`: for each slice the positions of the leaves with donated buffers.
    - `program`: the program, as returned by `CompileCache.jit`.
    """

    def __init__(
        self,
        slices: Sequence[StageSlice],
        donated: Sequence[range],
        program: jax.stages.Wrapped,
    ) -> None:
        self.slices, self.donated, self.program = slices, donated, program

    def __call__(
        self,
        leaves: LeavesByStage,
        inboxes: Sequence[Sequence[Inbox]],
        results: list[Any],
    ) -> None:
        """Runs the program, and stores the results of each stage in `results`."""
        computed = self.program(*self.operands(leaves, inboxes))
        for stage_slice, result in zip(self.slices, computed, strict=True):
            results[stage_slice.stage] = result

    def operands(
        self, leaves: LeavesByStage, inboxes: Sequence[Sequence[Inbox]]
    ) -> tuple[list[Any], list[Any], list[Any], list[Any]]:
        before, donated, after, received = [], [], [], []
        for s, lent in zip(self.slices, self.donated, strict=True):
            given = leaves[s.stage] or ()
            if s.reads is not None:
                given = [given[position] for position in s.reads]
            before.append(given[: lent.start])
            donated.append(given[lent.start : lent.stop])
            after.append(given[lent.stop :])
            received.append([inboxes[s.stage][round] for round in s.rounds])
        return before, donated, after, received


class Executor:
    """The programs of a function for one layout of its stages.

    **Attributes:**

    - `layout`: the devices of the stages, and the results to compute.
    - `sums`: the sums of tied gradients, which come before the first round.
    - `rounds`: for each round the programs that compute its messages, and the exchange.
    - `finish`: the programs that compute the results.
    - `is_compiled`: whether `compile` was called, or does not apply.
    """

    def __init__(
        self,
        layout: Layout,
        sums: Sequence[TiedSum],
        rounds: Sequence[tuple[Sequence[Launch], Exchange]],
        finish: Sequence[Launch],
    ) -> None:
        self.layout, self.sums, self.rounds, self.finish = layout, sums, rounds, finish
        self.is_compiled = layout.is_traced

    def run(
        self, leaves: LeavesByStage, results: list[Any], idle: Collection[int] = ()
    ) -> None:
        """Stores the results of each stage of this process in `results`.

        If a program raises an error, `results` shows which stages ran before.

        **Arguments:**

        - `idle`: the rounds whose messages are not used.
        """
        for add in self.sums:
            leaves = add(leaves)
        if not self.is_compiled:
            self.compile(leaves)
        inboxes: list[list[Inbox]] = [[] for _ in leaves]
        for number, (launches, exchange) in enumerate(self.rounds):
            if number in idle and exchange.is_needed:
                received = exchange.nothing
            else:
                sent: list[Any] = [None] * len(leaves)
                for launch in launches:
                    launch(leaves, inboxes, sent)
                received = exchange(sent)
            for inbox, vectors in zip(inboxes, received, strict=True):
                inbox.append(vectors)
        for launch in self.finish:
            launch(leaves, inboxes, results)

    def compile(self, leaves: LeavesByStage) -> None:
        """Compiles all programs together, before the first of them is called.

        **Arguments:**

        - `leaves`: leaves of the shapes, dtypes and shardings of those to run with,
            after the sums. A program that is called with others is compiled again.
        """
        programs: list[ToCompile] = []
        inboxes: list[list[Inbox]] = [[] for _ in leaves]
        for launches, exchange in self.rounds:
            messages = self._programs(launches, leaves, inboxes)
            programs += [*exchange.programs, *messages]
            received = exchange.expected([operands for _, operands, _ in messages])
            for inbox, vectors in zip(inboxes, received, strict=True):
                inbox.append(vectors)
        compile_together([*self._programs(self.finish, leaves, inboxes), *programs])
        self.is_compiled = True

    def _programs(
        self,
        launches: Sequence[Launch],
        leaves: LeavesByStage,
        inboxes: Sequence[Sequence[Inbox]],
    ) -> list[ToCompile]:
        return [
            (launch.program, launch.operands(leaves, inboxes), where)
            for launch in launches
            if (where := self.layout.stages[launch.slices[0].stage]) is not None
        ]
