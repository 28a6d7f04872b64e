"""Keeps XLA to what it does with the whole function, where a slice would change it.

XLA divides by a scalar that nothing else reads by multiplying with its reciprocal,
which rounds differently. A scalar that all parameters share, such as a bias correction,
may have one reader in a slice: there its division is made opaque.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, JaxprEqn, Var
from jax.extend.core.primitives import convert_element_type_p, copy_p, div_p
from jaxtyping import Array

from .jaxprs import Atom, keep_results, rebuild, replace_by, shape_of, variables


def count_readers(
    equations: Sequence[JaxprEqn], results: Iterable[Atom]
) -> Counter[Var]:
    """How often each value is read, by whatever name."""
    original = _original_names(equations)
    read = [v for eqn in equations if not _only_renames(eqn) for v in eqn.invars]
    return Counter(original.get(v, v) for v in variables([*read, *results]))


def keep_divisions(
    equations: Sequence[JaxprEqn], results: Sequence[Atom], in_whole: Counter[Var]
) -> list[JaxprEqn]:
    """Makes those divisions opaque whose divisor has lost its other readers.

    **Arguments:**

    - `equations`, `results`: the slice.
    - `in_whole`: how often each value is read in the whole function.
    """
    original = _original_names(equations)
    in_slice = count_readers(equations, results)
    kept = []
    for eqn in equations:
        divisors = [original.get(var, var) for var in _broadcast_divisors(eqn)]
        alone = [var for var in divisors if in_slice[var] == 1 < in_whole[var]]
        kept += replace_by(eqn, _divide_opaquely) if alone else [eqn]
    return kept


def keep_branch(branch: ClosedJaxpr, chosen: Sequence[int]) -> ClosedJaxpr:
    """A branch of a `cond` with only the chosen results, which keep their bits."""
    whole, part = branch.jaxpr, keep_results(branch, chosen).jaxpr
    in_whole = count_readers(whole.eqns, whole.outvars)
    equations = keep_divisions(part.eqns, part.outvars, in_whole)
    kept = rebuild(part, part.constvars, part.invars, equations, part.outvars)
    return ClosedJaxpr(kept, branch.consts)


def _broadcast_divisors(eqn: JaxprEqn) -> list[Var]:
    """The scalar by which an equation divides an array, if that is what it does."""
    if eqn.primitive is not div_p:
        return []
    dividend, divisor = map(shape_of, eqn.invars)
    return variables(eqn.invars[1:]) if divisor.shape == () != dividend.shape else []


def _original_names(equations: Sequence[JaxprEqn]) -> dict[Var, Var]:
    original: dict[Var, Var] = {}
    for eqn in filter(_only_renames, equations):
        for source in variables(eqn.invars):
            original[eqn.outvars[0]] = original.get(source, source)
    return original


def _only_renames(eqn: JaxprEqn) -> bool:
    """Copies, and conversions of nothing but the weak type."""
    if eqn.primitive is convert_element_type_p:
        return shape_of(eqn.invars[0]) == shape_of(eqn.outvars[0])
    return eqn.primitive is copy_p


def _divide_opaquely(dividend: Array, divisor: Array) -> Array:
    divisor = jnp.broadcast_to(divisor, dividend.shape)
    return jax.lax.div(dividend, jax.lax.optimization_barrier(divisor))
