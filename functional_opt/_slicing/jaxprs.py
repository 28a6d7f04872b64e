"""Pure helpers on jaxprs: variables they read, sizes of values, rewritten copies."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, jaxpr_as_fun, JaxprEqn, Literal, Var
from jaxtyping import Array


Atom = Var | Literal


def variables(atoms: Iterable[Atom]) -> list[Var]:
    return [atom for atom in atoms if isinstance(atom, Var)]


def used(equations: Iterable[JaxprEqn], results: Iterable[Atom]) -> set[Var]:
    """The variables that the equations or the results read."""
    read = {var for eqn in equations for var in variables(eqn.invars)}
    return read.union(variables(results))


def rebuild(
    like: Jaxpr,
    constvars: Sequence[Var],
    invars: Sequence[Var],
    equations: Sequence[JaxprEqn],
    outvars: Sequence[Atom],
) -> Jaxpr:
    return like.replace(
        constvars=list(constvars),
        invars=list(invars),
        eqns=list(equations),
        outvars=list(outvars),
        debug_info=like.debug_info.with_unknown_names(),
    )


def inputs_read(closed: ClosedJaxpr) -> set[int]:
    jaxpr = closed.jaxpr
    read = used(jaxpr.eqns, jaxpr.outvars)
    return {i for i, var in enumerate(jaxpr.invars) if var in read}


def keep_inputs(closed: ClosedJaxpr, chosen: Sequence[int]) -> ClosedJaxpr:
    """The same function of the chosen inputs only; it must not read the others."""
    jaxpr = closed.jaxpr
    invars = [jaxpr.invars[i] for i in chosen]
    trimmed = rebuild(jaxpr, jaxpr.constvars, invars, jaxpr.eqns, jaxpr.outvars)
    return ClosedJaxpr(trimmed, closed.consts)


def shape_of(atom: Atom) -> jax.ShapeDtypeStruct:
    aval: Any = atom.aval
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype)


def shape(atom: Atom) -> tuple[int, ...]:
    """The shape of a value; `()` for a token."""
    return getattr(atom.aval, "shape", ())


def size(atom: Atom) -> int:
    """The number of elements of a value."""
    return math.prod(shape(atom))


def is_key(atom: Atom) -> bool:
    """Whether a value is a typed PRNG key or an array of such keys."""
    dtype = getattr(atom.aval, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jax.dtypes.extended)


def nbytes(atom: Atom) -> int | float:
    """The size of a value in bytes; infinite for typed PRNG keys, which are opaque."""
    dtype = getattr(atom.aval, "dtype", None)
    if dtype is None or is_key(atom):
        return math.inf
    return size(atom) * dtype.itemsize


def body_of_call(eqn: JaxprEqn) -> ClosedJaxpr:
    params = eqn.params
    body = params["jaxpr"] if "jaxpr" in params else params["call_jaxpr"]
    return ClosedJaxpr(body, ()) if isinstance(body, Jaxpr) else body


def inner_jaxprs(eqn: JaxprEqn) -> list[Jaxpr]:
    """The functions that an equation calls: bodies and branches."""
    return [jaxpr for param in eqn.params.values() for jaxpr in _jaxprs_in(param)]


def _jaxprs_in(param: Any) -> list[Jaxpr]:
    if isinstance(param, tuple | list):
        return [jaxpr for part in param for jaxpr in _jaxprs_in(part)]
    if isinstance(param, ClosedJaxpr):
        return [param.jaxpr]
    return [param] if isinstance(param, Jaxpr) else []


def unroll(eqn: JaxprEqn) -> ClosedJaxpr:
    """A scan of static length as straight-line code.

    A loop rounds its carry to its dtype after each iteration. In straight-line code the
    pass `simplify-fp-conversions` of XLA keeps a narrow dtype such as bfloat16 in
    float32 from one iteration to the next; `reduce_precision` restores the rounding.
    See https://github.com/jax-ml/jax/issues/6283.
    """
    body, length = jaxpr_as_fun(eqn.params["jaxpr"]), eqn.params["length"]
    num_consts, num_carry = eqn.params["num_consts"], eqn.params["num_carry"]

    def steps(*operands: Array) -> list[Array]:
        consts, carry = operands[:num_consts], operands[num_consts:][:num_carry]
        slices: list[Any] = [None] * length
        order = range(length)
        for i in reversed(order) if eqn.params["reverse"] else order:
            rows = [x[i] for x in operands[num_consts + num_carry :]]
            results = list(map(_rounded, body(*consts, *carry, *rows)))
            carry, slices[i] = results[:num_carry], results[num_carry:]
        return [*carry, *(jnp.stack(parts) for parts in zip(*slices, strict=True))]

    return jax.make_jaxpr(steps)(*map(shape_of, eqn.invars))


def _rounded(x: Array) -> Array:
    if not jnp.issubdtype(x.dtype, jnp.floating) or x.dtype.itemsize >= 4:
        return x
    kind = jnp.finfo(x.dtype)
    return jax.lax.reduce_precision(x, kind.nexp, kind.nmant)


def replace_by(eqn: JaxprEqn, function: Callable[..., Any]) -> list[JaxprEqn]:
    """The equations of a function, in place of one equation of the same signature."""
    jaxpr = jax.make_jaxpr(function)(*map(shape_of, eqn.invars)).jaxpr
    name = dict(zip(jaxpr.invars, eqn.invars, strict=True))
    name.update(zip(jaxpr.outvars, eqn.outvars, strict=True))

    def rename(atom: Atom) -> Atom:
        return (
            atom if isinstance(atom, Literal) else name.setdefault(atom, Var(atom.aval))
        )

    return [
        inner.replace(
            invars=list(map(rename, inner.invars)),
            outvars=list(map(rename, inner.outvars)),
        )
        for inner in jaxpr.eqns
    ]
