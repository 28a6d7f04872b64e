"""The step of uniform stages, each of which is a slice of a named axis."""

import functools
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from .derive.derive import STEP
from .derive.slices import StageSlice
from .program import StageProgram
from .trees import Pieces


@dataclass(frozen=True, eq=False)
class StageAxis:
    """Uniform stages as slices of a named axis. Returned by `StageLocal.over_axis`.

    Call `step` inside `jax.shard_map` with `check_vma=False`. All trees have the
    structure of stage 0; their leaves are those of the stage of the slice.
    """

    programs: tuple[StageProgram, ...]
    axis_name: Hashable

    def __post_init__(self) -> None:
        forms = [_form(program) for program in self.programs]
        for stage, form in enumerate(forms):
            if form != forms[0]:
                raise ValueError(
                    f"Stage {stage} has leaves of other shapes or dtypes than stage 0, "
                    "but the slices of an axis must be uniform: use `StageLocal.step`."
                )
        if self.programs[0].ties is not None:
            raise ValueError(
                "A parameter is owned by several stages, but the slices of an axis "
                "hold different leaves: use `StageLocal.step`."
            )

    def stack(self, pieces: Pieces) -> PyTree:
        """Stacks the pieces of all stages into one tree, along a new leading axis."""
        leaves = zip(*map(jax.tree.leaves, pieces), strict=True)
        stacked = [np.stack([np.asarray(leaf) for leaf in each]) for each in leaves]
        return jax.tree.unflatten(jax.tree.structure(pieces[0]), stacked)

    def step(
        self, grads: PyTree, state: PyTree, params: PyTree
    ) -> tuple[PyTree, PyTree]:
        """The new parameters and state of the slice, equal to `StageLocal.step`."""
        trees = grads, state, params
        gathered: list[Any] = []
        function = self.programs[0].function
        for number, round in enumerate(function.rounds):
            send = functools.partial(self._send, number, gathered)
            message = self._on_its_stage(send, _keys(round.slices), trees)
            gathered.append(jax.lax.all_gather(message, self.axis_name))
        finish = functools.partial(self._finish, gathered)
        return self._on_its_stage(finish, _keys(function.finish[STEP]), trees)

    def _send(
        self, round: int, gathered: Sequence[Any], program: StageProgram, *trees: PyTree
    ) -> Array:
        return program.message(round, *trees, gathered=gathered)

    def _finish(
        self, gathered: Sequence[Any], program: StageProgram, *trees: PyTree
    ) -> tuple[PyTree, PyTree]:
        params, state = program.step(*trees, gathered=gathered)
        first = self.programs[0]
        return (
            _like(first.partition.params.structures[0], params),
            _like(first.state.structures[0], state),
        )

    def _on_its_stage(
        self,
        function: Callable[..., Any],
        keys: Sequence[Hashable],
        trees: tuple[PyTree, PyTree, PyTree],
    ) -> Any:
        """Calls a function for the stage of the slice.

        Stages with equal `keys` compute the same, and share a branch of the `switch`.
        """
        numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
        first = {numbers[key]: keys.index(key) for key in numbers}

        def run(stage: int, trees: tuple[PyTree, PyTree, PyTree]) -> Any:
            program, (grads, state, params) = self.programs[stage], trees
            of_params = program.partition.params.structures[stage]
            of_state = program.state.structures[stage]
            return function(
                program,
                _like(of_params, grads),
                _like(of_state, state),
                _like(of_params, params),
            )

        branches = [functools.partial(run, first[number]) for number in sorted(first)]
        if len(branches) == 1:
            return branches[0](trees)
        number = jnp.array([numbers[key] for key in keys])
        index = jax.lax.axis_index(self.axis_name)
        return jax.lax.switch(number[index], branches, trees)


def _form(program: StageProgram) -> list[tuple[Any, Any]]:
    avals = [
        aval for name in STEP for aval in program.function.avals_of(name, program.stage)
    ]
    return [(aval.shape, aval.dtype) for aval in avals]


def _keys(slices: Sequence[StageSlice | None]) -> list[Hashable]:
    return [None if s is None else s.key for s in slices]


def _like(structure: jax.tree_util.PyTreeDef, tree: PyTree) -> PyTree:
    return jax.tree.unflatten(structure, jax.tree.leaves(tree))
