"""The cheapest values to cut all ways from sources to sinks at, by a maximum flow."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jax.extend.core import Var


_LARGEST = 2**30  # of a 32-bit capacity, which the flow through it may double


class Cut(NamedTuple):
    """A cut: the nodes chosen, and those that lie beyond them, towards the sinks."""

    chosen: tuple[Var, ...]
    beyond: tuple[Var, ...]


def minimum_cut(
    costs: Mapping[Var, int | float],
    operands: Mapping[Var, Sequence[Var]],
    sinks: Collection[Var],
) -> Cut:
    """Chooses the cheapest nodes without which no sink is reached from a source.

    Of several such cuts it is the one nearest to the sinks.

    **Arguments:**

    - `costs`: what it costs to choose a node; infinite if it cannot be chosen.
    - `operands`: for each node those that lead to it. A node without any is a source.
    - `sinks`: the nodes to be reached.
    """
    # Each node is an edge from its entry, 2 * i, to its exit, 2 * i + 1.
    number = {node: i for i, node in enumerate(costs)}
    source, sink = 2 * len(number), 2 * len(number) + 1
    capacities, endless = _capacities(list(costs.values()))
    edges = [(2 * i, 2 * i + 1, capacity) for i, capacity in enumerate(capacities)]
    edges += [
        (2 * number[operand] + 1, 2 * number[node], endless)
        for node, given in operands.items()
        for operand in dict.fromkeys(given)
    ]
    edges += [
        (source, 2 * number[node], endless)
        for node, given in operands.items()
        if not given
    ]
    edges += [(2 * number[node] + 1, sink, endless) for node in sinks]
    reached = _leads_to(source, sink, edges)
    exits = [node for node, i in number.items() if 2 * i + 1 in reached]
    beyond = [node for node in exits if 2 * number[node] in reached]
    return Cut(
        tuple(node for node in exits if 2 * number[node] not in reached),
        tuple(beyond),
    )


def _capacities(costs: Sequence[int | float]) -> tuple[list[int], int]:
    """Costs as integers, and one that is more than all others together."""
    total = sum(int(cost) for cost in costs if cost < math.inf)
    scale = math.ceil((total + len(costs) + 1) / _LARGEST)
    endless = total // scale + len(costs) + 1
    return [-(-int(c) // scale) if c < math.inf else endless for c in costs], endless


def _leads_to(
    source: int, sink: int, edges: Sequence[tuple[int, int, int]]
) -> frozenset[int]:
    """The nodes from which more could flow to the sink, if more came to them."""
    # Importing SciPy's graphs takes longer than importing this library.
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import breadth_first_order, maximum_flow

    starts, ends, capacities = (np.array(x, np.int32) for x in zip(*edges, strict=True))
    shape = sink + 1, sink + 1
    graph = csr_array((capacities, (starts, ends)), shape=shape)
    left = graph - maximum_flow(graph, source, sink).flow
    left = csr_array(left > 0)
    reached = breadth_first_order(left.T.tocsr(), sink, return_predecessors=False)
    return frozenset(reached.tolist())
