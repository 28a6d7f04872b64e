"""Whose is a leaf of the optimizer's state."""

from collections.abc import Sequence

import jax
import optax
from jax.extend.core import ClosedJaxpr, Literal
from jaxtyping import PyTree

from .placing import Place, place_equations
from .trees import Cut, leaf_paths


def owners_by_init(
    tx: optax.GradientTransformation, shapes: PyTree, params: Cut, state: PyTree
) -> list[Place] | None:
    """The stages from whose parameters alone `init` makes each leaf of the state.

    The parameters of other stages are left out as `optax.masked` leaves them out. None
    if the transformation does not bear that, or names its state by position.
    """
    leaves = jax.tree.leaves(shapes)
    made: dict[str, set[int]] = {path: set() for path in leaf_paths(state)}
    for stage in range(params.num_stages):
        part = [
            leaf if stage in place else optax.MaskedNode()
            for leaf, place in zip(leaves, params.places, strict=True)
        ]
        try:
            state_of_part = jax.eval_shape(
                tx.init, jax.tree.unflatten(params.structure, part)
            )
        # Someone else's `init` may fail in any way on a tree that it never expected.
        except Exception:
            return None
        for path in leaf_paths(state_of_part):
            made.setdefault(path, set()).add(stage)
    known = len(made) == len(jax.tree.leaves(state)) and all(made.values())
    return [frozenset(stages) for stages in made.values()] if known else None


def owners_by_use(
    update: ClosedJaxpr, params: Cut, first: int, num_leaves: int
) -> list[Place]:
    """The stages whose parameters each leaf of the state meets in the update.

    **Arguments:**

    - `update`: a function of gradients, state and parameters that returns updates,
        parameters and state.
    - `params`: how parameters (and so gradients and updates) are cut.
    - `first`: the index of the state's first leaf among the results.
    - `num_leaves`: how many leaves the state has.
    """
    everywhere = frozenset(range(params.num_stages))
    owners = [everywhere] * num_leaves
    while True:
        refined = _refine(update, params, first, owners)
        if refined == owners:
            return owners
        owners = refined


def _refine(
    update: ClosedJaxpr, params: Cut, first: int, owners: Sequence[Place]
) -> list[Place]:
    places = [*params.places, *owners, *params.places]
    placed = place_equations(update, places, params.num_stages)
    inputs = update.jaxpr.invars[len(params.places) :][: len(owners)]
    met = dict(zip(inputs, owners, strict=True))
    for eqn in placed.equations:
        for var in met.keys() & {x for x in eqn.invars if not isinstance(x, Literal)}:
            here = placed.value(eqn.outvars[0]).place
            met[var] = met[var] & here or met[var]
    results = placed.results[first : first + len(owners)]
    refined = []
    for var, result in zip(inputs, results, strict=True):
        made = placed.value(result).place
        refined.append(met[var] & made or met[var])
    return refined
