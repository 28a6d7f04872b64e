"""Constant schedules, with and without a warmup."""

from dataclasses import KW_ONLY
from typing import Any, final

import equinox as eqx
import jax.numpy as jnp
import optax

from .._durations import Duration, known_steps
from .._fields import as_number, duration, number
from .._types import Scalar
from .base import AbstractOptaxSchedule


@final
class Constant(AbstractOptaxSchedule):
    """The same value at every update: `optax.constant_schedule`.

    ```python
    >>> import functional_opt as fo
    >>> fo.Constant(3e-4)(1_000)
    0.0003

    ```

    **Arguments:**

    - `value`: the value at every update; finite.
    """

    value: Scalar = number()

    def phases(self) -> tuple[tuple[str, int | None], ...]:
        return (("constant", None),)

    def build(self) -> optax.Schedule:
        return optax.constant_schedule(self.value)


@final
class WarmupConstant(AbstractOptaxSchedule):
    """A linear warmup to a constant value: `optax.warmup_constant_schedule`.

    ```python
    >>> import functional_opt as fo
    >>> schedule = fo.WarmupConstant(init_value=0.0, peak_value=1.0, warmup_steps=4)
    >>> [float(schedule(count)) for count in (0, 1, 4, 100)]
    [0.0, 0.25, 1.0, 1.0]

    ```

    **Arguments:**

    - `init_value`: the value at the first update; finite.
    - `peak_value`: the value from the end of the warmup on; finite.
    - `warmup_steps`: duration of the warmup, in updates or as a `Fraction`. If 0, the
        value is `peak_value` from the start, as in the other schedules; in Optax it
        would stay `init_value`.
    """

    _: KW_ONLY
    init_value: Scalar = number()
    peak_value: Scalar = number()
    warmup_steps: Duration = duration()

    def phases(self) -> tuple[tuple[str, int | None], ...]:
        return (("warmup", known_steps(self, "warmup_steps")), ("constant", None))

    def build(self) -> optax.Schedule:
        warmup_steps = known_steps(self, "warmup_steps")
        if warmup_steps == 0:
            return optax.constant_schedule(self.peak_value)
        return optax.warmup_constant_schedule(
            self.init_value, self.peak_value, warmup_steps
        )


def as_schedule(value: Any) -> Any:
    """Converts a number to a `Constant`, so that both have the same optimizer state."""
    value = as_number(value)
    is_number = isinstance(value, float) or eqx.is_inexact_array(value)
    if not is_number or jnp.ndim(value) != 0:
        return value
    try:
        return Constant(value)
    except ValueError:
        return value  # `check_fields` raises a better error, with the field's name.
