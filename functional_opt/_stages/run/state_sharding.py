"""Shards the optimizer state over the data-parallel devices of a stage."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jax.sharding import NamedSharding, PartitionSpec, Sharding

from ..derive.slices import Leaves, StageSlice


@dataclass(frozen=True)
class StateAxes:
    """The mesh axes of a stage over which its state is sharded, as by ZeRO-1.

    For a parameter of shape (6, 8) that is replicated on a mesh of four devices along
    "data", the moments are sharded along their second dimension: 4 does not divide 6.
    """

    names: tuple[str, ...]

    @classmethod
    def of(cls, names: str | Sequence[str] | None) -> "StateAxes":
        names = () if names is None else names
        names = (names,) if isinstance(names, str) else tuple(names)
        for name in names:
            if names.count(name) > 1:
                raise ValueError(
                    f"`shard_state` names the mesh axis {name!r} twice, got {names}. "
                    "Name each axis once."
                )
        return cls(names)

    def check(self, stage: int, sharding: Sharding) -> None:
        """Refuses a stage without these axes."""
        if not self.names:
            return
        if not isinstance(sharding, NamedSharding):
            raise ValueError(
                f"`shard_state` names the mesh axes {self._text}, but stage {stage} "
                "is on a single device. Pass a mesh with these axes in `meshes`, or "
                "put the parameters of the stage on one."
            )
        missing = [n for n in self.names if n not in sharding.mesh.axis_names]
        if missing:
            raise ValueError(
                f"`shard_state` names the mesh axis '{missing[0]}', but the mesh of "
                f"stage {stage} has the axes {tuple(sharding.mesh.axis_names)}."
            )

    def of_results(
        self, stage: int, finish: StageSlice | None, where: Sharding, leaves: Leaves
    ) -> tuple[Sharding, ...]:
        """The shardings of the results of a stage, which are a state.

        **Arguments:**

        - `finish`: the slice that computes them.
        - `where`: the sharding of the stage.
        - `leaves`: the leaves of the stage.
        """
        if finish is None:
            return ()
        self.check(stage, where)
        shardings = finish.shardings(leaves, where)
        if not self.names:
            return shardings
        pairs = zip(shardings, finish.program.closed.out_avals, strict=True)
        return tuple(self.sharded(one, aval.shape) for one, aval in pairs)

    @property
    def _text(self) -> str:
        return ", ".join(map(repr, self.names))

    def sharded(self, sharding: Any, shape: tuple[int, ...]) -> Any:
        """The sharding of a leaf of the state that is sharded over these axes, too.

        It is the first dimension that is whole and that the axes divide. A leaf
        without one, or sharded over one of the axes already, keeps its sharding.
        """
        if not self.names or not isinstance(sharding, NamedSharding):
            return sharding
        size = math.prod(sharding.mesh.shape[name] for name in self.names)
        spec = [*sharding.spec, *[None] * (len(shape) - len(sharding.spec))]
        if set(self.names) & _axes(spec):
            return sharding
        for dimension, length in enumerate(shape):
            if spec[dimension] is None and length and length % size == 0:
                spec[dimension] = self.names
                return NamedSharding(sharding.mesh, PartitionSpec(*spec))
        return sharding


UNSHARDED = StateAxes(())


def _axes(spec: Sequence[Any]) -> set[str]:
    entries = (entry if isinstance(entry, tuple) else (entry,) for entry in spec)
    return {name for entry in entries for name in entry if name is not None}
