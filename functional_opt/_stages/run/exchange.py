"""How messages travel between devices, of one process or of many."""

import contextlib
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import (
    Mesh,
    NamedSharding,
    PartitionSpec,
    Sharding,
    SingleDeviceSharding,
)
from jaxtyping import Array, UInt32

from ..derive.functions import SplitFunction
from ..derive.slices import StageSlice
from .devices import device_order, group_by_devices


Vector = UInt32[Array, " words"]


class DeviceRows:
    """The devices of some stages as rows of one mesh.

    Stages that share their devices are a group, and have one row or more: as many as
    make all rows of one length. With stage 0 on devices 0 to 3, and stages 1 and 2 on
    devices 4 and 5:

        row 0   0  1    group 0, of stage 0
        row 1   2  3
        row 2   4  5    group 1, of stages 1 and 2

    **Attributes:**

    - `groups`: the stages of each group.
    - `starts`: the first row of each group.
    - `meshes`: the rows of each group.
    - `mesh`: all rows.
    """

    def __init__(self, shardings: Sequence[Sharding | None]) -> None:
        self.groups = group_by_devices(shardings)
        firsts = (shardings[group[0]] for group in self.groups)
        devices = [device_order(first) for first in firsts if first is not None]
        width = math.gcd(*map(len, devices))
        rows = [np.array(each).reshape(-1, width) for each in devices]
        self.meshes = [Mesh(each, ("row", "column")) for each in rows]
        self.mesh = Mesh(np.concatenate(rows), ("row", "column"))
        self.starts = [0, *np.cumsum([len(each) for each in rows])[:-1].tolist()]
        index = jax.process_index()
        self.here = [d for d in self.mesh.devices.flat if d.process_index == index]
        self._here = frozenset(self.here)

    def __len__(self) -> int:
        return len(self.mesh.devices)

    def assemble(
        self, shape: tuple[int, ...], sharding: Sharding, parts: Iterable[Array]
    ) -> Array:
        """One array of the shards of several, which stay where they are."""
        shards = shards_of(*parts)
        if not shards.keys() >= self._here:
            raise NotOnItsStage("What is exchanged is not on the devices of its stage.")
        ordered = list(map(shards.__getitem__, self.here))
        return jax.make_array_from_single_device_arrays(shape, sharding, ordered)


