"""The devices that a function of all stages runs on."""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jax.sharding import NamedSharding, Sharding

from ..derive.derive import INIT
from ..derive.functions import SplitFunction
from ..derive.slices import Leaves, StageSlice
from .devices import check_on_meshes, check_one_program
from .state_sharding import StateAxes


# For each stage the sharding that replicates a value on all of its devices. None for a
# stage of another process, and if all stages are traced into one larger program.
StageShardings = tuple[Sharding | None, ...]
LeavesByStage = Sequence[Leaves | None]


class Layout(NamedTuple):
    """The devices that a function runs on, and the results that it computes.

    **Attributes:**

    - `names`: the names of the results.
    - `stages`: the shardings of the stages.
    - `results`: for each stage the shardings of its result leaves; None if XLA infers
        them from the operands.
    - `is_traced`: whether the function is traced into a larger program.
    """

    names: tuple[str, ...]
    stages: StageShardings
    results: tuple[tuple[Sharding, ...] | None, ...]
    is_traced: bool


class Layouts:
    """Finds the layout of a function from the leaves of its stages.

    **Arguments:**

    - `function`: the function.
    - `meshes`: the shardings of the stages, if `meshes` of `stage_local` are set.
    - `state_axes`: the mesh axes over which results are sharded that are a new state.
    """

    def __init__(
        self,
        function: SplitFunction,
        meshes: Sequence[Sharding] | None,
        state_axes: StateAxes,
    ) -> None:
        self._function, self._meshes = function, meshes
        self._state_axes = state_axes

    def of(
        self, names: tuple[str, ...], found: StageShardings, leaves: LeavesByStage
    ) -> Layout:
        """The layout for leaves with values.

        **Arguments:**

        - `names`: the names of the results.
        - `found`: the shardings of the first leaf of each stage.
        - `leaves`: the leaves of each stage.
        """
        stages = self._on_meshes(found)
        finish = self._function.finish[names]
        each = zip(range(len(leaves)), finish, stages, leaves, strict=True)
        results = tuple(self._results(*stage) for stage in each)
        return Layout(names, stages, results, False)

    def traced(self, names: tuple[str, ...], leaves: LeavesByStage) -> Layout:
        """The layout inside a larger program, which requires a single device."""
        # With meshes, `init` may still be traced by `jax.eval_shape` for the shapes of
        # the state.
        check_one_program(leaves, None if names == INIT else self._meshes)
        nowhere = (None,) * len(leaves)
        return Layout(names, nowhere, nowhere, True)

    def shardings(
        self, names: tuple[str, ...], found: StageShardings, leaves: LeavesByStage
    ) -> dict[int, tuple[Sharding, ...]]:
        """The shardings of the named results of each stage of this process."""
        stages = self._on_meshes(found)
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
