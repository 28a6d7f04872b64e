"""Which dimensions of a value are dimensions of a parameter.

A value without such a dimension may travel between stages: a norm, a counter, a history
of ten losses. Whether a transformation can be split is therefore independent of the
sizes of the parameters. Each equation propagates *marks*: a sum over an axis drops its
mark, a matrix product keeps the marks of rows and columns, and so on. A dimension that
only the static shape of an equation introduces has no mark. That is safe, because the
operand that was broadcast is smaller than the result, and travels in its place.

For `norm = sqrt(sum(x ** 2))` with `x` of shape `(512,)`: `x` and `x ** 2` are marked
`(True,)`, the sum and its root `()`.
"""

import itertools
import operator
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import SupportsIndex

from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal

from .jaxprs import Atom, body_of_call, is_key, shape


# For each dimension of a value, whether it is a dimension of a parameter.
Marks = tuple[bool, ...]
Rule = Callable[[JaxprEqn, Sequence[Marks]], list[Marks]]


def marks_of_results(eqn: JaxprEqn, operands: Sequence[Marks]) -> list[Marks]:
    """The marks of the results of an equation."""
    name = eqn.primitive.name
    if name == "random_bits":  # A typed key cannot travel in place of its bits.
        return [(True,) * len(shape(var)) for var in eqn.outvars]
    if not any(map(any, operands)) and not any(map(is_key, eqn.invars)):
        return [_none(var) for var in eqn.outvars]
    if name.startswith(("reduce_", "arg")) and "axes" in eqn.params:
        return [_without(operands[0], eqn.params["axes"])] * len(eqn.outvars)
    if name in _RULES:
        return _RULES[name](eqn, operands)
    if _is_elementwise(eqn):
        return [_elementwise(eqn, operands)] * len(eqn.outvars)
    # An operation without a rule may do anything to dimensions: all may be marked.
    return [(True,) * len(shape(var)) for var in eqn.outvars]


def _none(atom: Atom) -> Marks:
    return (False,) * len(shape(atom))


def _either(*marks: Marks) -> Marks:
    return tuple(map(any, zip(*marks, strict=True)))


def _without(marks: Marks, axes: Sequence[SupportsIndex]) -> Marks:
    return tuple(mark for axis, mark in enumerate(marks) if axis not in axes)


def _is_elementwise(eqn: JaxprEqn) -> bool:
    """Whether each operand has the shape of the results or broadcasts to it."""
    results = {shape(var) for var in eqn.outvars}
    return len(results) == 1 and all(
        given in ((), *results) or _broadcasts(given, *results)
        for given in map(shape, eqn.invars)
    )


def _broadcasts(given: Sequence[int], result: Sequence[int]) -> bool:
    sizes = zip(given, result, strict=False)
    return len(given) == len(result) and all(old in (1, new) for old, new in sizes)


def _elementwise(eqn: JaxprEqn, operands: Sequence[Marks]) -> Marks:
    result = shape(eqn.outvars[0])
    marks = [(False,) * len(result)]
    for atom, given in zip(eqn.invars, operands, strict=True):
        if len(given) == len(result):
            sizes = zip(given, shape(atom), result, strict=True)
            marks.append(tuple(mark and old == new for mark, old, new in sizes))
    return _either(*marks)


def _each(_: JaxprEqn, operands: Sequence[Marks]) -> list[Marks]:
    return list(operands)


def _first(eqn: JaxprEqn, operands: Sequence[Marks]) -> list[Marks]:
    return [operands[0]] * len(eqn.outvars)


def _transpose(eqn: JaxprEqn, operands: Sequence[Marks]) -> list[Marks]:
    return [tuple(operands[0][axis] for axis in eqn.params["permutation"])]


def _squeeze(eqn: JaxprEqn, operands: Sequence[Marks]) -> list[Marks]:
    return [_without(operands[0], eqn.params["dimensions"])]


def _broadcast(eqn: JaxprEqn, operands: Sequence[Marks]) -> list[Marks]:
    marks = list(_none(eqn.outvars[0]))
    for mark, axis in zip(operands[0], eqn.params["broadcast_dimensions"], strict=True):
        marks[axis] = mark
    return [tuple(marks)]


def _reshape(eqn: JaxprEqn, operands: Sequence[Marks]) -> list[Marks]:
    """Marks the dimensions that a marked dimension is split into or merged with.

    From `(512, 4, 3)` to `(512, 12)` the runs are `512 -> 512` and `4, 3 -> 12`: 12 is
    marked if 4 or 3 is.
    """
    before, after = shape(eqn.invars[0]), shape(eqn.outvars[0])
    marks: list[bool] = []
    for old, new in _factors(before, after):
        marks += [any(operands[0][axis] for axis in old)] * len(new)
    return [tuple(marks)]


def _factors(before: Sequence[int], after: Sequence[int]) -> list[tuple[range, range]]:
    """The shortest runs of axes of two shapes that have equal sizes."""
    ends = [dict(_ends(sizes)) for sizes in (before, after)]
    runs, start = [], (0, 0)
    for size in sorted(ends[0].keys() & ends[1].keys()):
        stop = ends[0][size], ends[1][size]
        runs.append((range(start[0], stop[0]), range(start[1], stop[1])))
        start = stop
    return runs


