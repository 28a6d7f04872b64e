"""Runs the programs of the stages on whole trees."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Sharding
from jaxtyping import PyTree

from .._slicing.stage_sets import stages_text
from .derive.derive import INIT, STEP, UPDATE
from .derive.slices import Leaves
from .extra import values_of
from .hyperparameters import Hyperparameters
from .partition import StagePartition
from .run.counters import Counters
from .run.devices import check_one_program, devices_text
from .run.executor import Executors, is_traced, sharding_of
from .run.extra_args import placed_extra_args, ReplicatedArrays
from .run.views import Copies
from .trees import check_stages, Pieces, TreeSplit


Homes = tuple[Sharding | None, ...]


@dataclass(frozen=True, eq=False)
class WholeTrees:
    """Runs the programs of the stages on whole trees.

    **Attributes:**

    - `hyperparameters`: what the transformation is built of.
    - `arrays`: the arrays in it, on the devices of the stages.
    - `partition`, `state_split`, `extra_split`: the splits of all trees.
    - `donates`: whether buffers of the state are donated.
    - `run_init`, `run_update`: the programs, which expect summed tied gradients.
    - `counters`: the values of the counters in states.
    - `copies`: the copies of leaves that several stages hold.
    - `meshes`: the shardings of the stages, if `meshes` of `stage_local` are set.
    """

    hyperparameters: Hyperparameters
    arrays: ReplicatedArrays
    partition: StagePartition
    state_split: TreeSplit
    extra_split: TreeSplit
    donates: bool
    run_init: Executors
    run_update: Executors
    counters: Counters
    copies: Copies
    meshes: tuple[Sharding, ...] | None

    def init(self, params: PyTree) -> PyTree:
        leaves, _ = self.partition.take_whole("params", params)
        if is_traced([leaves, self.hyperparameters.arrays]):
            check_one_program([leaves], None)
            return self.hyperparameters.tx.init(self.partition.params.tree(leaves))
        given = self._split(self.partition.params, leaves, self._homes(leaves))
        results = self.run_init.run(INIT, self._with_arrays(given))
        return self.state_split.tree(self._join(self.state_split, results, "state"))

    def update(
        self,
        updates: PyTree,
        state: PyTree,
        params: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, PyTree]:
        if params is None:
            raise ValueError(
                "`params` of `update` is None. A stage-local update requires the "
                "parameters: call `update(updates, state, params)`."
            )
        new, new_state, _ = self._run(UPDATE, updates, state, params, extra_args)
        return self.partition.params.tree(new), new_state

    def step(
        self, grads: PyTree, state: PyTree, params: PyTree, **extra_args: Any
    ) -> tuple[PyTree, PyTree]:
        new, new_state, put = self._run(STEP, grads, state, params, extra_args)
        return put(new), new_state

    def join(self, params_by_stage: Pieces, states: Pieces) -> tuple[PyTree, PyTree]:
        partition, num_stages = self.partition, self.partition.num_stages
        check_stages("params_by_stage", params_by_stage, num_stages)
        check_stages("states", states, num_stages)
        stages = range(num_stages)
        params = [partition.take("params", s, params_by_stage[s])[0] for s in stages]
        state = [self.state_split.flatten("states", s, states[s]) for s in stages]
        _, put = partition.take_whole("params", partition.merge(params_by_stage))
        whole = self._join(self.state_split, state, "state")
        joined_params = self._join(partition.params, params, "params")
        return put(joined_params), self.state_split.tree(whole)

    def split(
        self, params: PyTree, state: PyTree
    ) -> tuple[tuple[PyTree, ...], tuple[PyTree, ...]]:
        leaves, _ = self.partition.take_whole("params", params)
        homes, split = self._homes(leaves), self.state_split
        pieces = list(self.partition.split(params))
        own = self._split(self.partition.params, leaves, homes)
        for stage, piece in enumerate(pieces):
            _, put = self.partition.take("params", stage, piece)
            pieces[stage] = put(own[stage])
        states = self._split(split, split.flatten_whole("state", state), homes)
        return tuple(pieces), tuple(map(split.unflatten, range(len(states)), states))

    def _run(
        self,
        names: tuple[str, ...],
        grads: PyTree,
        state: PyTree,
        params: PyTree,
        extra_args: Mapping[str, Any],
    ) -> tuple[Leaves, PyTree, Any]:
        split = self.partition.params
        own, put = self.partition.take_whole("params", params)
        whole = self.state_split.flatten_whole("state", state)
        given = self.partition.gradients("grads", grads)
        others = [*jax.tree.leaves(extra_args), *self.hyperparameters.arrays]
        if is_traced([own, whole, given, others]):
            check_one_program([own, whole, given], self.meshes)
            return *self._traced(names, given, state, own, extra_args), put
        homes = self._homes(own)
        parts = [
            self._split(split, own, homes, donated=self.donates and names == STEP),
            self._split(self.state_split, whole, homes, donated=self.donates),
            [[given[i] for i in held] for held in split.held],
            self._extra(extra_args, parts_of=own),
        ]
        leaves = [[*p, *s, *g, *e] for p, s, g, e in zip(*parts, strict=True)]
        idle, after = self.counters.before([self.counters.of(whole)])
        results = self.run_update.run(names, self._with_arrays(leaves), idle)
        counts = [len(held) for held in split.held]
        first = [(r or ())[:n] for r, n in zip(results, counts, strict=True)]
        last = [(r or ())[n:] for r, n in zip(results, counts, strict=True)]
        new = self._join(split, first, "params", own)
        new_state = self._join(self.state_split, last, "state", whole)
        self.counters.remember([self.counters.of(new_state)], after)
        return new, self.state_split.tree(new_state), put

    def _traced(
        self,
        names: tuple[str, ...],
        grads: Leaves,
        state: PyTree,
        params: Leaves,
        extra_args: Mapping[str, Any],
    ) -> tuple[Leaves, PyTree]:
        """Calls the transformation itself: inside a larger program, on one device."""
        tx = optax.with_extra_args_support(self.hyperparameters.tx)
        split = self.partition.params
        pairs = zip(grads, params, strict=True)
        filled = [jnp.zeros_like(p) if g is None else g for g, p in pairs]
        own, values = split.tree(params), values_of(extra_args)
        updates, new_state = tx.update(split.tree(filled), state, own, **values)
        new = updates if names == UPDATE else optax.apply_updates(own, updates)
        return split.flatten_whole("updates", new), new_state

    def _extra(
        self, extra_args: Mapping[str, Any], parts_of: Leaves
    ) -> Sequence[Leaves]:
        if not (extra_args or self.extra_split.paths):
            return [()] * self.partition.num_stages
        params = [[parts_of[i] for i in held] for held in self.partition.params.held]
        here = frozenset(range(self.partition.num_stages))
        split = self.extra_split
        placed = placed_extra_args(split, extra_args, here, params, self.meshes)
        return [split.flatten("extra_args", s, piece) for s, piece in enumerate(placed)]

    def _with_arrays(self, leaves_by_stage: Sequence[Leaves]) -> list[Leaves]:
        meshes = self.meshes or [None] * len(leaves_by_stage)
        return [
            [*own, *self.arrays.at(own, mesh)]
            for own, mesh in zip(leaves_by_stage, meshes, strict=True)
        ]

    def _homes(self, params: Leaves) -> Homes:
        """The sharding of each stage: that of a parameter which it alone owns."""
        if self.meshes is not None:
            return self.meshes
        found = [None if i is None else sharding_of(params[i]) for i in self._firsts]
        known = {frozenset(s.device_set): s for s in found if s is not None}
        if len(known) == 1:
            return (*known.values(),) * len(found)
        if None in found and known:
            raise ValueError(
                f"The devices of stage {found.index(None)} are unknown, because none "
                "of the parameters that it alone owns is on a device. Pass `meshes` "
                "to `stage_local`."
            )
        return tuple(found)

    @functools.cached_property
    def _firsts(self) -> list[int | None]:
        stage_sets = self.partition.params.stage_sets
        return [
            next((i for i in held if len(stage_sets[i]) == 1), None)
            for held in self.partition.params.held
        ]

    def _split(
        self, split: TreeSplit, leaves: Leaves, homes: Homes, *, donated: bool = False
    ) -> list[list[Any]]:
        """The leaves of each stage, as views of leaves that several stages hold."""
        pieces = [[leaves[i] for i in held] for held in split.held]
        for i, copies in split.shared:
            seen: set[frozenset[jax.Device]] = set()
            for stage, position in copies:
                home = homes[stage]
                if home is None:
                    continue
                own = self.copies.view(leaves[i], home)
                if own is None:
                    raise _not_on_all(split, i, leaves[i], stage, home)
                devices = frozenset(home.device_set)
                # Stages on the same devices share a buffer, which only one may donate.
                again = donated and devices in seen
                pieces[stage][position] = jnp.copy(own) if again else own
                seen.add(devices)
        return pieces

    def _join(
        self,
        split: TreeSplit,
        leaves_by_stage: Sequence[Any],
        name: str,
        like: Leaves | None = None,
    ) -> list[Any]:
        """The leaves of the whole tree, sharded like those of `like`."""
        leaves: list[Any] = [None] * len(split.paths)
        for held, own in zip(split.held, leaves_by_stage, strict=True):
            for i, leaf in zip(held, own or (), strict=True):
                leaves[i] = leaf
        for i, copies in split.shared:
            parts = [leaves_by_stage[stage][position] for stage, position in copies]
            label = f"`{split.paths[i]}` of `{name}`"
            given = None if like is None else like[i]
            leaves[i] = self.copies.joined(parts, given, label)
        return leaves


def _not_on_all(
    split: TreeSplit, i: int, leaf: Any, stage: int, home: Sharding
) -> ValueError:
    return ValueError(
        f"`{split.paths[i]}` is held by {stages_text(split.stage_sets[i])}, but it is "
        f"on {devices_text(leaf.sharding.device_set)}, and stage {stage} is on "
        f"{devices_text(home.device_set)}. Replicate it on the devices of all of them "
        "with `jax.device_put`, as `whole.init` and `whole.join` do."
    )
