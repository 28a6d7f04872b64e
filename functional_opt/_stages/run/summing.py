"""Sums of what several stages hold, shard by shard, on the devices of all of them."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding
from jaxtyping import Array

from ..derive.functions import Leaves
from .exchange import device_order, failures_named, group_by_devices, shards_of


@dataclass(frozen=True, eq=False)
class ShardedSum:
    """Adds leaves of some stages, in the order of the stages.

    Each stage cuts its leaves into as many shards as all stages have devices for. A
    device hears only the shards of the others that are like its own: it never holds a
    whole leaf, unless no axis can be cut.

    The devices are rows of a matrix, whose columns are shards. Stages that share their
    devices share rows, and stack their leaves on them.

    **Attributes:**

    - `placements`: for each stage where it is.
    - `shapes`: of the leaves.
    """

    placements: tuple[Sharding, ...]
    shapes: Sequence[tuple[int, ...]]

    @functools.cached_property
    def _groups(self) -> list[list[int]]:
        return list(group_by_devices(self.placements).values())

    @functools.cached_property
    def _meshes(self) -> list[Mesh]:
        """For each group its rows of devices."""
        devices = [device_order(self.placements[group[0]]) for group in self._groups]
        columns = math.gcd(*map(len, devices))
        rows = (np.array(each).reshape(-1, columns) for each in devices)
        return [Mesh(each, ("row", "shard")) for each in rows]

    @functools.cached_property
    def _mesh(self) -> Mesh:
        rows = np.concatenate([mesh.devices for mesh in self._meshes])
        return Mesh(rows, ("row", "shard"))

    @functools.cached_property
    def _depth(self) -> int:
        """How many leaves are stacked."""
        return max(map(len, self._groups))

    @functools.cached_property
    def _positions(self) -> list[int]:
        """For each stage where in the stack of all rows its leaf is."""
        found, row = {}, 0
        for group, mesh in zip(self._groups, self._meshes, strict=True):
            found |= {stage: row * self._depth + k for k, stage in enumerate(group)}
            row += len(mesh.devices)
        return [found[stage] for stage in range(len(self.placements))]

    @functools.cached_property
    def _specs(self) -> list[tuple[str | None, ...]]:
        """For each leaf its largest axis that can be cut, as a sharding has it."""
        columns = self._mesh.devices.shape[1]

        def spec(shape: tuple[int, ...]) -> tuple[str | None, ...]:
            fitting = [axis for axis, size in enumerate(shape) if size % columns == 0]
            cut = max(fitting, key=lambda axis: shape[axis], default=None)
            return tuple("shard" if axis == cut else None for axis in range(len(shape)))

        return list(map(spec, self.shapes))

    def _shardings(self, mesh: Mesh, *leading: str | None) -> list[NamedSharding]:
        return [
            NamedSharding(mesh, PartitionSpec(*leading, *spec)) for spec in self._specs
        ]

    @functools.cached_property
    def _stack(self) -> list[jax.stages.Wrapped]:
        """For each group: from the leaves of its stages to the stacks on its rows."""

        def stack(leaves_by_stage: Sequence[Leaves]) -> list[Array]:
            empty = self._depth - len(leaves_by_stage)
            return [
                jnp.stack([*leaves, *[jnp.zeros_like(leaves[0])] * empty])
                for leaves in zip(*leaves_by_stage, strict=True)
            ]

        return [
            jax.jit(stack, out_shardings=self._shardings(mesh, None))
            for mesh in self._meshes
        ]

    @functools.cached_property
    def _add(self) -> jax.stages.Wrapped:
        """From the stacks of all rows to the sums, a copy on each row."""
        rowwise = self._shardings(self._mesh, None)

        def add(stacks: Sequence[Array]) -> list[Array]:
            gathered = map(jax.lax.with_sharding_constraint, stacks, rowwise)
            return [
                functools.reduce(jnp.add, [stack[k] for k in self._positions])
                for stack in gathered
            ]

        return jax.jit(add, out_shardings=self._shardings(self._mesh))

    @functools.cached_property
    def _reshard(self) -> Callable[[Sharding], jax.stages.Wrapped]:
        return functools.cache(
            lambda sharding: jax.jit(lambda x: x, out_shardings=sharding)
        )

    def __call__(self, leaves: Mapping[int, Leaves]) -> dict[int, list[Array]]:
        """The sums for each stage of this process, sharded like the leaves given.

        **Arguments:**

        - `leaves`: of each stage of this process, by its position in `placements`.
        """
        if not leaves:
            return {}
        stacks = [
            stack([leaves[stage] for stage in group])
            for group, stack in zip(self._groups, self._stack, strict=True)
            if group[0] in leaves
        ]
        whole = [
            self._assemble(number, [stack[number] for stack in stacks])
            for number in range(len(self.shapes))
        ]
        with failures_named(self._mesh.devices.flat):
            sums = self._add(whole)
        copies = [dict(shards_of(total)) for total in sums]
        return {
            stage: [
                self._take(number, group, copies[number], self._like(stage, leaf))
                for number, leaf in enumerate(leaves[stage])
            ]
            for group, stages in enumerate(self._groups)
            for stage in stages
            if stage in leaves
        }

    def _assemble(self, number: int, stacks: Sequence[Array]) -> Array:
        """One array of the stacks of all rows, which stay where they are."""
        parts = dict(part for stack in stacks for part in shards_of(stack))
        shape = (len(self._mesh.devices) * self._depth, *self.shapes[number])
        sharding = self._shardings(self._mesh, "row")[number]
        shards = [
            parts[device] for device in self._mesh.devices.flat if device in parts
        ]
        return jax.make_array_from_single_device_arrays(shape, sharding, shards)

    def _like(self, stage: int, leaf: Any) -> Sharding:
        """The sharding of a leaf, if it is where its stage is, and not on its way."""
        placement = self.placements[stage]
        like = getattr(leaf, "sharding", placement)
        return like if like.device_set == placement.device_set else placement

    def _take(
        self,
        number: int,
        group: int,
        copies: Mapping[jax.Device, Array],
        like: Sharding,
    ) -> Array:
        """A group's copy of a sum."""
        shape, mesh = self.shapes[number], self._meshes[group]
        mine = self._shardings(mesh)[number]
        shards = [copies[device] for device in mesh.devices.flat if device in copies]
        same = mine.is_equivalent_to(like, len(shape))
        sharding = like if same else mine
        taken = jax.make_array_from_single_device_arrays(shape, sharding, shards)
        return taken if same else self._reshard(like)(taken)
