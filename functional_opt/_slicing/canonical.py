"""Recognizes equal jaxprs, so that equal slices share one compiled program.

Variables are compared by the position of their definition, constants and functions by
identity, and everything else by type and value. Objects that cannot be compared count
as different: a missed match costs a compilation, a false one would be wrong.
"""

from collections.abc import Callable, Hashable, Mapping
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var


class Canonical:
    """Numbers jaxprs such that equal jaxprs have equal numbers.

    Each jaxpr, including inner ones, is visited once. Objects that are compared by
    identity are kept alive, because another object could otherwise get the same `id`.
    """

    def __init__(self) -> None:
        self._numbers: dict[Hashable, int] = {}
        self._seen: dict[int, tuple[Any, int]] = {}

    def number(self, key: Hashable) -> int:
        """The same number for the same key."""
        return self._numbers.setdefault(key, len(self._numbers))

    def closed_jaxpr(self, closed: ClosedJaxpr) -> int:
        consts = tuple(map(self._value, closed.consts))
        return self.number((ClosedJaxpr, self._jaxpr(closed.jaxpr), consts))

    def _jaxpr(self, jaxpr: Jaxpr) -> int:
        return self._once(jaxpr, self._number_jaxpr)

    def _number_jaxpr(self, jaxpr: Jaxpr) -> int:
        position: dict[Var, int] = {}

        def define(var: Var) -> Hashable:
            position[var] = len(position)
            return var.aval

        def read(atom: Any) -> Hashable:
            return self._literal(atom) if isinstance(atom, Literal) else position[atom]

        parts: list[Hashable] = [Jaxpr]
        parts += [tuple(map(define, v)) for v in (jaxpr.constvars, jaxpr.invars)]
        for eqn in jaxpr.eqns:
            operands = tuple(map(read, eqn.invars))
            parts.append((self._operation(eqn), operands, *map(define, eqn.outvars)))
        parts += [tuple(map(read, jaxpr.outvars)), frozenset(jaxpr.effects)]
        return self.number(tuple(parts))

    def _operation(self, eqn: JaxprEqn) -> Hashable:
        context = self._once(eqn.ctx, self._number_slots)
        params = tuple((name, self._value(eqn.params[name])) for name in eqn.params)
        return eqn.primitive, params, frozenset(eqn.effects), context

    def _literal(self, literal: Literal) -> Hashable:
        return Literal, literal.aval, np.asarray(literal.val).tobytes()

    def _value(self, value: Any) -> Hashable:
        kind = type(value)
        if isinstance(value, ClosedJaxpr):
            return self.closed_jaxpr(value)
        if isinstance(value, Jaxpr):
            return self._jaxpr(value)
        if isinstance(value, tuple | list):
            return kind, tuple(map(self._value, value))
        if isinstance(value, Mapping):
            return kind, tuple((k, self._value(value[k])) for k in value)
        # By `==`, 0.0 equals -0.0 and NaN does not equal itself; bytes tell them apart.
        if isinstance(value, float | complex | np.ndarray | np.generic):
            array = np.asarray(value)
            return kind, array.dtype, array.shape, array.tobytes()
        if isinstance(value, jax.Array) or not _is_hashable(value):
            return kind, self._once(value, lambda value: self.number(id(value)))
        return kind, value

    def _number_slots(self, value: Any) -> int:
        slots = [s for s in type(value).__slots__ if not s.startswith("__")]
        return self.number(
            (type(value), *(self._value(getattr(value, slot, None)) for slot in slots))
        )

    def _once(self, value: Any, number: Callable[[Any], int]) -> int:
        if id(value) not in self._seen:
            self._seen[id(value)] = value, number(value)
        return self._seen[id(value)][1]


def _is_hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True
