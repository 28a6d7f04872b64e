from dataclasses import KW_ONLY
from typing import final

import jax
import jax.numpy as jnp
import optax

from .._durations import Duration, known_steps, PositiveDuration
from .._fields import duration, number
from .._types import Scalar
from .base import AbstractOptaxSchedule


@final
class InverseSqrt(AbstractOptaxSchedule):
    """Inverse square root decay after a linear warmup.

    With $W$ = `warmup_steps`, $T$ = `timescale`, $I$ = `init_value` and $P$ =
    `peak_value`, the value after $t$ updates is $I + (P - I) t / W$ where $t < W$, and
    from there $P \\sqrt{T / (T + t - W)}$. With $T = W$ that is $P \\sqrt{W / t}$:
    section 5.3 of [Vaswani et al. 2017](https://arxiv.org/abs/1706.03762), by its peak.

    ```python
    >>> import functional_opt as fo
    >>> schedule = fo.InverseSqrt(peak_value=1.0, warmup_steps=4, timescale=4)
    >>> [float(schedule(count)) for count in (0, 2, 4, 16, 64)]
    [0.0, 0.5, 1.0, 0.5, 0.25]

    ```

    **Arguments:**

    - `init_value`: the value at the first update, if there is a warmup; finite.
    - `peak_value`: the value at the end of the warmup; finite.
    - `warmup_steps`: duration of the warmup, in updates or as a `Fraction`.
    - `timescale`: number of updates after the warmup until the value has decayed to
        $\\sqrt{1/2}$ of the peak, at least 1, or a `Fraction`.
    """

    _: KW_ONLY
    init_value: Scalar = number(default=0.0)
    peak_value: Scalar = number()
    warmup_steps: Duration = duration(default=0)
    timescale: PositiveDuration = duration(default=10_000)

    def phases(self) -> tuple[tuple[str, int | None], ...]:
        return (("warmup", known_steps(self, "warmup_steps")), ("decay", None))

    def build(self) -> optax.Schedule:
        warmup_steps = known_steps(self, "warmup_steps")
        timescale = known_steps(self, "timescale")

        def decay(count: jax.typing.ArrayLike) -> jax.Array:
            # `join_schedules` evaluates it before its start, too.
            time = timescale + jnp.maximum(count, 0)
            return self.peak_value * jnp.sqrt(timescale / time)

        warmup = optax.linear_schedule(self.init_value, self.peak_value, warmup_steps)
        return optax.join_schedules([warmup, decay], [warmup_steps])
