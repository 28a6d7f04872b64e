"""Runs the programs of stages that become ready one after another."""

import functools
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, NamedTuple

from ..derive.slices import Leaves
from .exchange import Exchange
from .executor import Executor, Launch


class Task(NamedTuple):
    """Something to launch, and the stages of this process that must start before."""

    needs: frozenset[int]
    launch: Callable[[], None]


class Progress:
    """A run of an executor, in any order in which the stages start.

    `Executor.run` has the leaves of all stages. Here every sum, message and exchange is
    launched once the stages that it depends on have started, and the results of a stage
    when they are asked for. All programs are those of `Executor.run`. A global norm
    over two stages:

        task                   needs
        message of stage 0     0
        message of stage 1     1
        exchange               0, 1
        results of stage 0     0, 1
        results of stage 1     0, 1

    An exchange needs all stages of this process that take part in it, and all earlier
    exchanges: all processes then launch their exchanges in the same order.

    **Arguments:**

    - `executor`: the executor.
    - `here`: the stages of this process.
    - `idle`: the rounds whose messages are not used.

    **Attributes:**

    - `given`: the leaves of the stages that have started.
    - `results`: the results of the stages that have finished, or share a program with
        one that has.
    """

    def __init__(
        self, executor: Executor, here: frozenset[int], idle: Collection[int]
    ) -> None:
        stages, rounds = len(executor.layout.stages), len(executor.rounds)
        self.given: list[Leaves | None] = [None] * stages
        self.results: list[Any] = [None] * stages
        self._executor, self._here, self._idle = executor, here, idle
        self._leaves: list[Leaves | None] = [None] * stages
        self._sent: list[list[Any]] = [[None] * stages for _ in range(rounds)]
        self._inboxes: list[list[Any]] = [[None] * rounds for _ in range(stages)]
        # The stages that must start before the gradients of a stage are complete, and
        # before the messages of a round are received.
        self._complete = {stage: frozenset({stage}) for stage in here}
        self._received: list[frozenset[int]] = []
        self._tasks: list[Task] = []
        self._plan_sums()
        for number, (launches, exchange) in enumerate(executor.rounds):
            self._plan_round(number, launches, exchange)
        self._finish = self._plan_results()

    @property
    def started(self) -> frozenset[int]:
        given = self.given
        return frozenset(s for s, leaves in enumerate(given) if leaves is not None)

    def waits_for(self, stage: int) -> frozenset[int]:
        """The stages that have to start before `finish` of a stage."""
        return self._finish[stage].needs - self.started

    def start(self, stage: int, leaves: Leaves) -> None:
        """Launches everything that only this stage was missing for."""
        self.given[stage] = self._leaves[stage] = leaves
        started, tasks, self._tasks = self.started, self._tasks, []
        for task in tasks:
            if task.needs <= started:
                task.launch()
            else:
                self._tasks.append(task)

    def finish(self, stage: int) -> Any:
        """The results of a stage."""
        if self.results[stage] is None:
            self._finish[stage].launch()
        return self.results[stage]

    def _plan_sums(self) -> None:
        for add in self._executor.sums:
            owners = self._here.intersection(add.owners)
            self._complete |= {s: self._complete[s] | owners for s in owners}
            self._tasks.append(Task(owners, functools.partial(self._add, add)))

    def _plan_round(
        self, number: int, launches: Sequence[Launch], exchange: Exchange
    ) -> None:
        if number in self._idle and exchange.is_needed:
            self._receive(number, exchange.nothing)
            self._received.append(frozenset())
            return
        for launch in launches:
            send = functools.partial(self._send, number, launch)
            self._tasks.append(Task(self._needs_of(launch), send))
        senders = map(self._needs_of, launches)
        taking_part = {s for s in self._here if exchange.shardings[s] is not None}
        needs = _union([taking_part, *senders, *self._received])
        trade = functools.partial(self._trade, number, exchange)
        self._tasks.append(Task(needs, trade))
        self._received.append(needs)

    def _plan_results(self) -> dict[int, Task]:
        tasks = {
            stage: Task(needs, functools.partial(self._return_nothing, stage))
            for stage, needs in self._complete.items()
        }
        for launch in self._executor.finish:
            task = Task(self._needs_of(launch), functools.partial(self._return, launch))
            tasks |= {s.stage: task for s in launch.slices}
        return tasks

    def _needs_of(self, launch: Launch) -> frozenset[int]:
        own = [self._complete[s.stage] for s in launch.slices]
        read = [self._received[r] for s in launch.slices for r in s.rounds]
        return _union([*own, *read])

    def _add(self, add: Callable[[Any], list[Leaves | None]]) -> None:
        self._leaves = add(self._leaves)

    def _send(self, number: int, launch: Launch) -> None:
        launch(self._leaves, self._inboxes, self._sent[number])

    def _trade(self, number: int, exchange: Exchange) -> None:
        self._receive(number, exchange(self._sent[number]))

    def _receive(self, number: int, received: Sequence[Any]) -> None:
        for inbox, vectors in zip(self._inboxes, received, strict=True):
            inbox[number] = vectors

    def _return(self, launch: Launch) -> None:
        launch(self._leaves, self._inboxes, self.results)

    def _return_nothing(self, stage: int) -> None:
        self.results[stage] = ()


def _union(sets: Iterable[Collection[int]]) -> frozenset[int]:
    return frozenset().union(*sets)
