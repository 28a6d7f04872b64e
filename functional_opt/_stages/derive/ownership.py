"""Whose is a leaf of the optimizer's state."""

from collections.abc import Sequence

import jax
import optax
from jax.extend.core import ClosedJaxpr, JaxprEqn, Var
from jaxtyping import PyTree

from ..._paths import path_text
from ..._slicing.jaxprs import variables
from ..._slicing.placed import Placed
from ..._slicing.placing import place_equations
from ..._slicing.stage_sets import NOWHERE, StageSet
from ..partition import as_stage_set, check_stage_set, StageOf
from ..trees import leaf_paths, TreeSplit


def owners_by_init(
    tx: optax.GradientTransformation, shapes: PyTree, params: TreeSplit, state: PyTree
) -> list[StageSet] | None:
    """The owners of the parameters from which alone `init` makes a leaf of the state.

    All other parameters are left out as `optax.masked` leaves them out. None if the
    transformation does not bear that, or names its state by position.
    """
    leaves = jax.tree.leaves(shapes)
    made: dict[str, StageSet] = dict.fromkeys(leaf_paths(state), NOWHERE)
    idle = frozenset(range(params.num_stages)).difference(*params.stage_sets)
    for owners in dict.fromkeys([*params.stage_sets, *(frozenset({s}) for s in idle)]):
        part = [
            leaf if stages == owners else optax.MaskedNode()
            for leaf, stages in zip(leaves, params.stage_sets, strict=True)
        ]
        try:
            state_of_part = jax.eval_shape(
                tx.init, jax.tree.unflatten(params.structure, part)
            )
        # Someone else's `init` may fail in any way on a tree that it never expected.
        except Exception:
            return None
        for path in leaf_paths(state_of_part):
            made[path] = made.get(path, NOWHERE) | owners
    known = len(made) == len(jax.tree.leaves(state)) and all(made.values())
    return list(made.values()) if known else None


def owners_by_use(
    update: ClosedJaxpr,
    *,
    before: Sequence[StageSet],
    after: Sequence[StageSet],
    num_stages: int,
) -> list[StageSet]:
    """The stages whose parameters each leaf of the state meets in the update.

    **Arguments:**

    - `update`: a function whose last results are the new state.
    - `before`, `after`: the places of its inputs before and after the state.
    - `num_stages`: how many stages there are.
    """
    inputs = update.jaxpr.invars[len(before) : len(update.jaxpr.invars) - len(after)]
    owners = [frozenset(range(num_stages))] * len(inputs)
    while True:
        stage_sets = [*before, *owners, *after]
        placed = place_equations(update, stage_sets, num_stages)
        refined = _refine(placed, inputs, owners)
        if refined == owners:
            return owners
        owners = refined


def _refine(
    placed: Placed, inputs: Sequence[Var], owners: Sequence[StageSet]
) -> list[StageSet]:
    met = dict(zip(inputs, owners, strict=True))
    for eqn in filter(_has_results, placed.equations):
        here = placed.value(eqn.outvars[0]).home
        for var in met.keys() & set(variables(eqn.invars)):
            met[var] = met[var] & here or met[var]
    results = placed.results[len(placed.results) - len(inputs) :]
    made = [placed.value(result).home for result in results]
    return [
        met[var] & stages or met[var] for var, stages in zip(inputs, made, strict=True)
    ]


def _has_results(eqn: JaxprEqn) -> bool:
    return bool(eqn.outvars)


def owners_by_word(
    stage_of: StageOf | None, state: PyTree, owners: Sequence[StageSet], num_stages: int
) -> list[StageSet]:
    """The owners that a user names, and where that is None, those that are given."""
    if stage_of is None:
        return list(owners)
    paths = jax.tree.leaves_with_path(state)
    named = [(path_text(path), stage_of(path, leaf)) for path, leaf in paths]
    stage_sets = [
        owner if stages is None else as_stage_set(path, stages)
        for (path, stages), owner in zip(named, owners, strict=True)
    ]
    for (path, _), stages in zip(named, stage_sets, strict=True):
        check_stage_set(path, stages, num_stages)
    return stage_sets
