"""A step whose stages start and finish one after another."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from jaxtyping import PyTree

from .._slicing.stage_sets import stages_text
from .._types import typed
from .derive.derive import STEP
from .derive.slices import Leaves
from .program import StageTrees
from .run.counters import Counters
from .run.executor import Executors, sharding_of
from .run.layout import LeavesByStage
from .run.progress import Progress
from .trees import check_pieces, Pieces, States


class OpenStep:
    """A step whose stages start and finish one by one, for runtimes with a schedule.

    Returned by `StageLocal.begin`. No method waits for a computation. The programs are
    those of `StageLocal.step`, and so are the results, bit for bit.

    !!! Example

        >>> import functional_opt as fo, jax.numpy as jnp, optax
        >>> params = {"embed": jnp.ones((8, 2)), "head": jnp.ones((2, 8))}
        >>> partition = fo.partition(params, {"embed": 0, "head": 1})
        >>> clipped = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1))
        >>> staged = fo.stage_local(clipped, params, partition)
        >>> pieces = partition.split(params)
        >>> open_step = staged.begin(staged.init(pieces), pieces)
        >>> open_step.start(1, pieces[1])  # as soon as the backward pass leaves stage 1
        >>> sorted(open_step.waits_for(1))
        [0]
        >>> open_step.start(0, pieces[0])
        >>> new, state = open_step.finish(1)
    """

    def __init__(
        self,
        trees: StageTrees,
        executors: Executors,
        counters: Counters,
        states: States,
        params_by_stage: Pieces,
        extra_args: Mapping[str, Any],
    ) -> None:
        here, state = trees.here, trees.programs[0].state
        partition = trees.programs[0].partition
        check_pieces("states", states, state, here)
        check_pieces("params_by_stage", params_by_stage, partition.params, here)
        self._trees, self._executors, self._counters = trees, executors, counters
        self._params, self._states = params_by_stage, states
        self._extra_args = trees.extra_args(extra_args, params_by_stage)
        held: list[Any] = [None] * partition.num_stages
        for stage in here:
            params, _ = partition.take("params", stage, params_by_stage[stage])
            held[stage] = [*params, *state.flatten("states", stage, states[stage])]
        self._puts: dict[int, Any] = {}
        self._finished: set[int] = set()
        self._has_failed = False
        idle, self._counts = counters.before_step(held)
        self._executor = executors.executor(STEP, held)
        if self._executor.layout.is_traced:
            raise ValueError(
                "`begin` was called inside a transformation of JAX, such as `jax.jit`, "
                "where nothing runs yet. Call `step` there: the compiler orders its "
                "computations by their operands."
            )
        self._progress = Progress(self._executor, here, idle)

    @typed
    def start(self, stage: int, grads: PyTree) -> None:
        """Passes the gradients of a stage, and sends what other stages wait for.

        **Arguments:**

        - `stage`: a stage of this process, in any order.
        - `grads`: its gradients, as in `grads_by_stage` of `step`.

        **Raises:** `ValueError` if the stage has started, or if its trees do not fit.
        """
        self._check(stage)
        if stage in self._puts:
            raise ValueError(
                f"Stage {stage} has already started in this step. A stage starts once "
                "per step: call `begin` for the next one."
            )
        state, params = self._states[stage], self._params[stage]
        extra = self._extra_args[stage]
        leaves, put = self._trees.take(stage, grads, state, params, extra)
        self._puts[stage] = put
        if not self._executor.is_compiled:
            self._compile(stage, leaves)
        with self._explained(self._progress.given):
            self._progress.start(stage, leaves)

    @typed
    def waits_for(self, stage: int) -> frozenset[int]:
        """The stages of this process that have to start before `finish(stage)`.

        Empty if `finish(stage)` can be called. Stages of other processes do not count:
        the devices wait for them, not the host.
        """
        self._check(stage)
        return self._progress.waits_for(stage)

    @typed
    def finish(self, stage: int) -> tuple[PyTree, PyTree]:
        """The new parameters and the new state of a stage.

        With `donate`, this donates the buffers of the stage. Stages that share their
        devices may run as one program: the first of them to finish donates the buffers
        of all.

        **Raises:** `ValueError` if `waits_for(stage)` is not empty, or if the stage has
        already finished.
        """
        self._check(stage)
        if missing := self._progress.waits_for(stage):
            raise ValueError(
                f"Stage {stage} cannot finish before {stages_text(missing)} "
                f"{'has' if len(missing) == 1 else 'have'} started. Call `start` "
                "first; `waits_for` returns these stages."
            )
        if stage in self._finished:
            raise ValueError(f"Stage {stage} has already finished in this step.")
        with self._explained(self._progress.given):
            results = self._progress.finish(stage)
        self._finished.add(stage)
        self._executors.delete(
            [own if s == stage else None for s, own in enumerate(self._progress.given)]
        )
        self._counters.after_step(stage, results, self._counts)
        program = self._trees.programs[stage]
        leaves, state = program.parts(results)
        return self._puts[stage](leaves), program.state.unflatten(stage, state)

    def _check(self, stage: int) -> None:
        if stage not in self._trees.here:
            raise ValueError(
                f"Stage {stage} is not a stage of this process, which has "
                f"{stages_text(self._trees.here)}."
            )
        if self._has_failed:
            raise ValueError(
                "An earlier call for this step has failed. Call `begin` again."
            )

    def _compile(self, stage: int, leaves: Leaves) -> None:
        """Compiles the programs of all stages, when the first of them starts.

        The gradients of the others are taken to be like their parameters. A program
        that gets others, such as None, is compiled again.
        """
        expected: list[Leaves | None] = [None] * len(self._trees.programs)
        for other in self._trees.here:
            expected[other] = leaves if other == stage else self._expected(other)
        with self._explained(expected):
            self._executor.compile(expected)

    def _expected(self, stage: int) -> Leaves:
        """The leaves of a stage before its gradients are known."""
        state, params = self._states[stage], self._params[stage]
        extra = self._extra_args[stage]
        leaves, _ = self._trees.take(stage, params, state, params, extra)
        function, leaves = self._trees.programs[stage].function, list(leaves)
        grads = function.positions(stage, "grads")
        for k, aval in zip(grads, function.avals_of("grads", stage), strict=True):
            leaves[k] = _like(leaves[k], aval)
        return leaves

    @contextlib.contextmanager
    def _explained(self, leaves: LeavesByStage) -> Iterator[None]:
        """Looks for the cause of an error, after which the step cannot go on."""
        try:
            yield
        except (TypeError, ValueError, RuntimeError) as error:
            self._has_failed = True
            self._executors.explain(error, STEP, leaves, self._progress.results)
            raise


def _like(param: Any, grad: Any) -> Any:
    """An array like a parameter, with the shape and dtype of its gradient."""
    if (param.shape, param.dtype) == (grad.shape, grad.dtype):
        return param
    where = param.sharding if getattr(param, "committed", False) else None
    if where is not None and param.ndim != grad.ndim:
        where = sharding_of(param)
    return jax.ShapeDtypeStruct(grad.shape, grad.dtype, sharding=where)
