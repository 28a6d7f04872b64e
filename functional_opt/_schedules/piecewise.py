"""Piecewise schedules: a factor at each boundary, applied at once or interpolated."""

from collections.abc import Mapping
from dataclasses import KW_ONLY
from itertools import pairwise
from typing import Annotated, Any, final, Literal

import jax.numpy as jnp
import optax
from annotated_types import Interval

from .._config import AbstractConfig
from .._durations import is_resolved, known_steps, PositiveDuration
from .._fields import as_number, duration, number, setting
from .._types import Scalar
from .base import AbstractOptaxSchedule


@final
class Boundary(AbstractConfig):
    """A boundary of a piecewise schedule, and the factor that applies there.

    ```python
    >>> import functional_opt as fo
    >>> fo.Boundary(1_000, 0.1)
    Boundary(step=1000, scale=0.1)

    ```

    **Arguments:**

    - `step`: the number of completed updates at the boundary, at least 1, or a
        `Fraction`.
    - `scale`: factor on the value, at least 0. Changing it recompiles.
    """

    step: PositiveDuration = duration()
    # Not traced: Optax compares it with numbers in Python.
    scale: Annotated[float, Interval(ge=0)] = setting(convert=as_number)


Boundaries = tuple[Boundary, ...]


def _as_boundaries(value: Any) -> Any:
    """Converts the dictionary that Optax accepts to boundaries."""
    if isinstance(value, Mapping):
        return tuple(Boundary(step, scale) for step, scale in sorted(value.items()))
    return value


@final
class PiecewiseConstant(AbstractOptaxSchedule):
    """A constant value between boundaries: `optax.piecewise_constant_schedule`.

    ```python
    >>> import functional_opt as fo
    >>> schedule = fo.PiecewiseConstant(
    ...     init_value=1.0,
    ...     boundaries_and_scales=(fo.Boundary(10, 0.5), fo.Boundary(20, 0.5)),
    ... )
    >>> [float(schedule(count)) for count in (0, 9, 10, 20)]
    [1.0, 1.0, 0.5, 0.25]

    ```

    **Arguments:**

    - `init_value`: the value before the first boundary; finite.
    - `boundaries_and_scales`: a tuple of `Boundary` in increasing order, or the
        dictionary that Optax accepts.
    """

    _: KW_ONLY
    init_value: Scalar = number()
    boundaries_and_scales: Boundaries = setting(default=(), convert=_as_boundaries)

    def _check(self) -> None:
        _check_order(self)

    def phases(self) -> tuple[tuple[str, int | None], ...]:
        return (*_phases(self.boundaries_and_scales), ("constant", None))

    def build(self) -> optax.Schedule:
        return optax.piecewise_constant_schedule(
            self.init_value, _as_dictionary(self.boundaries_and_scales)
        )


@final
class PiecewiseInterpolate(AbstractOptaxSchedule):
    """Interpolation between boundaries: `optax.piecewise_interpolate_schedule`.

    ```python
    >>> import functional_opt as fo
    >>> schedule = fo.PiecewiseInterpolate(
    ...     interpolate_type="linear",
    ...     init_value=1.0,
    ...     boundaries_and_scales=(fo.Boundary(10, 0.5), fo.Boundary(20, 0.5)),
    ... )
    >>> [float(schedule(count)) for count in (0, 5, 10, 15, 20)]
    [1.0, 0.75, 0.5, 0.375, 0.25]

    ```

    **Arguments:**

    - `interpolate_type`: "linear", or "cosine" for half a cosine.
    - `init_value`: the value at the first update; finite.
    - `boundaries_and_scales`: a tuple of `Boundary` in increasing order, or the
        dictionary that Optax accepts. The value at a boundary is the value at the
        previous one times its `scale`.
    """

    _: KW_ONLY
    interpolate_type: Literal["linear", "cosine"] = setting()
    init_value: Scalar = number()
    boundaries_and_scales: Boundaries = setting(default=(), convert=_as_boundaries)

    def _check(self) -> None:
        _check_order(self)

    def phases(self) -> tuple[tuple[str, int | None], ...]:
        return _phases(self.boundaries_and_scales)

    def build(self) -> optax.Schedule:
        boundaries = _as_dictionary(self.boundaries_and_scales)
        # The function of Optax accepts scalar counts only.
        return jnp.vectorize(
            optax.piecewise_interpolate_schedule(
                self.interpolate_type, self.init_value, boundaries
            )
        )


def _as_dictionary(boundaries: Boundaries) -> dict[int, float]:
    return {known_steps(x, "step"): x.scale for x in boundaries}


def _phases(boundaries: Boundaries) -> tuple[tuple[str, int | None], ...]:
    steps = [0, *_as_dictionary(boundaries)]
    return tuple(
        (f"piece {number}", end - start)
        for number, (start, end) in enumerate(pairwise(steps))
    )


def _check_order(schedule: PiecewiseConstant | PiecewiseInterpolate) -> None:
    boundaries = schedule.boundaries_and_scales
    if not is_resolved(boundaries):
        return
    steps = [known_steps(x, "step") for x in boundaries]
    for index, (step, following) in enumerate(pairwise(steps)):
        if following <= step:
            field = f"{type(schedule).__name__}.boundaries_and_scales"
            raise ValueError(
                f"`{field}[{index + 1}].step` must be greater than "
                f"`{field}[{index}].step`, got {following} and {step}."
            )
