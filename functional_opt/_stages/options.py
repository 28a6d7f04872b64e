"""The options of `stage_local`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
from jax.sharding import Mesh
from jaxtyping import PyTree


Donate = bool | Literal["all"]
TiedGrads = Literal["partial", "summed"]
MeshAxes = str | tuple[str, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class StageOptions:
    """The keyword arguments of `stage_local`; see there."""

    meshes: Sequence[Mesh | jax.Device] | None
    donate: Donate
    tied_grads: TiedGrads
    shard_state: MeshAxes | None
    grads: PyTree | None
    extra_args: Mapping[str, Any] | None
    state_stage_of: Callable[[tuple[Any, ...], Any], Any] | None
    travel_limit: int
    process_timeout: float | int
