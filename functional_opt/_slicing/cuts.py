"""Minimum vertex cuts, found by maximum flow."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jax.extend.core import Var


# SciPy's capacities are 32-bit, and a residual capacity may be twice the original one.
_LARGEST = 2**30


class Cut(NamedTuple):
    """A vertex cut: the chosen nodes, and the nodes between them and the sinks."""

    chosen: tuple[Var, ...]
    beyond: tuple[Var, ...]


def minimum_cut(
    costs: Mapping[Var, int | float],
    operands: Mapping[Var, Sequence[Var]],
    sinks: Collection[Var],
) -> Cut:
    """The cheapest set of nodes that separates the sources from the sinks.

    Of several minimum cuts, it is the one nearest to the sinks.

    **Arguments:**

    - `costs`: the cost of each node; infinite if it must not be chosen.
    - `operands`: for each node its predecessors. A node without any is a source.
    - `sinks`: the nodes to separate from the sources.
    """
    # A vertex cut is an edge cut after splitting each node i into an entry, 2 * i, and
    # an exit, 2 * i + 1, joined by an edge with the cost of the node. All other edges
    # are unbounded. For `c = a + b`, with sink `c` and costs 4, 4 and 8:
    #
    #     source -> a_in -4-> a_out -> c_in -8-> c_out -> sink
    #     source -> b_in -4-> b_out -> c_in
    #
    # Both cuts cost 8; the one nearest to the sinks is `c` itself.
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
    """The costs as integers, and a capacity larger than their sum for other edges.

    Costs beyond 32 bits are scaled down, and rounded up so that none becomes free.
    """
    total = sum(int(cost) for cost in costs if cost < math.inf)
    scale = math.ceil((total + len(costs) + 1) / _LARGEST)
    endless = total // scale + len(costs) + 1
    return [-(-int(c) // scale) if c < math.inf else endless for c in costs], endless


def _leads_to(
    source: int, sink: int, edges: Sequence[tuple[int, int, int]]
) -> frozenset[int]:
    """The nodes with a path to the sink in the residual graph of a maximum flow."""
    # Importing `scipy.sparse.csgraph` is slower than importing this library.
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import breadth_first_order, maximum_flow

    starts, ends, capacities = (np.array(x, np.int32) for x in zip(*edges, strict=True))
    shape = sink + 1, sink + 1
    graph = csr_array((capacities, (starts, ends)), shape=shape)
    left = graph - maximum_flow(graph, source, sink).flow
    left = csr_array(left > 0)
    reached = breadth_first_order(left.T.tocsr(), sink, return_predecessors=False)
    return frozenset(reached.tolist())
