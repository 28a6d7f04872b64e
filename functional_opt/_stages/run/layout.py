"""The devices that a function of all stages runs on."""

from collections.abc import Sequence
from typing import NamedTuple

from jax.sharding import Sharding

from ..derive.slices import Leaves


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
