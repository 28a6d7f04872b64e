"""Measures what stages exchange on trees of many sizes, against the least possible.

Run as a script, it prints a line for each transformation and number of leaves: the
rounds and bytes of the plan, over all layouts and numbers of stages, and the bounds of
`least_exchange`. The last column names what is wrong:

- "refused", where the transformation cannot be split at this size;
- "rounds", where a plan has more rounds than necessary;
- "bytes", where a plan sends more than necessary with the fewest rounds;
- "grows", where the rounds are more than those of the smallest tree.
"""

import argparse
import dataclasses
import itertools
import random
import re
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import functional_opt as fo
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax_cases
import third_party_cases
from least_exchange import Least, least_exchange
from optax_cases import bytes_sent, Case


# Dealt out to leaves in turn. The smallest dimension is larger than what may travel.
SHAPES = {"first": (48, 32), "hidden": (32, 48), "last": (32, 48), "scale": (512,)}
SMALLEST_DIMENSION = 32

LAYOUTS = ("contiguous", "interleaved", "random", "empty stages", "tied")

OPTIONS: dict[str, tuple[Any, ...]] = {
    "clip_norm": (None, 1.0),
    "track_norm": (False, True),
    "weight_decay": (None, 0.1),
    "accumulate": (1, 4),
    "skip_nonfinite": (False, True),
    "ema_decay": (None, 0.9),
    "state_dtype": (None, "bfloat16"),
}


def tree_of(num_leaves: int) -> Any:
    """Shapes of so many leaves, below the names that the cases' masks know."""
    names = list(itertools.islice(itertools.cycle(SHAPES), num_leaves))
    return {
        group: {f"{i:03}": SHAPES[group] for i in range(names.count(group))}
        for group in SHAPES
    }


