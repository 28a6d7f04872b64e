"""One-cycle schedules: [Smith and Topin 2018](https://arxiv.org/abs/1708.07120)."""

from dataclasses import KW_ONLY
from typing import Annotated, final

import jax.numpy as jnp
import optax
from annotated_types import Interval

from .._durations import is_resolved, known_steps, PositiveDuration
from .._fields import as_number, duration, number, setting
from .._previews import spans_text
from .._types import Scalar
from .base import AbstractOptaxSchedule


# Not traced: Optax computes phases and boundaries from them in Python.
Part = Annotated[float, Interval(ge=0, le=1)]
Factor = Annotated[float, Interval(gt=0)]


@final
class CosineOnecycle(AbstractOptaxSchedule):
    """A rise and a fall along half cosines: `optax.cosine_onecycle_schedule`.

    ```python
    >>> import functional_opt as fo
    >>> schedule = fo.CosineOnecycle(transition_steps=10, peak_value=1.0)
    >>> [round(float(schedule(count)), 3) for count in (0, 3, 6, 10)]
    [0.04, 1.0, 0.611, 0.0]

    ```

    **Arguments:**

    - `transition_steps`: total duration, in updates, at least 1, or as a `Fraction`.
    - `peak_value`: the highest value; finite.
    - `pct_start`: the fraction of `transition_steps` for the rise, in [0, 1]. Changing
        this or one of the factors recompiles.
    - `div_factor`: ratio of the peak to the first value; greater than 0.
    - `final_div_factor`: ratio of the first to the last value; greater than 0.
    """

    _: KW_ONLY
    transition_steps: PositiveDuration = duration()
    peak_value: Scalar = number()
    pct_start: Part = setting(default=0.3, convert=as_number)
    div_factor: Factor = setting(default=25.0, convert=as_number)
    final_div_factor: Factor = setting(default=1e4, convert=as_number)

    def _check(self) -> None:
        _check_phases(self)

    def phases(self) -> tuple[tuple[str, int | None], ...]:
        steps = known_steps(self, "transition_steps")
        rise = int(self.pct_start * steps)
        return (("rise", rise), ("fall", steps - rise))

    def build(self) -> optax.Schedule:
        # The function of Optax accepts scalar counts only.
        return jnp.vectorize(
            optax.cosine_onecycle_schedule(
                known_steps(self, "transition_steps"),
                self.peak_value,
                pct_start=self.pct_start,
                div_factor=self.div_factor,
                final_div_factor=self.final_div_factor,
            )
        )


@final
class LinearOnecycle(AbstractOptaxSchedule):
    """A linear rise, fall and final decay: `optax.linear_onecycle_schedule`.

    ```python
    >>> import functional_opt as fo
    >>> schedule = fo.LinearOnecycle(transition_steps=20, peak_value=1.0)
    >>> [round(float(schedule(count)), 3) for count in (0, 6, 17, 20)]
    [0.04, 1.0, 0.04, 0.0]

    ```

    **Arguments:**

    - `transition_steps`: total duration, in updates, at least 1, or as a `Fraction`.
    - `peak_value`: the highest value; finite.
    - `pct_start`: the fraction of `transition_steps` after which the peak is reached,
        in [0, 1]. Changing this, `pct_final` or one of the factors recompiles.
    - `pct_final`: the fraction after which the first value is reached again; greater
        than `pct_start`.
    - `div_factor`: ratio of the peak to the first value; greater than 0.
    - `final_div_factor`: ratio of the first to the last value; greater than 0.
    """

    _: KW_ONLY
    transition_steps: PositiveDuration = duration()
    peak_value: Scalar = number()
    pct_start: Part = setting(default=0.3, convert=as_number)
    pct_final: Part = setting(default=0.85, convert=as_number)
    div_factor: Factor = setting(default=25.0, convert=as_number)
    final_div_factor: Factor = setting(default=1e4, convert=as_number)

    def _check(self) -> None:
        if self.pct_final <= self.pct_start:
            raise ValueError(
                "`LinearOnecycle.pct_final` must be greater than "
                f"`LinearOnecycle.pct_start`, got {self.pct_final} and "
                f"{self.pct_start}: the fall would end before the rise."
            )
        _check_phases(self)

    def phases(self) -> tuple[tuple[str, int | None], ...]:
        steps = known_steps(self, "transition_steps")
        rise, fall = int(self.pct_start * steps), int(self.pct_final * steps)
        return (("rise", rise), ("fall", fall - rise), ("finish", steps - fall))

    def build(self) -> optax.Schedule:
        # The function of Optax accepts scalar counts only.
        return jnp.vectorize(
            optax.linear_onecycle_schedule(
                known_steps(self, "transition_steps"),
                self.peak_value,
                pct_start=self.pct_start,
                pct_final=self.pct_final,
                div_factor=self.div_factor,
                final_div_factor=self.final_div_factor,
            )
        )


def _check_phases(schedule: CosineOnecycle | LinearOnecycle) -> None:
    """Refuses empty phases, which Optax cannot represent.

    Optax keeps the phases in a dictionary from update to value: of two phases that end
    at the same update, one would be lost.
    """
    if not is_resolved(schedule):
        return
    _, *others = schedule.phases()
    if empty := [name for name, steps in others if not steps]:
        kind = type(schedule).__name__
        raise ValueError(
            f"`{kind}.transition_steps` = {schedule.transition_steps} leaves no update "
            f"for the {empty[0]}: {spans_text(schedule)}. Increase it, or change the "
            "fractions."
        )
