"""The protocol of stage-local optimizers."""

from typing import Any, Protocol, runtime_checkable

from jaxtyping import PyTree

from .partition import StagePartition
from .trees import Pieces, States


@runtime_checkable
class Staged(Protocol):
    """A stage-local optimizer: a `StageLocal`, or any other object with these methods.

    An optimizer with its own stage-local programs returns such an object from
    `build_mpmd`. Trees are passed and returned as tuples with one piece per stage, as
    `partition.split` returns them. The results must equal those of the `build` of the
    optimizer on the whole tree; `fo.testing.assert_stage_local_equal(..., staged=...)`
    checks this.

    **Attributes:**

    - `partition`: the stages that own each parameter.

    !!! Example

        >>> import functional_opt as fo, jax.numpy as jnp, optax
        >>> params = {"embed": jnp.ones((8, 2)), "head": jnp.ones((2, 8))}
        >>> partition = fo.partition(params, {"embed": 0, "head": 1})
        >>> isinstance(fo.stage_local(optax.sgd(0.1), params, partition), fo.Staged)
        True
    """

    @property
    def partition(self) -> StagePartition: ...

    def init(self, params_by_stage: Pieces) -> tuple[PyTree, ...]:
        """The state of each stage, equal to `split_state` of `tx.init`."""
        ...

    def step(
        self,
        grads_by_stage: Pieces,
        states: States,
        params_by_stage: Pieces,
        **extra_args: Any,
    ) -> tuple[tuple[PyTree, ...], tuple[PyTree, ...]]:
        """The new parameters and states: `tx.update` and `optax.apply_updates`."""
        ...

    def update(
        self,
        grads_by_stage: Pieces,
        states: States,
        params_by_stage: Pieces,
        **extra_args: Any,
    ) -> tuple[tuple[PyTree, ...], tuple[PyTree, ...]]:
        """The updates, not yet applied, and the new states: `tx.update`."""
        ...

    def merge_state(self, states: States) -> PyTree:
        """The state that `tx.update` returns for the whole tree."""
        ...

    def split_state(
        self, state: PyTree, params_by_stage: Pieces | None = None
    ) -> tuple[PyTree, ...]:
        """The part of each stage of a state of the whole tree."""
        ...
