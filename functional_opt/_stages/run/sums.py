"""Sums tied gradients shard by shard, on the devices of their owners."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding
from jaxtyping import Array

from ..derive.slices import Leaves
from ..derive.ties import in_order, Ties
from .devices import is_concrete
from .exchange import DeviceRows, failures_named, shards_of, taken
from .views import view


# The corresponding leaves of several stages, by stage.
Summands = Mapping[int, Leaves]


class DeviceSums:
    """Sums the gradients of parameters that are tied between the same stages.

    The program is separate from the update: within one kernel XLA may contract the sum
    with a multiplication of the update, which rounds differently.

    **Arguments:**

    - `owners`: the owners.
    - `tied`: the numbers of the tied parameters.
    - `shardings`: the shardings of all stages.
    """

    def __init__(
        self,
        ties: Ties,
        owners: tuple[int, ...],
        tied: Sequence[int],
        shardings: Sequence[Sharding | None],
    ) -> None:
        self._ties, self.owners, self._tied = ties, owners, tied
        on = {s: sharding for s in owners if (sharding := shardings[s]) is not None}
        shapes = [ties.avals[k].shape for k in tied]
        are_apart = len(on) == len(owners) and not _is_one_device(on.values())
        self._add = ShardedSum(on, shapes) if are_apart else _add_together

    def __call__(self, leaves: Sequence[Leaves | None]) -> list[Leaves | None]:
        """The leaves of all stages, with sums in place of summands."""
        summed, ties = list(leaves), self._ties
        summands = {
            stage: [given[ties.grads[stage][k]] for k in self._tied]
            for stage in self.owners
            if (given := leaves[stage]) is not None
        }
        for stage, totals in self._add(summands).items():
            grads = dict(zip(self._tied, totals, strict=True))
            summed[stage] = ties.replaced(stage, leaves[stage] or (), grads)
        return summed


class DeviceCopies:
    """Copies tied gradients that are summed already to each owner.

    A sum on the devices of all owners stays there. A sum on one owner is broadcast to
    the others. The arguments are those of `DeviceSums`.
    """

    def __init__(
        self, ties: Ties, owners: tuple[int, ...], tied: Sequence[int]
    ) -> None:
        self._ties, self.owners, self._tied = ties, owners, tied

    def __call__(self, leaves: Sequence[Leaves | None]) -> list[Leaves | None]:
        """The leaves of all stages, with a copy for each owner without a sum."""
        copied: list[Leaves | None] = list(leaves)
        here = [stage for stage in self.owners if leaves[stage] is not None]
        grads: dict[int, dict[int, Any]] = {stage: {} for stage in here}
        for k in self._tied:
            for stage, grad in self._copies(k, here, leaves).items():
                grads[stage][k] = grad
        for stage, own in grads.items():
            copied[stage] = self._ties.replaced(stage, leaves[stage] or (), own)
        return copied

    def _copies(
        self, k: int, here: Sequence[int], leaves: Sequence[Leaves | None]
    ) -> dict[int, Any]:
        ties = self._ties
        own = {s: (leaves[s] or ())[ties.grads[s][k]] for s in here}
        source = next((grad for grad in own.values() if grad is not None), None)
        if len(here) < len(self.owners) and any(x is None for x in own.values()):
            raise ValueError(
                f"A summed gradient of stages {list(self.owners)} is None on a "
                "stage of this process, and another process has an owner, too. In this "
                "case `tied_grads='summed'` requires the sum on every owner: pass "
                "zeros if there is no gradient."
            )
        if source is None:
            return {}
        params = {s: (leaves[s] or ())[ties.params[s][k]] for s in here}
        return {
            stage: _copy(source if grad is None else grad, params[stage], params)
            for stage, grad in own.items()
        }


def _copy(grad: Any, param: Any, params: Mapping[int, Any]) -> Any:
    """A gradient on the devices of a parameter, if it is on those of some owner."""
    if not (is_concrete(grad) and is_concrete(param)):
        return grad
    found = view(grad, param.sharding)
    devices = grad.sharding.device_set
    is_owners = any(p.sharding.device_set <= devices for p in params.values())
    if found is None and (is_owners or not grad.committed):
        return jax.device_put(grad, param.sharding)
    return grad if found is None else found


# Replaces the gradients of parameters that are tied between the same stages.
TiedSum = DeviceSums | DeviceCopies


def _is_one_device(shardings: Collection[Sharding]) -> bool:
    """Whether stages share a single device, without a mesh.

    The result of a program on a mesh is committed to it. The parameters of the next
    step would be so, too, and the step be compiled again.
    """
    without_mesh = all(isinstance(s, SingleDeviceSharding) for s in shardings)
    return without_mesh and len({*shardings}) == 1


@jax.jit
def _sum_columns(summands: Sequence[Leaves]) -> list[Array]:
    return [in_order(column) for column in zip(*summands, strict=True)]


def _add_together(summands: Summands) -> dict[int, list[Array]]:
    """Adds summands that are not on separate devices, by one program."""
    sums = _sum_columns([summands[stage] for stage in sorted(summands)])
    return {stage: sums for stage in summands}


class ShardedSum:
    """Adds the corresponding leaves of several stages, in the order of the stages.

    Each stage splits its leaves over the columns of `DeviceRows`. A device then
    receives only the shards of the other stages that correspond to its own, and never
    holds a whole leaf, unless no axis can be split. With stage 0 on devices 0 and 1,
    stage 1 on devices 2 and 3, and a leaf of two shards:

                 column 0        column 1
        row 0    leaf 0, first   leaf 0, second      on devices 0 and 1
        row 1    leaf 1, first   leaf 1, second      on devices 2 and 3
        sum      first           second              exchanged within columns only

    Stages that share their devices share rows, and stack their leaves along an axis in
    front. All rows have stacks of equal depth, padded with zeros.

    **Arguments:**

    - `shardings`: the shardings of the stages.
    - `shapes`: the shapes of the leaves.
    """

    def __init__(
        self, shardings: Mapping[int, Sharding], shapes: Sequence[tuple[int, ...]]
    ) -> None:
        stages = sorted(shardings)
        self._shardings, self._shapes = shardings, shapes
        self.rows = DeviceRows([shardings[stage] for stage in stages])
        self._groups = [[stages[i] for i in group] for group in self.rows.groups]
        self._depth = max(map(len, self._groups))
        self._height = len(self.rows) * self._depth
        width = self.rows.mesh.devices.shape[1]
        self._specs = [_largest_axis(shape, width) for shape in shapes]
        self._stacks = [
            jax.jit(self._stack, out_shardings=self._on(mesh, None))
            for mesh in self.rows.meshes
        ]
        self._stacked = self._on(self.rows.mesh, "row")
        self._shares = [self._on(mesh) for mesh in self.rows.meshes]
        position = {
            stage: start * self._depth + k
            for group, start in zip(self._groups, self.rows.starts, strict=True)
            for k, stage in enumerate(group)
        }
        self.add = self._adding([position[stage] for stage in stages])
        self._reshards: dict[Sharding, jax.stages.Wrapped] = {}

    def _on(self, mesh: Any, *leading: str | None) -> list[NamedSharding]:
        return [
            NamedSharding(mesh, PartitionSpec(*leading, *spec)) for spec in self._specs
        ]

    def _stack(self, leaves_by_stage: Sequence[Leaves]) -> list[Array]:
        """The leaves of the stages of a group, stacked."""
        empty = self._depth - len(leaves_by_stage)
        return [
            jnp.stack([*leaves, *[jnp.zeros_like(leaves[0])] * empty])
            for leaves in zip(*leaves_by_stage, strict=True)
        ]

    def _adding(self, positions: Sequence[int]) -> jax.stages.Wrapped:
        """The program that adds the stacks of all rows, with the sums on each row."""
        rowwise = self._on(self.rows.mesh, None)

        def add(stacks: Sequence[Array]) -> list[Array]:
            gathered = map(jax.lax.with_sharding_constraint, stacks, rowwise)
            return [in_order([stack[k] for k in positions]) for stack in gathered]

        return jax.jit(add, out_shardings=self._on(self.rows.mesh))

    def __call__(self, summands: Summands) -> dict[int, list[Any]]:
        """The sums on each stage of this process, sharded like its summands."""
        if not summands:
            return {}
        stacks = [
            stack([summands[stage] for stage in group])
            for group, stack in zip(self._groups, self._stacks, strict=True)
            if group[0] in summands
        ]
        whole = [
            self.rows.assemble((self._height, *shape), sharding, parts)
            for shape, sharding, *parts in zip(
                self._shapes, self._stacked, *stacks, strict=True
            )
        ]
        with failures_named(self.rows.mesh.devices.flat):
            copies = list(map(shards_of, self.add(whole)))
        return {
            stage: [
                self._take(number, group, copies[number], self._like(stage, leaf))
                for number, leaf in enumerate(summands[stage])
            ]
            for group, stages in enumerate(self._groups)
            for stage in stages
            if stage in summands
        }

    def _like(self, stage: int, leaf: Any) -> Sharding:
        """The sharding of a leaf, or of its stage if the leaf is on other devices."""
        sharding = self._shardings[stage]
        like = getattr(leaf, "sharding", sharding)
        return like if like.device_set == sharding.device_set else sharding

    def _take(
        self, number: int, group: int, copies: dict[jax.Device, Array], like: Sharding
    ) -> Any:
        """The copy of a sum on the rows of a group."""
        shape, own = self._shapes[number], self._shares[group][number]
        if own.is_equivalent_to(like, len(shape)):
            return taken(copies, like, shape)
        if like not in self._reshards:
            self._reshards[like] = jax.jit(lambda x: x, out_shardings=like)
        return self._reshards[like](taken(copies, own, shape))


def _largest_axis(shape: tuple[int, ...], shards: int) -> tuple[str | None, ...]:
    """The partition spec that splits the largest axis divisible by `shards`."""
    fitting = [axis for axis, size in enumerate(shape) if size % shards == 0]
    split = max(fitting, key=lambda axis: shape[axis], default=None)
    return tuple("column" if axis == split else None for axis in range(len(shape)))
