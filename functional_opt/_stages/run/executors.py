"""The executors of a function, one per layout of its stages."""

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import NamedSharding, Sharding

from ..derive.derive import INIT
from ..derive.functions import SplitFunction
from ..derive.slices import Leaves, StageSlice
from .devices import check_on_meshes, check_one_program, is_concrete, on_mesh
from .diagnosis import diagnose
from .executor import Executor
from .layout import Layout, LeavesByStage, StageShardings
from .state_sharding import StateAxes, UNSHARDED


class Executors:
    """The executors of a function, one per layout that has occurred.

    **Arguments:**

    - `function`: the function.
    - `build`: builds the executor of a layout.
    - `donated`: for each tuple of result names, the arguments with donated buffers.
    - `meshes`: the shardings of the stages, if `meshes` of `stage_local` are set.
    - `deletes`: the name of an argument to delete after a step, because no result can
        reuse its buffers; None if there is none.
    - `state_axes`: the mesh axes over which results are sharded that are a new state.
    """

    def __init__(
        self,
        function: SplitFunction,
        build: Callable[[Layout], Executor],
        *,
        donated: Mapping[tuple[str, ...], Sequence[str]],
        meshes: Sequence[Sharding] | None,
        deletes: str | None = None,
        state_axes: StateAxes = UNSHARDED,
    ) -> None:
        self._state_axes = state_axes
        self._function, self._build, self._donated = function, build, donated
        self._meshes, self._deletes = meshes, deletes
        self._built: dict[Layout, Executor] = {}
        self._found: dict[tuple[tuple[str, ...], StageShardings], Executor] = {}

    def run(
        self,
        names: tuple[str, ...],
        leaves: LeavesByStage,
        idle: Collection[int] = (),
    ) -> list[Any]:
        """The named results of each stage; None for stages of other processes.

        **Arguments:**

        - `idle`: the rounds whose messages are not used.
        """
        results: list[Any] = [None] * len(leaves)
        try:
            executor = self.executor(names, leaves)
            executor.run(leaves, results, idle)
        except (TypeError, ValueError, RuntimeError) as error:
            self.explain(error, names, leaves, results)
            raise
        if self._deletes is not None and not executor.layout.is_traced:
            self.delete(leaves)
        return results

    def executor(self, names: tuple[str, ...], leaves: LeavesByStage) -> Executor:
        """The executor for the devices of these leaves."""
        if is_traced(leaves):
            return self._built_for(self._traced_layout(names, leaves))
        found = shardings_of(leaves)
        executor = self._found.get((names, found))
        if executor is None:
            executor = self._built_for(self._layout(names, found, leaves))
            if not any(executor.layout.results):
                # Only the shardings of results depend on more than the first leaves.
                self._found[names, found] = executor
        return executor

    def _built_for(self, layout: Layout) -> Executor:
        if layout not in self._built:
            self._built[layout] = self._build(layout)
        return self._built[layout]

    def explain(
        self,
        error: Exception,
        names: tuple[str, ...],
        leaves: LeavesByStage,
        results: Sequence[Any],
    ) -> None:
        """Raises an error that names the cause of another one, if it is found."""
        donated = self._donated[names]
        diagnose(error, self._function, leaves, results, donated, self._deletes)

    def delete(self, leaves: LeavesByStage) -> None:
        """Frees the buffers in `deletes` once the programs that read them finish."""
        for stage, own in enumerate(leaves):
            if own is None or self._deletes is None:
                continue
            for position in self._function.positions(stage, self._deletes):
                if is_concrete(leaf := own[position]) and not leaf.is_deleted():
                    leaf.delete()

    def _traced_layout(self, names: tuple[str, ...], leaves: LeavesByStage) -> Layout:
        # With meshes, `init` may still be traced by `jax.eval_shape` for the shapes of
        # the state.
        check_one_program(leaves, None if names == INIT else self._meshes)
        nowhere = (None,) * len(leaves)
        return Layout(names, nowhere, nowhere, True)

    def _layout(
        self, names: tuple[str, ...], found: StageShardings, leaves: LeavesByStage
    ) -> Layout:
        stages = self._on_meshes(found)
        finish = self._function.finish[names]
        each = zip(range(len(leaves)), finish, stages, leaves, strict=True)
        results = tuple(self._results(*stage) for stage in each)
        return Layout(names, stages, results, False)

    def shardings(
        self, names: tuple[str, ...], leaves: LeavesByStage
    ) -> dict[int, tuple[Sharding, ...]] | None:
        """The shardings of the named results of each stage; None if they are traced."""
        if is_traced(leaves):
            return None
        stages = self._on_meshes(shardings_of(leaves))
        default = jnp.zeros(()).sharding
        return {
            number: self._state_axes.of_results(number, finish, stage or default, given)
            for number, (finish, given, stage) in enumerate(
                zip(self._function.finish[names], leaves, stages, strict=True)
            )
            if given is not None
        }

    def _results(
        self,
        number: int,
        finish: StageSlice | None,
        stage: Sharding | None,
        leaves: Leaves | None,
    ) -> tuple[Sharding, ...] | None:
        """The shardings of the results of a stage; None if it has a single device."""
        if finish is None or stage is None or leaves is None:
            return None
        one_device = bool(leaves) and not isinstance(stage, NamedSharding)
        if one_device and not self._state_axes.names:
            return None
        shardings = self._state_axes.of_results(number, finish, stage, leaves)
        return None if one_device else shardings

    def _on_meshes(self, found: StageShardings) -> StageShardings:
        """The shardings of the stages, given those of their first leaves."""
        if self._meshes is None:
            return found
        check_on_meshes(found, self._meshes)
        return tuple(self._meshes)


def is_traced(leaves_by_stage: LeavesByStage) -> bool:
    """Whether any leaf is traced, by `jax.jit`, `jax.grad` or another transform."""
    kinds: set[type] = set()
    for leaves in leaves_by_stage:
        kinds.update(map(type, leaves or ()))
    return any(map(_is_tracer, kinds))


@functools.lru_cache
def _is_tracer(kind: type) -> bool:
    return issubclass(kind, Tracer)


def shardings_of(leaves_by_stage: LeavesByStage) -> StageShardings:
    """The shardings of the first leaf of each stage; NumPy is on the default device."""
    firsts = [leaves[0] if leaves else None for leaves in leaves_by_stage]
    found = tuple(map(sharding_of, firsts))
    if None not in found or not any(found):
        return found
    if not any(isinstance(first, np.ndarray) for first in firsts):
        return found
    default = sharding_of(jnp.zeros(()))
    return tuple(
        default if isinstance(first, np.ndarray) else sharding
        for first, sharding in zip(firsts, found, strict=True)
    )


def sharding_of(leaf: Any) -> Sharding | None:
    """The sharding that replicates on all devices of a leaf; None if it is on none."""
    if isinstance(leaf, Tracer) or not isinstance(leaf, jax.Array):
        return None
    sharding = leaf.sharding
    return on_mesh(sharding.mesh) if isinstance(sharding, NamedSharding) else sharding