def stages_of(layout: str, num_leaves: int, num_stages: int) -> list[Any]:
    """The stage of each leaf, in the order of the tree, or its stages."""
    contiguous = [i * num_stages // num_leaves for i in range(num_leaves)]
    if layout == "contiguous":
        return contiguous
    if layout == "empty stages":
        return [stage - stage % 3 for stage in contiguous]
    if layout == "tied":
        return [frozenset({0, num_stages - 1}), *contiguous[1:]]
    if layout == "interleaved":
        return [i % num_stages for i in range(num_leaves)]
    return random.Random(num_leaves).choices(range(num_stages), k=num_leaves)


def recipe_cases() -> Iterator[Case]:
    """A case for every combination of the options of a recipe."""
    for values in itertools.product(*OPTIONS.values()):
        chosen = dict(zip(OPTIONS, values, strict=True))
        given = {name: value for name, value in chosen.items() if value}
        if {"clip_norm", "track_norm"} <= given.keys():
            continue  # a clip keeps its norm anyway
        if "weight_decay" in given:
            given["decay_where"] = fo.Where(min_ndim=2)
        recipe = fo.Recipe(optimizer=fo.AdamW(), schedule=fo.Constant(0.1), **given)
        yield Case("Recipe", recipe.build, ", ".join(given))


def all_cases() -> list[Case]:
    """Every row of the tables that is possible, and every recipe."""
    rows = [*optax_cases.CASES, *third_party_cases.CASES]
    possible = [case for case in rows if case.equal != "impossible"]
    return [*possible, *recipe_cases()]


class Plan(NamedTuple):
    """What stages exchange, and the least that they have to."""

    rounds: int
    nbytes: int
    least: Least

    @property
    def excess(self) -> float:
        """How many times more bytes are sent than necessary."""
        return self.nbytes / (self.least.nbytes or 1)


def enlarged(case: Case, num_leaves: int, num_stages: int, layout: str) -> Case:
    """A case with a tree of so many leaves."""
    shapes = tree_of(num_leaves)
    structure = jax.tree.structure(shapes, is_leaf=lambda x: isinstance(x, tuple))
    stages = stages_of(layout, num_leaves, num_stages)
    return dataclasses.replace(
        case,
        shapes=shapes,
        stages=jax.tree.unflatten(structure, stages),
        num_stages=num_stages,
        extra_args=_on_stages(case.extra_args, num_stages),
    )


def measure(case: Case, num_leaves: int, num_stages: int, layout: str) -> Plan:
    """Splits a case's transformation on a tree of so many leaves."""
    case = enlarged(case, num_leaves, num_stages, layout)
    return plan_of(case, case.cut())


def plan_of(case: Case, staged: fo.StageLocal) -> Plan:
    """What is exchanged besides the sums of tied gradients."""
    ties, stages = staged.programs[0].ties, range(staged.partition.num_stages)
    if ties is None:
        rounds, sums = staged.rounds, 0
    else:
        rounds, sums = staged.rounds - 1, sum(map(ties.bytes_sent, stages))
    return Plan(rounds, bytes_sent(staged) - sums, least_of(case, staged))


def _on_stages(extra_args: Any, num_stages: int) -> Any:
    """Extra arguments that one stage has, on a stage that there is."""
    return extra_args and {
        name: fo.OnStage(value.value, min(value.stage, num_stages - 1))
        if isinstance(value, fo.OnStage)
        else value
        for name, value in extra_args.items()
    }


def least_of(case: Case, staged: fo.StageLocal) -> Least:
    """The least exchange of a step, and of the updates, of a case."""
    params, grads, extra = case.params, case.example_grads(), case.extra_args or {}
    update = optax.with_extra_args_support(case.build()).update
    state = jax.eval_shape(case.build().init, params)

    def step(grads: Any, state: Any, params: Any, extra: Any) -> Any:
        updates, state = update(grads, state, params, **extra)
        return updates, optax.apply_updates(params, updates), state

    values = {name: _value(value) for name, value in extra.items()}
    closed = jax.make_jaxpr(step)(grads, state, params, values)
    everywhere = frozenset(range(staged.partition.num_stages))
    owners = _owners(staged.partition.split(_numbered(params)))
    holders = _owners(staged.split_state(_numbered(state)))
    given = [
        frozenset({value.stage}) if isinstance(value, fo.OnStage) else everywhere
        for name in sorted(extra)
        for value in [extra[name]] * len(jax.tree.leaves(values[name]))
    ]
    inputs = [*owners, *holders, *owners, *given]
    results = [*owners, *owners, *holders]
    return least_exchange(closed, inputs, results, len(everywhere), SMALLEST_DIMENSION)


def _value(argument: Any) -> Any:
    value = argument.value if isinstance(argument, fo.OnStage) else argument
    return jax.tree.map(jnp.asarray, value)


def _numbered(tree: Any) -> Any:
    """The tree with a number for each leaf, of a dtype that a parameter may have."""
    leaves, structure = jax.tree.flatten(tree)
    numbers = [np.float32(number) for number in range(len(leaves))]
    return jax.tree.unflatten(structure, numbers)


def _owners(pieces: Sequence[Any]) -> list[frozenset[int]]:
    held = [{int(number) for number in jax.tree.leaves(piece)} for piece in pieces]
    return [
        frozenset(stage for stage, numbers in enumerate(held) if number in numbers)
        for number in range(len(set().union(*held)))
    ]


class Row(NamedTuple):
    """A transformation at one number of leaves, over all layouts."""

    label: str
    num_leaves: int
    plans: Sequence[Plan]
    refused: Sequence[str]

    @property
    def rounds(self) -> list[int]:
        return sorted({plan.rounds for plan in self.plans})

    def faults(self, smallest: "Row") -> list[str]:
        found = {
            "refused": bool(self.refused),
            "rounds": any(p.rounds > p.least.rounds for p in self.plans),
            "bytes": any(p.nbytes > p.least.nbytes for p in self.plans),
            "grows": max(self.rounds, default=0) > max(smallest.rounds, default=0),
        }
        return [name for name, is_found in found.items() if is_found]

    def text(self, smallest: "Row") -> str:
        worst = max(self.plans, key=lambda plan: plan.excess, default=None)
        if worst is None:
            cells = ["-"] * 5
        else:
            least = sorted({plan.least.rounds for plan in self.plans})
            per_leaf = f"{worst.nbytes / self.num_leaves:.4g}"
            cells = [_span(self.rounds), _span(least), worst.nbytes]
            cells += [worst.least.nbytes, per_leaf]
        faults = ", ".join(self.faults(smallest))
        return " | ".join(map(str, [self.label, self.num_leaves, *cells, faults]))


def _span(values: Sequence[float]) -> str:
    ends = dict.fromkeys([values[0], values[-1]])
    return "-".join(str(value) for value in ends)


def row_of(
    case: Case, num_leaves: int, all_stages: Sequence[int], layouts: Sequence[str]
) -> Row:
    plans, refused = [], []
    for num_stages, layout in itertools.product(all_stages, layouts):
        try:
            plans.append(measure(case, num_leaves, num_stages, layout))
        except Exception as error:
            message = f"{type(error).__name__}: {error}".splitlines()[0]
            refused.append(f"{num_stages} stages, {layout}: {message}")
    return Row(case.label, num_leaves, plans, refused)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--leaves", type=int, nargs="+", default=[4, 17, 40, 200])
    parser.add_argument("--stages", type=int, nargs="+", default=[2, 8, 64])
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=LAYOUTS)
    parser.add_argument("--rows", default="", help="a regular expression")
    options = parser.parse_args()
    start, count, faulty = time.time(), 0, 0
    print("row | leaves | rounds | least | bytes | least | bytes a leaf | faults")
    for case in all_cases():
        if not re.search(options.rows, case.label):
            continue
        rows = [
            row_of(case, num_leaves, options.stages, options.layouts)
            for num_leaves in options.leaves
        ]
        count += 1
        faulty += any(row.faults(rows[0]) for row in rows)
        for row in rows:
            print(row.text(rows[0]), flush=True)
            for reason in dict.fromkeys(row.refused):
                print(f"    {reason}")
    print(f"{count} rows, {faulty} with faults, in {time.time() - start:.0f} s")


if __name__ == "__main__":
    main()
