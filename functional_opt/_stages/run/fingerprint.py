"""Digests of functions that are equal in every process, to compare their plans."""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var


def digest(parts: Iterable[str | bytes]) -> np.ndarray:
    """The SHA-256 of all parts, as eight words."""
    found = hashlib.sha256()
    for part in parts:
        raw = part.encode() if isinstance(part, str) else part
        # The length keeps parts apart: ["ab", "c"] and ["a", "bc"] differ.
        found.update(len(raw).to_bytes(8, "little"))
        found.update(raw)
    return np.frombuffer(found.digest(), np.uint32)


def parts_of(closed: ClosedJaxpr) -> Iterator[str | bytes]:
    """The parts of a function to compare: everything that may change its results."""
    yield from parts_of_arrays(closed.consts)
    yield from _jaxpr_parts(closed.jaxpr)


def parts_of_arrays(arrays: Iterable[Any]) -> Iterator[str | bytes]:
    """What to compare of some arrays: their values."""
    for array in arrays:
        yield from _value_parts(array)


def _jaxpr_parts(jaxpr: Jaxpr) -> Iterator[str | bytes]:
    """The equations, with each variable named by the position of its definition."""
    numbers: dict[Var, int] = {}

    def define(var: Var) -> str:
        numbers[var] = len(numbers)
        return var.aval.str_short()

    def read(atom: Var | Literal) -> Iterator[str | bytes]:
        if isinstance(atom, Literal):
            yield from _value_parts(atom.val)
        else:
            yield str(numbers[atom])

    for variables in (jaxpr.constvars, jaxpr.invars):
        yield "inputs"
        yield from map(define, variables)
    for eqn in jaxpr.eqns:
        yield from _operation_parts(eqn)
        for atom in eqn.invars:
            yield from read(atom)
        yield from map(define, eqn.outvars)
    yield "results"
    for atom in jaxpr.outvars:
        yield from read(atom)


def _operation_parts(eqn: JaxprEqn) -> Iterator[str | bytes]:
    yield eqn.primitive.name
    for name in sorted(eqn.params):
        yield name
        yield from _value_parts(eqn.params[name])


def _value_parts(value: Any) -> Iterator[str | bytes]:
    if isinstance(value, ClosedJaxpr):
        yield from parts_of(value)
    elif isinstance(value, Jaxpr):
        yield from _jaxpr_parts(value)
    elif isinstance(value, tuple | list):
        yield f"{type(value).__name__} of {len(value)}"
        for item in value:
            yield from _value_parts(item)
    elif isinstance(value, Mapping):
        yield from _value_parts(sorted(value.items(), key=repr))
    elif isinstance(value, set | frozenset):
        yield from sorted(digest(_value_parts(item)).tobytes() for item in value)
    elif isinstance(value, jax.Array | np.ndarray | np.generic):
        yield from _array_parts(value)
    elif callable(value) and not isinstance(value, type):
        yield _name_of(value)
    else:
        yield _without_addresses(repr(value))


def _array_parts(array: Any) -> Iterator[str | bytes]:
    yield f"{array.dtype}{array.shape}"
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    if isinstance(array.dtype, np.dtype):
        yield np.asarray(array).tobytes()


def _name_of(value: Callable[..., Any]) -> str:
    named = getattr(value, "__qualname__", None)
    return f"{value.__module__}.{named}" if named else _without_addresses(repr(value))


def _without_addresses(text: str) -> str:
    return re.sub(r"0x[0-9a-f]+", "", text)
