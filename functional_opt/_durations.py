"""Durations: a number of updates, or a fraction of the run."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Annotated, Any, final, TypeVar

from annotated_types import Interval

from ._config import AbstractConfig
from ._fields import as_number, setting
from ._types import Count, PositiveCount, typed


@final
class Steps(AbstractConfig):
    """A duration in optimizer updates, equivalent to a plain `int`.

    ```python
    >>> import functional_opt as fo
    >>> fo.Linear(init_value=1.0, end_value=0.0, transition_steps=fo.Steps(8))(2)
    Array(0.75, dtype=float32, weak_type=True)

    ```

    **Arguments:**

    - `value`: the number of updates, at least 0.
    """

    value: Count = setting()

    def __index__(self) -> int:
        return self.value


@final
class Fraction(AbstractConfig):
    """A duration as a fraction of the run.

    `Recipe.build(total_steps=...)` and `resolve` of a schedule convert it to updates.
    They round down, so fractions that add up to 1 never exceed the run.

    ```python
    >>> import functional_opt as fo
    >>> schedule = fo.Cosine(
    ...     peak_value=3e-4,
    ...     warmup_steps=fo.Fraction(0.01),
    ...     decay_steps=fo.Fraction(1.0),
    ... )
    >>> schedule.resolve(total_steps=10_000).warmup_steps
    100

    ```

    **Arguments:**

    - `value`: the fraction, in [0, 1].
    """

    value: Annotated[float, Interval(ge=0, le=1)] = setting(convert=as_number)

    @typed
    def of(self, total_steps: Count) -> int:
        """This fraction of `total_steps`, rounded down."""
        # The addend is far below one update, but above the rounding error of the
        # product: 0.29 * 100 is 28.999999999999996.
        return math.floor(self.value * total_steps + 1e-6)


Duration = Count | Steps | Fraction
PositiveDuration = PositiveCount | Steps | Fraction


def known_steps(config: AbstractConfig, name: str) -> int:
    """The value of a duration field in updates, which must be known."""
    value = getattr(config, name)
    if isinstance(value, int):
        return value
    raise ValueError(
        f"`{type(config).__name__}.{name}` is {value!r}, which depends on the length "
        "of the run. Pass it to `Recipe.build(total_steps=...)`, or call "
        "`resolve(total_steps)` on the schedule."
    )


def unresolved(value: Any) -> Iterator[tuple[AbstractConfig, str]]:
    """The duration fields of a module that depend on the length of the run."""
    if isinstance(value, tuple):
        for item in value:
            yield from unresolved(item)
    if isinstance(value, AbstractConfig):
        for field in dataclasses.fields(value):
            item = getattr(value, field.name)
            is_rest = item is None and field.metadata.get("is_duration")
            if is_rest or isinstance(item, Fraction):
                yield value, field.name
            yield from unresolved(item)


def is_resolved(value: Any) -> bool:
    """Whether all durations in a module are known in updates."""
    return next(unresolved(value), None) is None


T = TypeVar("T")


def resolved(value: T, total_steps: int) -> T:
    """The same module with every duration in updates, for a run of `total_steps`."""
    if isinstance(value, Fraction):
        return value.of(total_steps)  # pyright: ignore[reportReturnType]
    if isinstance(value, tuple):
        return tuple(resolved(item, total_steps) for item in value)  # pyright: ignore[reportReturnType]
    if isinstance(value, AbstractConfig):
        return _resolve_fields(value, total_steps)._in_run(total_steps)
    return value


C = TypeVar("C", bound=AbstractConfig)


def _resolve_fields(config: C, total_steps: int) -> C:
    given = {
        field.name: getattr(config, field.name) for field in dataclasses.fields(config)
    }
    found = {name: resolved(value, total_steps) for name, value in given.items()}
    changes = {name: found[name] for name in given if found[name] is not given[name]}
    if not changes:
        return config
    try:
        return dataclasses.replace(config, **changes)
    except ValueError as error:
        parts = [
            f"`{type(config).__name__}.{name}` = {given[name]}"
            for name in changes
            if isinstance(given[name], Fraction)
        ]
        if not parts:
            raise
        raise ValueError(
            f"{error} The values are those of {', '.join(parts)} in a run of "
            f"{total_steps} updates."
        ) from None
