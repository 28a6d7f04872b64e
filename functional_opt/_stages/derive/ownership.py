"""Infers the stages that own each leaf of the optimizer state."""

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
    """Infers owners by calling `init` on the parameters of each stage set alone.

    All other parameters are replaced by `optax.MaskedNode`, as `optax.masked` does. The
    leaves of the state that are still created belong to the stages of this call:

        init({'a': a, 'b': MaskedNode()})  ->  count, mu['a']     on stage 0
        init({'a': MaskedNode(), 'b': b})  ->  count, mu['b']     on stage 1

    `mu['a']` is owned by stage 0, `mu['b']` by stage 1, and `count` by both.

    **Returns:** the owners; None if the transformation does not support masked
    parameters, or if its leaves have other paths then.
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
        # The `init` of a third party may raise anything for a tree it does not expect.
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
    """Infers owners from the equations in which the update reads each leaf.

    At first every leaf of the state is owned by all stages. Placing the update then
    shows where the equations that read a leaf run, and where its new value is
    computed: these stages are its owners, and the update is placed again until nothing
    changes. With `g` and `w` on stage 0:

        m2 = b * m + g      reads `m` on stage 0, where `g` is: stage 0 owns `m`
        n2 = n + 1          reads `n` everywhere: all stages own `n`

    **Arguments:**

    - `update`: a function; its last results are the new state.
    - `before`, `after`: the stage sets of its inputs before and after the state.
    - `num_stages`: the number of stages.
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
    """The owners that the user names; where that is None, the inferred `owners`."""
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
