"""How little stages can exchange: the fewest rounds, and with these a bound on bytes.

It knows nothing of how the library plans. A value may travel if it has fewer elements
than the smallest dimension of a parameter, and any stage may compute any equation.
Then the first round after which a value can be on a stage follows from its operands:

    a = sum(x)      x on stage 0: there after 0 rounds, elsewhere after 1
    b = sum(y)      y on stage 1: there after 0 rounds, elsewhere after 1
    c = a + b       on every stage after 1 round

What a stage sends must separate its inputs from the results of other stages: the
smallest such set, by bytes, is a minimum cut. `c` is no candidate for stage 0, as it
is not there before the last round. The bound is the sum over the stages. What several
stages have, none of them has to send: but together they do, which is a cut, too.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, jaxpr_as_fun, JaxprEqn, Literal
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_flow


Stages = frozenset[int]

NEVER = math.inf
UNBOUNDED = 2**30  # bytes
WORD = 4  # bytes, of which messages have a whole number
LONGEST_UNROLL = 128  # steps of a scan


class Least(NamedTuple):
    """The fewest rounds, infinite if whole tensors would travel, and their bytes."""

    rounds: int | float
    nbytes: int


def least_exchange(
    closed: ClosedJaxpr,
    input_stages: Sequence[Stages],
    result_stages: Sequence[Stages],
    num_stages: int,
    smallest_dimension: int,
) -> Least:
    """The least that stages have to exchange for a function.

    **Arguments:**

    - `closed`: the function.
    - `input_stages`, `result_stages`: the stages that have each input, and those that
        need each result.
    - `num_stages`: how many stages there are.
    - `smallest_dimension`: a value of as many elements or more does not travel.
    """
    graph = _Graph(num_stages, smallest_dimension)
    inputs = [graph.add(aval) for aval in closed.in_avals]
    for node, stages in zip(inputs, input_stages, strict=True):
        graph.arrive(node, np.where(_indicator(stages, num_stages), 0.0, NEVER))
    outputs = graph.inline(closed, inputs)
    results = [
        (node, stages)
        for node, stages in zip(outputs, result_stages, strict=True)
        if node is not None
    ]
    rounds = max(
        (graph.ready[node][list(stages)].max() for node, stages in results if stages),
        default=0.0,
    )
    if rounds in (0, NEVER):
        return Least(rounds, 0)
    used = graph.last_uses(results, rounds)

    def sent(group: Stages) -> int:
        pairs = zip(inputs, input_stages, strict=True)
        owned = [node for node, stages in pairs if stages <= group]
        return -(-graph.cut(group, owned, results, used) // WORD) * WORD

    groups = _tied(input_stages, num_stages)
    each = {group: sum(sent(frozenset({stage})) for stage in group) for group in groups}
    together = {group: sent(group) if len(group) > 1 else 0 for group in groups}
    nbytes = sum(max(each[group], together[group]) for group in groups)
    return Least(int(rounds), nbytes)


def _tied(input_stages: Sequence[Stages], num_stages: int) -> list[Stages]:
    """All stages, in groups of those that have an input in common."""
    groups = [frozenset({stage}) for stage in range(num_stages)]
    for stages in input_stages:
        if 1 < len(stages) < num_stages:
            meeting = [group for group in groups if group & stages]
            apart = [group for group in groups if not group & stages]
            groups = [*apart, frozenset[int]().union(*meeting)]
    return groups


def _indicator(stages: Iterable[int], num_stages: int) -> np.ndarray:
    return np.isin(np.arange(num_stages), list(stages))


@dataclass
class _Graph:
    """A jaxpr without calls and conds, as nodes for values.

    None stands for a value that is known everywhere from the start.

    **Attributes:**

    - `nbytes`, `small`: of each node its size, and whether it may travel.
    - `ready`: for each node and stage the rounds after which it can be there.
    - `equations`: operands and results.
    """

    num_stages: int
    smallest_dimension: int
    nbytes: list[int] = field(default_factory=list)
    small: list[bool] = field(default_factory=list)
    ready: list[np.ndarray] = field(default_factory=list)
    equations: list[tuple[list[int], list[int]]] = field(default_factory=list)

    def add(self, aval: Any) -> int:
        size = math.prod(getattr(aval, "shape", ()))
        key = jnp.issubdtype(aval.dtype, jax.dtypes.extended)
        self.nbytes.append(size * aval.dtype.itemsize)
        self.small.append(size < self.smallest_dimension and not key)
        self.ready.append(np.full(self.num_stages, NEVER))
        return len(self.nbytes) - 1

    def arrive(self, node: int, computed: np.ndarray) -> None:
        travelled = computed.min() + 1 if self.small[node] else NEVER
        self.ready[node] = np.minimum(computed, travelled)

    def inline(
        self, closed: ClosedJaxpr, operands: Sequence[int | None]
    ) -> list[int | None]:
        node: dict[Any, int | None] = dict.fromkeys(closed.jaxpr.constvars)
        node.update(zip(closed.jaxpr.invars, operands, strict=True))

        def read(atom: Any) -> int | None:
            return None if isinstance(atom, Literal) else node[atom]

        for eqn in closed.jaxpr.eqns:
            results = self._equation(eqn, [read(atom) for atom in eqn.invars])
            node.update(zip(eqn.outvars, results, strict=True))
        return [read(atom) for atom in closed.jaxpr.outvars]

    def _equation(self, eqn: JaxprEqn, operands: list[int | None]) -> list[int | None]:
        if eqn.primitive.name == "cond":
            return self._cond(eqn, operands)
        if (body := _body_of_call(eqn)) is not None:
            return self.inline(body, operands)
        if self._is_crossing_loop(eqn, operands):
            return self.inline(_unrolled(eqn), operands)
        return self._emit([var.aval for var in eqn.outvars], operands)

    def _emit(
        self, avals: Sequence[Any], operands: Iterable[int | None]
    ) -> list[int | None]:
        read = [node for node in operands if node is not None]
        if not read:
            return [None for _ in avals]
        results = [self.add(aval) for aval in avals]
        computed = np.max([self.ready[node] for node in read], axis=0)
        for node in results:
            self.arrive(node, computed)
        self.equations.append((read, results))
        return [*results]

    def _cond(self, eqn: JaxprEqn, operands: list[int | None]) -> list[int | None]:
        """Every branch; each result depends on the index and its own cases alone."""
        index, *operands = operands
        cases = [self.inline(branch, operands) for branch in eqn.params["branches"]]
        avals = (var.aval for var in eqn.outvars)
        return [
            self._emit([aval], [index, *values])[0]
            for aval, *values in zip(avals, *cases, strict=True)
        ]

    def _is_crossing_loop(self, eqn: JaxprEqn, operands: list[int | None]) -> bool:
        if eqn.primitive.name != "scan" or eqn.params["length"] > LONGEST_UNROLL:
            return False
        read = [self.ready[node] for node in operands if node is not None]
        return bool(read) and bool(np.isinf(np.max(read, axis=0)).all())

    def last_uses(
        self, results: Sequence[tuple[int, Stages]], rounds: float
    ) -> np.ndarray:
        """For each node and stage the last round before which it is of use there."""
        used = np.full((len(self.nbytes), self.num_stages), -NEVER)
        for node, stages in results:
            used[node, list(stages)] = rounds
        for read, outputs in reversed(self.equations):
            last = np.max([self._last(used[node], node) for node in outputs], axis=0)
            for node in read:
                used[node] = np.maximum(used[node], last)
        return used

    def _last(self, used: np.ndarray, node: int) -> np.ndarray:
        return np.maximum(used, used.max() - 1) if self.small[node] else used

    def cut(
        self,
        group: Stages,
        sources: Sequence[int],
        results: Sequence[tuple[int, Stages]],
        used: np.ndarray,
    ) -> int:
        """The fewest bytes that separate some stages' inputs from others' results."""
        if not sources or len(group) == self.num_stages:
            return 0
        others = np.delete(used, list(group), axis=1).max(axis=1, initial=-NEVER)
        between = self._after(sources) & (others > -NEVER)
        here = np.array([ready[list(group)].min() for ready in self.ready])
        sendable = np.array(self.small) & (here + 1 <= others)
        capacity = np.where(sendable, self.nbytes, UNBOUNDED)
        number = np.cumsum(between) - 1
        source, sink = 2 * between.sum(), 2 * between.sum() + 1
        arcs = {
            (2 * number[n], 2 * number[n] + 1): capacity[n]
            for n in np.flatnonzero(between)
        }
        for read, outputs in self.equations:
            for one, other in itertools.product(read, outputs):
                if between[one] and between[other]:
                    arcs[2 * number[one] + 1, 2 * number[other]] = UNBOUNDED
        for node in sources:
            if between[node]:
                arcs[source, 2 * number[node]] = UNBOUNDED
        for node, stages in results:
            if between[node] and stages - group:
                arcs[2 * number[node] + 1, sink] = UNBOUNDED
        return _flow(arcs, source, sink) if arcs else 0

    def _after(self, sources: Sequence[int]) -> np.ndarray:
        """Which nodes depend on some."""
        after = np.zeros(len(self.nbytes), bool)
        after[list(sources)] = True
        for read, outputs in self.equations:
            after[outputs] = after[read].any()
        return after


def _flow(arcs: dict[tuple[int, int], int], source: int, sink: int) -> int:
    rows, columns = np.array([*arcs]).T
    values = np.array([*arcs.values()], np.int32)
    graph = csr_array((values, (rows, columns)), shape=(sink + 1, sink + 1))
    return int(maximum_flow(graph, source, sink).flow_value)


def _body_of_call(eqn: JaxprEqn) -> ClosedJaxpr | None:
    """What a call calls; None if the equation is none, or a loop."""
    if eqn.primitive.name in ("scan", "while", "shard_map", "pallas_call"):
        return None
    body = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
    if isinstance(body, Jaxpr):
        return ClosedJaxpr(body, ())
    return body if isinstance(body, ClosedJaxpr) else None


def _unrolled(eqn: JaxprEqn) -> ClosedJaxpr:
    """A scan as its steps, one after the other."""
    body, params = jaxpr_as_fun(eqn.params["jaxpr"]), eqn.params
    first, second = params["num_consts"], params["num_consts"] + params["num_carry"]

    def steps(*operands: Any) -> list[Any]:
        consts, carry, scanned = (
            operands[:first],
            operands[first:second],
            operands[second:],
        )
        order = range(params["length"])
        slices: dict[int, Sequence[Any]] = {}
        for i in reversed(order) if params["reverse"] else order:
            results = body(*consts, *carry, *(x[i] for x in scanned))
            carry = results[: len(carry)]
            slices[i] = results[len(carry) :]
        stacked = zip(*(slices[i] for i in order), strict=True)
        return [*carry, *map(jnp.stack, stacked)]

    avals: list[Any] = [var.aval for var in eqn.invars]
    shapes = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in avals]
    return jax.make_jaxpr(steps)(*shapes)
