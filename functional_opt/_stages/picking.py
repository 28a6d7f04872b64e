"""Selects items of lists by their positions."""

import operator
from collections.abc import Callable, Sequence
from typing import Any


def picker(positions: Sequence[int]) -> Callable[[Sequence[Any]], list[Any]]:
    """A function that returns the items at these positions."""
    if len(positions) < 2:
        return lambda items: [items[i] for i in positions]
    pick = operator.itemgetter(*positions)
    return lambda items: list(pick(items))
