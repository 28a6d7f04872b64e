"""Writes the page about states that are sharded inside a stage.

For each transformation of `optax_cases`, with `shard_state` over four devices, it finds
how equal three steps are to Optax on one device. `test_shard_state` checks some of them
on many leaves and stages. As a script, it writes the page.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import functional_opt as fo
import jax
import numpy as np
import optax
from functional_opt.testing import Grade
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from optax_cases import Case, CASES


PAGE = Path(__file__).parent.parent / "docs" / "sharded_states.md"
STEPS = 3
GRADES: tuple[Grade, ...] = get_args(Grade)
KINDS = (*GRADES, "different", "nothing to shard")

START = """\
# Sharded states of Optax

With `shard_state` of `stage_local`, the devices of a stage share
[its state](stage_local.md#a-state-that-is-sharded-inside-a-stage). The compiler then
computes on parts of matrices, and adds sums over a sharded dimension in another order.
This page compares every transformation of [all of Optax](optax.md) with Optax on one
device, on four matrices and vectors whose state is sharded over four devices:

- **exact**: parameters and state are equal bit for bit after each of {steps} steps.
- **close**, **bounded**: [equal up to rounding](ideas/equal.md), each step starting
  from the state of the whole tree.
- **different**: by more than that.
- **nothing to shard**: the state has no leaf of the shape of a parameter.

The grade is the one found on these parameters; those of other shapes may round
differently.

`nox -s table` writes this page.

| equal | transformations |
|---|---|
"""


def text() -> str:
    found: dict[str, list[str]] = {kind: [] for kind in KINDS}
    for case in cases():
        kind = kind_of(case)
        print(f"{case.label}: {kind}", flush=True)
        found[kind].append(label(case))
    rows = [
        f"| {kind} | {'; '.join(names)} |" for kind, names in found.items() if names
    ]
    return START.format(steps=STEPS) + "\n".join(rows) + "\n"


def label(case: Case) -> str:
    return f"`{case.name}`" + (f" ({case.variant})" if case.variant else "")


def cases() -> Iterator[Case]:
    """The cases that can be split, except for gradients per example and `OnStage`."""
    for case in CASES:
        extra = (case.extra_args or {}).values()
        is_usual = case.batch is None and fo.OnStage not in map(type, extra)
        if case.equal != "impossible" and not case.pending and is_usual:
            yield case


def kind_of(case: Case) -> str:
    with case.ranks():
        training = Training(case)
        if not training.is_sharded():
            return "nothing to shard"
        worst = 0
        for number in range(STEPS):
            worst = max(worst, training.grade_of_step(number, exact=worst == 0))
    return KINDS[worst]


class Training:
    """A transformation with a sharded state, and the same one on one device."""

    def __init__(self, case: Case) -> None:
        self._tx, self._extra = case.build(), case.extra_args or {}
        mesh = Mesh(np.array(jax.devices()[:4]), ("data",))
        self._replicated = NamedSharding(mesh, PartitionSpec())
        self._partition = fo.partition(case.params, 0)
        self.staged = fo.stage_local(
            self._tx,
            case.params,
            self._partition,
            meshes=[mesh],
            shard_state="data",
            extra_args=case.extra_args,
        )
        self._whole = _normal(case.params, 0)
        self._state = jax.jit(self._tx.init)(self._whole)
        self._pieces = self._put(self._whole)
        self._states = self.staged.init(self._pieces)
        self._grads = case.grads() or [_normal(case.params, k) for k in (1, 2, 3)]
        self._step = jax.jit(self._whole_step)

    def _put(self, tree: Any) -> Any:
        return tuple(
            jax.device_put(p, self._replicated) for p in self._partition.split(tree)
        )

    def _whole_step(self, grads: Any, state: Any, params: Any) -> Any:
        update = optax.with_extra_args_support(self._tx).update
        updates, state = update(grads, state, params, **self._extra)
        return optax.apply_updates(params, updates), state

    def is_sharded(self) -> bool:
        leaves = jax.tree.leaves(self._states)
        return not all(leaf.sharding.is_fully_replicated for leaf in leaves)

    def grade_of_step(self, number: int, exact: bool) -> int:
        """The index of the grade of a step; alone, if one before was not exact."""
        if not exact:
            self._pieces = self._put(self._whole)
            self._states = self.staged.split_state(self._state, self._pieces)
        grads = self._grads[number]
        self._pieces, self._states = self.staged.step(
            self._put(grads), self._states, self._pieces, **self._extra
        )
        self._whole, self._state = self._step(grads, self._state, self._whole)
        found = (
            self._partition.merge(self._pieces),
            self.staged.merge_state(self._states),
        )
        for index, grade in enumerate(GRADES):
            try:
                fo.testing.assert_equal(found, (self._whole, self._state), grade=grade)
            except AssertionError:
                continue
            return index
        return len(GRADES)


def _normal(tree: Any, seed: int) -> Any:
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    normal = [
        jax.random.normal(key, leaf.shape, leaf.dtype)
        for key, leaf in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, normal)


if __name__ == "__main__":
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
    PAGE.write_text(text())
