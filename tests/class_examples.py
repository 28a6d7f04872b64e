"""An instance of any class: its defaults, and a valid value where it has none."""

import functools
import itertools
from collections.abc import Iterator
from typing import Any, get_args, get_origin, Literal

import jax.numpy as jnp
import numpy as np
from annotated_types import Interval, Predicate
from rooms import arms_of, bases_of, choice_of, Field, fields_of, holds, items_of


PREFERRED = ("adamw", "cosine")
NUMBERS, INTEGERS = (1e-3, 0.5, 1.0, 0.0), (1_000, 1, 0)
MOST_TRIED, DEEPEST = 1_000, 3


def example(cls: type, kinds: tuple[type, ...]) -> Any:
    """An instance of the class, or `ValueError` if none is found."""
    found = _example(cls, kinds, depth=0)
    if found is None:
        raise ValueError(f"no example of {cls.__name__} is known")
    return found


@functools.cache
def _example(cls: type, kinds: tuple[type, ...], depth: int) -> Any:
    required = [field for field in fields_of(cls) if field.required]
    values = [list(_values(field, kinds, depth)) for field in required]
    for given in itertools.islice(itertools.product(*values), MOST_TRIED):
        try:
            return cls(**{x.name: y for x, y in zip(required, given, strict=True)})
        except (TypeError, ValueError):
            continue
    return None


def _values(field: Field, kinds: tuple[type, ...], depth: int) -> Iterator[Any]:
    return _values_of(field.annotation, kinds, depth)


def _values_of(annotation: Any, kinds: tuple[type, ...], depth: int) -> Iterator[Any]:
    """Values that an annotation allows, the likeliest first."""
    yield from _modules(annotation, kinds, depth)
    for arm, limits in arms_of(annotation):
        for value in _values_of_arm(arm, kinds, depth):
            known = [x for x in limits if isinstance(x, Interval | Predicate)]
            if all(holds(limit, value) for limit in known):
                yield value


def _values_of_arm(arm: Any, kinds: tuple[type, ...], depth: int) -> Iterator[Any]:
    simple = {
        float: NUMBERS,
        int: INTEGERS,
        bool: (False,),
        str: ("",),
        np.dtype: (jnp.dtype("float32"),),
    }
    if get_origin(arm) is Literal:
        yield from get_args(arm)
    elif (items := items_of(arm)) is not None:
        several = items[1:] == (...,)
        items = items[:1] if several else items
        values = (list(_values_of(item, kinds, depth)) for item in items)
        yield from itertools.product(*values)
        yield from [()] if several else []
    elif arm in simple:
        yield from simple[arm]


def _modules(annotation: Any, kinds: tuple[type, ...], depth: int) -> Iterator[Any]:
    bases = bases_of(annotation)
    if not bases or depth == DEEPEST:
        return
    options = choice_of(bases, kinds).options
    for name in sorted(options, key=lambda name: name not in PREFERRED):
        found = _example(options[name], kinds, depth + 1)
        if found is not None:
            yield found