class Exchange:
    """A round of exchange: each of some stages sends a vector to all of some stages.

    A vector is on all devices of its stage, and so on all rows of its group. One
    program on all devices gathers the vectors, which are side by side, into a table of
    all senders. Stages that share their devices send one after the other, in slots:
    with stages 0 and 2 on device 0, and stage 1 on device 1,

        slot 0   row 0: stage 0   row 1: stage 1
        slot 1   row 0: stage 2   row 1: zeros

    and the table of stages 0, 1, 2 has rows 0, 1, 2 of these four.

    **Arguments:**

    - `senders`: the stages that send.
    - `num_words`: the length of each vector.
    - `shardings`: of all stages, None for those that take no part.
    """

    def __init__(
        self,
        senders: Sequence[int],
        num_words: int,
        shardings: Sequence[Sharding | None],
    ) -> None:
        self.senders, self.num_words, self.shardings = senders, num_words, shardings
        self.is_needed = len(group_by_devices(shardings)) > 1
        if self.is_needed:
            self._set_up(DeviceRows(shardings))

    @classmethod
    def of(
        cls,
        function: SplitFunction,
        number: int,
        last: Sequence[StageSlice | None],
        shardings: Sequence[Sharding | None],
    ) -> "Exchange":
        """That of a round of a function, between those that send or read in it.

        **Arguments:**

        - `last`: for each stage the slice that computes its results.
        """
        round = function.rounds[number]
        slices = [*last, *(s for later in function.rounds for s in later.slices)]
        readers = {s.stage for s in slices if s is not None and number in s.rounds}
        taking_part = readers.union(round.senders)
        where = [s if k in taking_part else None for k, s in enumerate(shardings)]
        return cls(round.senders, round.num_words, where)

    def _set_up(self, rows: DeviceRows) -> None:
        self.rows, self.shape = rows, (len(rows) * self.num_words,)
        self.sharding = NamedSharding(rows.mesh, PartitionSpec("row"))
        sending = [[s for s in group if s in self.senders] for group in rows.groups]
        zeros = np.zeros(self.num_words, np.uint32)
        self.slots: list[tuple[list[int], list[Array]]] = []
        found: dict[int, int] = {}
        for slot in range(max(map(len, sending))):
            here, filling = [], []
            for stages, start, mesh in zip(
                sending, rows.starts, rows.meshes, strict=True
            ):
                if slot < len(stages):
                    here.append(stages[slot])
                    found[stages[slot]] = slot * len(rows) + start
                else:
                    devices = (d for d in mesh.devices.flat if d in rows.here)
                    filling += [jax.device_put(zeros, device) for device in devices]
            self.slots.append((here, filling))
        self.gather = self._gather([found[sender] for sender in self.senders])

    def _gather(self, order: Sequence[int]) -> jax.stages.Wrapped:
        """The program: from the slots to the table, on all devices."""
        everywhere = NamedSharding(self.rows.mesh, PartitionSpec())

        def gather(slots: Sequence[Array]) -> UInt32[Array, "senders words"]:
            slots = [jax.lax.with_sharding_constraint(x, everywhere) for x in slots]
            count = len(slots) * len(self.rows)
            table = jnp.concatenate(slots).reshape(count, self.num_words)
            in_order = list(order) == list(range(count))
            return table if in_order else table[np.array(order)]

        return jax.jit(gather, out_shardings=everywhere)

    def __call__(self, sent: Sequence[Any]) -> list[Any]:
        """Gives every stage the vectors of the senders; None if it takes no part.

        **Arguments:**

        - `sent`: for each stage of this process its vector, on its own devices.
        """
        if not self.is_needed:
            return [[sent[sender] for sender in self.senders]] * len(sent)
        if not self.rows.here:
            return [None] * len(sent)
        slots = []
        for stages, filling in self.slots:
            vectors = [sent[stage] for stage in stages if sent[stage] is not None]
            parts = self.rows.assemble(self.shape, self.sharding, vectors + filling)
            slots.append(parts)
        with failures_named(self.rows.mesh.devices.flat):
            table = self.gather(slots)
        copies, shape = shards_of(table), table.shape
        return [
            None if sharding is None else taken(copies, sharding, shape)
            for sharding in self.shardings
        ]


def taken(shards: dict[jax.Device, Array], like: Sharding, shape: Any) -> Any:
    """An array of those shards that are on its devices; None if none is."""
    if isinstance(like, SingleDeviceSharding):
        (device,) = like.device_set
        return shards.get(device)
    own = [shards[device] for device in device_order(like) if device in shards]
    if not own:
        return None
    return jax.make_array_from_single_device_arrays(shape, like, own)


def shards_of(*arrays: Array) -> dict[jax.Device, Array]:
    shards = {}
    for array in arrays:
        for shard in array.addressable_shards:
            shards[shard.device] = shard.data
    return shards


class NotOnItsStage(ValueError):
    """What is to be exchanged is not on the devices of its stage."""


@contextlib.contextmanager
def failures_named(devices: Iterable[jax.Device]) -> Iterator[None]:
    """Names the processes that take part in an exchange that fails."""
    try:
        yield
    # The kinds of error that XLA raises, for which JAX has more than one class.
    except (ValueError, RuntimeError) as error:
        indices = sorted({device.process_index for device in devices})
        raise RuntimeError(
            f"An exchange between processes {', '.join(map(str, indices))} failed. If "
            "one of them has died, start all of them again from the last checkpoint."
        ) from error
