"""Reduces functions and conds to some of their results and the equations of these."""

from collections.abc import Collection, Sequence

from jax.extend.core import ClosedJaxpr, JaxprEqn
from jax.extend.core.primitives import cond_p

from .fidelity import count_readers, keep_bits, Readers
from .jaxprs import inputs_read, keep_inputs, rebuild, variables


def keep_results(closed: ClosedJaxpr, chosen: Sequence[int]) -> ClosedJaxpr:
    """The same function with only the chosen results."""
    jaxpr = closed.jaxpr
    outvars = [jaxpr.outvars[i] for i in chosen]
    needed = set(variables(outvars))
    kept: list[JaxprEqn] = []
    for eqn in reversed(jaxpr.eqns):
        results = [i for i, var in enumerate(eqn.outvars) if var in needed]
        if results:
            kept.append(_trimmed(eqn, results))
            needed.update(variables(kept[-1].invars))
    part = rebuild(jaxpr, jaxpr.constvars, jaxpr.invars, kept[::-1], outvars)
    return ClosedJaxpr(part, closed.consts)


def _trimmed(eqn: JaxprEqn, results: Collection[int]) -> JaxprEqn:
    if eqn.primitive is not cond_p or len(results) == len(eqn.outvars):
        return eqn
    return keep_cond_results(eqn, list(results))


def keep_cond_results(eqn: JaxprEqn, chosen: Sequence[int]) -> JaxprEqn:
    """The same cond with only the chosen results, and the operands that they read."""
    branches = [_keep_branch(branch, chosen) for branch in eqn.params["branches"]]
    kept = sorted(set().union(*map(inputs_read, branches)))
    index, *operands = eqn.invars
    return eqn.replace(
        invars=[index, *(operands[i] for i in kept)],
        outvars=[eqn.outvars[i] for i in chosen],
        params={
            **eqn.params,
            "branches": tuple(keep_inputs(branch, kept) for branch in branches),
        },
    )


def _keep_branch(branch: ClosedJaxpr, chosen: Sequence[int]) -> ClosedJaxpr:
    """A branch with only the chosen results, bit-identical to those of the branch."""
    whole, part = branch.jaxpr, keep_results(branch, chosen).jaxpr
    in_whole = Readers(count_readers(whole.eqns, whole.outvars))
    equations = keep_bits(part.eqns, part.outvars, in_whole)
    kept = rebuild(part, part.constvars, part.invars, equations, part.outvars)
    return ClosedJaxpr(kept, branch.consts)
