"""Converts between one array on the devices of several stages and a copy per stage.

Both directions only regroup shards, without copying them. With a parameter replicated
on stage 0 (devices 0, 1) and stage 1 (devices 2, 3):

    whole   P() on mesh [[0, 1], [2, 3]]
    views   P() on mesh [0, 1]   and   P() on mesh [2, 3]
"""

import functools
import weakref
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from .devices import device_order, devices_text, is_concrete
from .exchange import shards_of, taken


class Copies:
    """The copies of which arrays were joined, while these arrays exist.

    A step joins the counters of its state, and the next step needs their copies again.
    Making them anew takes as long as launching a program.
    """

    def __init__(self) -> None:
        self._known: dict[int, tuple[weakref.ref[Any] | None, Any]] = {}

    def view(self, leaf: Any, home: Sharding) -> Any | None:
        """As the function `view`."""
        ref, copies = self._known.get(id(leaf), (None, {}))
        found = copies.get(frozenset(home.device_set)) if copies else None
        if found is None or ref is None or ref() is not leaf:
            return view(leaf, home)
        return found

    def joined(self, copies: Sequence[Any], like: Any, label: str) -> Any:
        """As the function `joined`."""
        whole = joined(copies, like, label)
        if all(copy is not whole for copy in copies):
            forget = functools.partial(_forget, self._known, id(whole))
            devices = (frozenset(copy.sharding.device_set) for copy in copies)
            own = dict(zip(devices, copies, strict=True))
            self._known[id(whole)] = weakref.ref(whole, forget), own
        return whole


def _forget(known: dict[int, Any], key: int, _: weakref.ref[Any]) -> None:
    known.pop(key, None)


def view(leaf: Any, home: Sharding) -> Any | None:
    """The part of an array on the devices of a stage; None if some do not hold any.

    **Arguments:**

    - `leaf`: the array. A leaf that is on no device yet is returned as it is.
    - `home`: a sharding on the devices of the stage, preferred for the view.
    """
    if not is_concrete(leaf) or leaf.sharding.device_set == home.device_set:
        return leaf
    if not home.device_set <= leaf.sharding.device_set:
        return None
    like = _restricted(leaf.sharding, leaf.shape, home)
    return None if like is None else taken(shards_of(leaf), like, leaf.shape)


@functools.lru_cache(maxsize=4096)
def _restricted(
    sharding: Sharding, shape: tuple[int, ...], home: Sharding
) -> Sharding | None:
    """The sharding of a whole copy of an array on the devices of `home`, if any."""
    candidates = [home]
    if isinstance(sharding, NamedSharding):
        meshes: list[Any] = [_part(sharding.mesh, home)]
        if isinstance(home, NamedSharding):
            meshes.insert(0, home.mesh)
        for mesh in meshes:
            if mesh is not None and _axes(sharding.spec) <= set(mesh.axis_names):
                candidates.append(NamedSharding(mesh, sharding.spec))
    return next((x for x in candidates if _fits(x, sharding, shape)), None)


def _part(mesh: Any, home: Sharding) -> Mesh | None:
    """The submesh with the devices of `home`, if they form a box of the mesh."""
    inside = [device in home.device_set for device in mesh.devices.flat]
    where = np.nonzero(np.array(inside).reshape(mesh.devices.shape))
    box = mesh.devices[np.ix_(*map(np.unique, where))]
    return Mesh(box, mesh.axis_names) if box.size == len(home.device_set) else None


def _axes(spec: PartitionSpec) -> set[str]:
    names: set[str] = set()
    for entry in spec:
        names.update(
            entry if isinstance(entry, tuple) else [entry] * (entry is not None)
        )
    return names


def _fits(one: Sharding, other: Sharding, shape: tuple[int, ...]) -> bool:
    """Whether the devices in both shardings hold the same part of an array in both."""
    if len(getattr(one, "spec", ())) > len(shape):
        return False
    indices = [s.devices_indices_map(shape) for s in (one, other)]
    return all(
        _bounds(indices[0][device], shape) == _bounds(indices[1][device], shape)
        for device in indices[0].keys() & indices[1].keys()
    )


def _bounds(index: Any, shape: tuple[int, ...]) -> list[Any]:
    return [part.indices(size) for part, size in zip(index, shape, strict=True)]


def joined(copies: Sequence[Any], like: Any, label: str) -> Any:
    """One array of the copies of several stages.

    **Arguments:**

    - `copies`: the copies of the stages.
    - `like`: an array on the same devices; the result is sharded like it if possible.
    - `label`: the name of the array in errors.
    """
    shardings, shape = tuple(copy.sharding for copy in copies), copies[0].shape
    apart = _apart(shardings)
    if len(apart) == 1:
        return copies[apart[0]]
    given = like.sharding if is_concrete(like) else None
    sharding = _united(shardings, given, shape)
    if sharding is None:
        devices = "; ".join(devices_text(shardings[k].device_set) for k in apart)
        raise ValueError(
            f"{label} cannot be one array, because the stages that own it shard it "
            f"differently, on {devices}. Shard it equally on each stage."
        )
    shards = shards_of(*(copies[k] for k in apart))
    return jax.make_array_from_single_device_arrays(
        shape, sharding, [shards[d] for d in device_order(sharding) if d in shards]
    )


@functools.lru_cache(maxsize=4096)
def _apart(shardings: tuple[Sharding, ...]) -> tuple[int, ...]:
    """The first position of each set of devices."""
    firsts: dict[frozenset[jax.Device], int] = {}
    for k, sharding in enumerate(shardings):
        firsts.setdefault(frozenset(sharding.device_set), k)
    return tuple(firsts.values())


@functools.lru_cache(maxsize=4096)
def _united(
    shardings: tuple[Sharding, ...], given: Sharding | None, shape: tuple[int, ...]
) -> Sharding | None:
    """The sharding of one array made of copies with these shardings, if any."""
    apart = [shardings[k] for k in _apart(shardings)]
    devices = frozenset().union(*(s.device_set for s in apart))
    for candidate in (given, _stacked(apart), _replicated(apart)):
        if candidate is not None and candidate.device_set == devices:
            if all(_fits(candidate, one, shape) for one in apart):
                return candidate
    return None


def _stacked(shardings: Sequence[Sharding]) -> Sharding | None:
    """Meshes of equal shape, stacked along a new axis."""
    named = [s for s in shardings if isinstance(s, NamedSharding)]
    if len(named) < len(shardings):
        return None
    first = named[0]
    if any(s.mesh.shape != first.mesh.shape or s.spec != first.spec for s in named):
        return None
    name = "stage"
    while name in first.mesh.axis_names:
        name += "_"
    stacked = np.stack([np.asarray(s.mesh.devices) for s in named])
    mesh = Mesh(stacked, (name, *first.mesh.axis_names))
    return NamedSharding(mesh, first.spec)


def _replicated(shardings: Sequence[Sharding]) -> Sharding:
    devices = [device for s in shardings for device in device_order(s)]
    return NamedSharding(Mesh(np.array(devices), ("stage",)), PartitionSpec())
