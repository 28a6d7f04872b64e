"""Follows the counters in optimizer states on the host, to skip idle rounds."""

import functools
import weakref
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import jax

from ..._slicing.idle import Counts
from ..derive.functions import SplitFunction
from ..derive.slices import Leaves
from .devices import is_concrete
from .executor import Executors
from .layout import LeavesByStage


Positions = dict[int, list[int]]


class Counters:
    """The values of counters in the states that steps return, computed on the host.

    An array never changes its value, so a value computed for the counter of a returned
    state is valid for as long as that array exists. Counters of other states are copied
    to the host, which waits for them. All processes have the same values, and so skip
    the same rounds.

    **Arguments:**

    - `step`: the function of a step.
    - `stages`: the stages of this process.
    """

    def __init__(self, step: SplitFunction, stages: Iterable[int]) -> None:
        self._step, self._stages, self._idle = step, sorted(stages), step.idle
        self._known: dict[int, tuple[weakref.ref[Any], int | bool]] = {}

    @functools.cached_property
    def of_state(self) -> list[int]:
        """The indices of the counters among the leaves of the state."""
        first = len(self._step.arguments["params"].paths)
        return [i - first for i in self._idle.counters] if self._idle else []

    def runner(
        self, executors: Executors
    ) -> Callable[[tuple[str, ...], LeavesByStage], list[Any]]:
        """A function that runs steps, without their idle rounds."""
        return (
            functools.partial(self.run, executors) if self.of_state else executors.run
        )

    def run(
        self, executors: Executors, names: tuple[str, ...], leaves: LeavesByStage
    ) -> list[Any]:
        """Runs a step, without its idle rounds."""
        idle, counts = self.before_step(leaves)
        results = executors.run(names, leaves, idle)
        for stage in self._stages:
            self.after_step(stage, results[stage], counts)
        return results

    def before_step(
        self, leaves: LeavesByStage
    ) -> tuple[Collection[int], Counts | None]:
        """The idle rounds of a step, and the counters after it; None if not known.

        **Arguments:**

        - `leaves`: the leaves of each stage, at least its parameters and its state.
        """
        given, _ = self._positions
        own = [(leaves[s] or (), given[s]) for s in self._stages]
        return self.before([leaves[k] for k in where] for leaves, where in own)

    def after_step(self, stage: int, results: Leaves, counts: Counts | None) -> None:
        """Records the counters among the results of a stage."""
        _, returned = self._positions
        self.remember([[results[k] for k in returned[stage]]], counts)

    @functools.cached_property
    def _positions(self) -> tuple[Positions, Positions]:
        """The positions of each stage's counters among its leaves and its results.

        The results are the parameters, or their updates, and then the state.
        """
        step, given, returned = self._step, {}, {}
        for stage in self._stages:
            held = step.results["state"].held[stage]
            first = step.positions(stage, "state").start
            after = len(step.results["params"].held[stage])
            given[stage] = [first + held.index(i) for i in self.of_state]
            returned[stage] = [after + held.index(i) for i in self.of_state]
        return given, returned

    def of(self, state: Leaves) -> Leaves:
        """The counters among all leaves of a state."""
        return [state[i] for i in self.of_state]

    def before(
        self, copies: Iterable[Sequence[Any]]
    ) -> tuple[Collection[int], Counts | None]:
        """The idle rounds of a step, and the counters after it; None if not known.

        **Arguments:**

        - `copies`: the counters of each stage before the step.
        """
        if self._idle is None:
            return (), None
        found = {tuple(map(self._value, copy)) for copy in copies}
        counts = tuple(count for count in found.pop() if count is not None)
        if found or len(counts) < len(self.of_state):
            return (), None
        return self._idle.after(counts)

    def remember(self, copies: Iterable[Sequence[Any]], counts: Counts | None) -> None:
        """Records the values of counters that a step returned, while they exist."""
        if counts is None:
            return
        for copy in copies:
            for array, count in zip(copy, counts, strict=True):
                forget = functools.partial(_forget, self._known, id(array))
                self._known[id(array)] = weakref.ref(array, forget), count

    def _value(self, array: Any) -> int | bool | None:
        """The value of a counter; None if it is traced, deleted or not a scalar."""
        ref, count = self._known.get(id(array), (None, None))
        if ref is not None and ref() is array:
            return count
        if not is_concrete(array) or array.shape or array.is_deleted():
            return None
        with jax.transfer_guard("allow"):
            return jax.device_get(array.addressable_shards[0].data).item()


def _forget(known: dict[int, Any], key: int, _: weakref.ref[Any]) -> None:
    known.pop(key, None)
