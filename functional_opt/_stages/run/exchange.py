"""Exchanges messages between the devices of stages, in one process or in several."""

import contextlib
import functools
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
from .compiling import ToCompile
from .devices import device_order, group_by_devices


Vector = UInt32[Array, " words"]


class DeviceRows:
    """The devices of some stages, as the rows of one mesh.

    A mesh is rectangular, but stages may have different numbers of devices. All rows
    are therefore as long as the greatest common divisor of these numbers, and a stage
    may have several rows. Stages that share their devices form a group, and share rows.
    With stage 0 on devices 0 to 3, and stages 1 and 2 both on devices 4 and 5:

        row 0   0  1    group 0: stage 0
        row 1   2  3
        row 2   4  5    group 1: stages 1 and 2

    **Attributes:**

    - `groups`: the stages of each group; here `[[0], [1, 2]]`.
    - `starts`: the first row of each group; here `[0, 2]`.
    - `meshes`: the rows of each group as a mesh, of shapes `(2, 2)` and `(1, 2)`.
    - `mesh`: all rows as a mesh, of shape `(3, 2)`.
    - `here`: the devices of this process.
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

    def __len__(self) -> int:
        return len(self.mesh.devices)

    def assemble(
        self, shape: tuple[int, ...], sharding: Sharding, parts: Iterable[Array]
    ) -> Array:
        """One array of the shards of several arrays, without copying them."""
        shards = list(shards_of(*parts).values())
        try:
            return jax.make_array_from_single_device_arrays(shape, sharding, shards)
        except ValueError as error:
            raise NotOnItsStage(
                "A message is not on the devices of its stage."
            ) from error


class Exchange:
    """One round of exchange: every sender sends a vector to all stages that take part.

    A vector is replicated on all devices of its stage, and so on every row of its
    group. Without any copy, the vectors of all rows are therefore the shards of one
    array, sharded over the rows. A single program replicates this array on all devices
    (an all-gather), and selects one row per sender: the *table*.

    A row can hold one vector at a time. Stages of one group send theirs in *slots*, one
    array per slot; a group with fewer senders fills its rows with zeros. With stages 0
    and 2 on device 0, and stage 1 on device 1:

                 row 0      row 1
        slot 0   stage 0    stage 1
        slot 1   stage 2    zeros

    Concatenated, the slots have rows `[stage 0, stage 1, stage 2, zeros]`, of which the
    table of senders 0, 1 and 2 has rows `[0, 1, 2]`.

    **Arguments:**

    - `senders`: the stages that send.
    - `num_words`: the length of each vector, in 32-bit words.
    - `shardings`: the shardings of all stages; None for stages that take no part.
    """

    def __init__(
        self,
        senders: Sequence[int],
        num_words: int,
        shardings: Sequence[Sharding | None],
    ) -> None:
        self.senders, self.num_words, self.shardings = senders, num_words, shardings
        # JAX takes longer to make an array on a mesh of one device than on the device.
        self.received = [
            s
            if s is None or len(s.device_set) > 1
            else SingleDeviceSharding(*s.device_set)
            for s in shardings
        ]
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
        """The exchange of a round of a function. Its senders and readers take part.

        **Arguments:**

        - `number`: the number of the round.
        - `last`: for each stage the slice that computes its results.
        - `shardings`: the shardings of all stages.
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
        """The program that computes the table from the slots, on all devices."""
        everywhere = NamedSharding(self.rows.mesh, PartitionSpec())

        def gather(slots: Sequence[Array]) -> UInt32[Array, "senders words"]:
            slots = [jax.lax.with_sharding_constraint(x, everywhere) for x in slots]
            count = len(slots) * len(self.rows)
            table = jnp.concatenate(slots).reshape(count, self.num_words)
            in_order = list(order) == list(range(count))
            return table if in_order else table[np.array(order)]

        return jax.jit(gather, out_shardings=everywhere)

    def __call__(self, sent: Sequence[Any]) -> list[Any]:
        """Exchanges the vectors of the senders.

        **Arguments:**

        - `sent`: for each stage of this process its vector, on its own devices.

        **Returns:** per stage, the vectors of all senders; None if it takes no part.
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
            for sharding in self.received
        ]

    @property
    def programs(self) -> list[ToCompile]:
        """The programs to compile before the first messages."""
        if not (self.is_needed and self.rows.here):
            return []
        slot = _shape(self.shape, self.sharding)
        return [(self.gather, [[slot] * len(self.slots)], self.sharding)]

    def expected(self, operands: Any) -> list[Any]:
        """The shapes and shardings of what a call returns.

        **Arguments:**

        - `operands`: what the messages are computed from.
        """
        if self.is_needed:
            shape = len(self.senders), self.num_words
            return [s and _shape(shape, s) for s in self.received]
        # Without an exchange, messages are committed if an operand is.
        is_committed = any(map(_is_committed, jax.tree.leaves(operands)))
        shardings = [self.shardings[s] if is_committed else None for s in self.senders]
        return [[_shape((self.num_words,), s) for s in shardings]] * len(self.received)

    @functools.cached_property
    def nothing(self) -> list[Any]:
        """Zeros in place of messages that are not used, without an exchange."""
        zeros = np.zeros((len(self.senders), self.num_words), np.uint32)

        def on(sharding: Sharding | None) -> Array | None:
            if sharding is None or not sharding.addressable_devices:
                return None
            shape, part = zeros.shape, zeros.__getitem__
            return jax.make_array_from_callback(shape, sharding, part)

        with jax.transfer_guard("allow"):
            return list(map(on, self.received))


def _shape(shape: tuple[int, ...], sharding: Sharding | None) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, np.uint32, sharding=sharding)


def _is_committed(operand: Any) -> bool:
    if isinstance(operand, jax.ShapeDtypeStruct):
        return operand.sharding is not None
    return isinstance(operand, Array) and operand.committed


def taken(shards: dict[jax.Device, Array], like: Sharding, shape: Any) -> Any:
    """An array of the shards on the devices of `like`; None if there are none."""
    own = [shards[device] for device in device_order(like) if device in shards]
    if not own or isinstance(like, SingleDeviceSharding):
        return own[0] if own else None
    return jax.make_array_from_single_device_arrays(shape, like, own)


def shards_of(*arrays: Array) -> dict[jax.Device, Array]:
    shards = {}
    for array in arrays:
        if isinstance(array.sharding, SingleDeviceSharding):
            shards[array.device] = array
            continue
        for shard in array.addressable_shards:
            shards[shard.device] = shard.data
    return shards


class NotOnItsStage(ValueError):
    """A message is not on the devices of its stage."""


@contextlib.contextmanager
def failures_named(devices: Iterable[jax.Device]) -> Iterator[None]:
    """Adds the processes of an exchange to its errors."""
    try:
        yield
    # Depending on the backend, XLA raises a subclass of either.
    except (ValueError, RuntimeError) as error:
        indices = sorted({device.process_index for device in devices})
        raise RuntimeError(
            f"An exchange between processes {', '.join(map(str, indices))} failed. If "
            "one of them has died, restart all of them from the last checkpoint."
        ) from error