def _ends(sizes: Sequence[int]) -> list[tuple[int, int]]:
    """For each product of leading sizes, the number of axes that it covers."""
    products = itertools.accumulate(sizes, operator.mul, initial=1)
    return [(product, axis) for axis, product in enumerate(products)]


def _concatenate(_: JaxprEqn, operands: Sequence[Marks]) -> list[Marks]:
    return [_either(*operands)]


def _slice(eqn: JaxprEqn, operands: Sequence[Marks]) -> list[Marks]:
    """A dimension loses its mark if the slice keeps one entry of several."""
    before, after = shape(eqn.invars[0]), shape(eqn.outvars[0])
    sizes = zip(operands[0], before, after, strict=True)
    return [tuple(mark and not new == 1 < old for mark, old, new in sizes)]


def _gather(eqn: JaxprEqn, operands: Sequence[Marks]) -> list[Marks]:
    numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    gone = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    kept = iter(
        mark and not size == 1 < old
        for axis, (mark, size, old) in enumerate(
            zip(operands[0], sizes, shape(eqn.invars[0]), strict=True)
        )
        if axis not in gone
    )
    rows = iter(operands[1][:-1])
    rank = range(len(shape(eqn.outvars[0])))
    return [tuple(next(kept if i in numbers.offset_dims else rows) for i in rank)]


def _dot(eqn: JaxprEqn, operands: Sequence[Marks]) -> list[Marks]:
    (left_sums, right_sums), (left_batch, right_batch) = eqn.params["dimension_numbers"]
    left, right = operands
    batch = (left[i] or right[j] for i, j in zip(left_batch, right_batch, strict=True))
    rows = _without(left, (*left_sums, *left_batch))
    return [(*batch, *rows, *_without(right, (*right_sums, *right_batch)))]


def _top_k(eqn: JaxprEqn, operands: Sequence[Marks]) -> list[Marks]:
    return [(*operands[0][:-1], False)] * len(eqn.outvars)


def _called(eqn: JaxprEqn, operands: Sequence[Marks]) -> list[Marks]:
    return _of_body(body_of_call(eqn), operands)


def _cond(eqn: JaxprEqn, operands: Sequence[Marks]) -> list[Marks]:
    cases = [_of_body(branch, operands[1:]) for branch in eqn.params["branches"]]
    return [_either(*marks) for marks in zip(*cases, strict=True)]


def _while(eqn: JaxprEqn, operands: Sequence[Marks]) -> list[Marks]:
    first = eqn.params["cond_nconsts"]
    start = first + eqn.params["body_nconsts"]
    consts, carry = operands[first:start], operands[start:]
    body = eqn.params["body_jaxpr"]
    return _fixpoint(lambda carry: _of_body(body, [*consts, *carry]), carry)


def _scan(eqn: JaxprEqn, operands: Sequence[Marks]) -> list[Marks]:
    start = eqn.params["num_consts"]
    stop = start + eqn.params["num_carry"]
    consts, carry, rows = operands[:start], operands[start:stop], operands[stop:]
    leading = any(marks[0] for marks in rows)
    rows = [marks[1:] for marks in rows]

    def step(carry: Sequence[Marks]) -> list[Marks]:
        return _of_body(eqn.params["jaxpr"], [*consts, *carry, *rows])

    carry = _fixpoint(lambda carry: step(carry)[: len(carry)], carry)
    return [*carry, *((leading, *marks) for marks in step(carry)[len(carry) :])]


def _fixpoint(
    step: Callable[[Sequence[Marks]], Sequence[Marks]], carry: Sequence[Marks]
) -> list[Marks]:
    """The marks of the carry of a loop, after any number of iterations."""
    while True:
        after = [_either(*pair) for pair in zip(carry, step(carry), strict=True)]
        if after == list(carry):
            return after
        carry = after


def _of_body(body: ClosedJaxpr, operands: Sequence[Marks]) -> list[Marks]:
    jaxpr = body.jaxpr
    marks = {var: _none(var) for var in jaxpr.constvars}
    marks.update(zip(jaxpr.invars, operands, strict=True))

    def read(atom: Atom) -> Marks:
        return _none(atom) if isinstance(atom, Literal) else marks[atom]

    for eqn in jaxpr.eqns:
        results = marks_of_results(eqn, [read(atom) for atom in eqn.invars])
        marks.update(zip(eqn.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


CALLS = (
    *("checkpoint", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call"),
    *("jit", "pjit", "remat2"),
)
_RULES: Mapping[str, Rule] = MappingProxyType(
    {
        "broadcast_in_dim": _broadcast,
        "concatenate": _concatenate,
        "cond": _cond,
        "dot_general": _dot,
        "dynamic_slice": _slice,
        "dynamic_update_slice": _first,
        "gather": _gather,
        "optimization_barrier": _each,
        "pad": _first,
        "reshape": _reshape,
        "scan": _scan,
        "scatter": _first,
        "scatter-add": _first,
        "slice": _slice,
        "split": _first,
        "squeeze": _squeeze,
        "top_k": _top_k,
        "transpose": _transpose,
        "while": _while,
        **dict.fromkeys(CALLS, _called),
    }
)
