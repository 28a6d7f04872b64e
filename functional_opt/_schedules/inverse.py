from dataclasses import KW_ONLY
from typing import final

import jax
import jax.numpy as jnp
import optax

from .._durations import Duration, is_resolved, known_steps, PositiveDuration
from .._fields import duration, number
from .._types import Positive, Scalar
from .base import AbstractOptaxSchedule


@final
class Inv(AbstractOptaxSchedule):
    """Inverse decay after a linear warmup, between two values.

    With $W$ = `warmup_steps`, $T$ = `decay_steps`, $I$ = `init_value`, $P$ =
    `peak_value`, $E$ = `end_value` and $s = \\min(\\frac{t - W}{T - W}, 1)$, the value
    after $t$ updates is $I + (P - I) t / W$ where $t < W$, and from there
    $P / (1 + (P / E - 1) s)$: the reciprocal of the value is linear in $t$.

    This is the schedule `inv` of [Levanter](https://github.com/stanford-crfm/levanter),
    whose `decay` does not include the warmup. There, the value at the end of the warmup
    is that of the next update, not $P$.

    ```python
    >>> import functional_opt as fo
    >>> schedule = fo.Inv(
    ...     peak_value=1.0, warmup_steps=2, decay_steps=8, end_value=0.25
    ... )
    >>> [float(schedule(count)) for count in (0, 1, 2, 4, 8, 9)]
    [0.0, 0.5, 1.0, 0.5, 0.25, 0.25]

    ```

    **Arguments:**

    - `init_value`: the value at the first update, if there is a warmup; finite.
    - `peak_value`: the value at the end of the warmup; greater than 0.
    - `warmup_steps`: duration of the warmup, in updates or as a `Fraction`.
    - `decay_steps`: total duration of warmup and decay, in updates or as a `Fraction`;
        greater than `warmup_steps`.
    - `end_value`: the value from the end of the decay on; greater than 0. Levanter's
        default is a tenth of the peak.
    """

    _: KW_ONLY
    init_value: Scalar = number(default=0.0)
    peak_value: Positive = number()
    warmup_steps: Duration = duration(default=0)
    decay_steps: PositiveDuration = duration()
    end_value: Positive = number()

    def _check(self) -> None:
        if not is_resolved(self):
            return
        warmup, both = self._known()
        if both <= warmup:
            raise ValueError(
                f"`Inv.decay_steps` must be greater than `Inv.warmup_steps`, got "
                f"{both} and {warmup}. It includes the warmup."
            )

    def _known(self) -> tuple[int, int]:
        return known_steps(self, "warmup_steps"), known_steps(self, "decay_steps")

    def phases(self) -> tuple[tuple[str, int | None], ...]:
        warmup, both = self._known()
        return (("warmup", warmup), ("decay", both - warmup))

    def build(self) -> optax.Schedule:
        warmup, both = self._known()

        def decay(count: jax.typing.ArrayLike) -> jax.Array:
            part = jnp.clip(count, 0, both - warmup) / (both - warmup)
            # Written so that it is exactly the peak at 0.
            return self.peak_value / (
                1 - part + part * (self.peak_value / self.end_value)
            )

        rise = optax.linear_schedule(self.init_value, self.peak_value, warmup)
        return optax.join_schedules([rise, decay], [warmup])
