from dataclasses import KW_ONLY
from typing import Annotated, final

import jax
import jax.numpy as jnp
import optax
from annotated_types import Interval

from .._durations import Duration, known_steps
from .._fields import duration, number, setting
from .._types import Positive, PositiveCount, Scalar
from .base import AbstractOptaxSchedule


@final
class Power(AbstractOptaxSchedule):
    """A power law of the tokens seen: [Power](https://arxiv.org/abs/2408.13359)
    (Shen et al. 2024), after a linear warmup.

    With $B$ = `batch_size`, $L$ = `seq_length`, $P$ = `peak_value`, $W$ =
    `warmup_steps` and $\\eta(t) = \\min(P, B a (t B L)^b)$, the value after $t$ updates
    is $I + (\\eta(W) - I) t / W$ where $t < W$, with $I$ = `init_value`, and from there
    $\\eta(t)$. As in the paper, the tokens of the warmup count, and the warmup ends at
    $\\eta(W)$. Levanter's `power` counts tokens from the end of the warmup, which there
    ends at $P$.

    The paper ends a run with a decay: wrap the schedule in a [`Cooldown`][].

    ```python
    >>> import functional_opt as fo
    >>> schedule = fo.Power(
    ...     peak_value=0.25, batch_size=2, seq_length=8, a=1.0, b=-0.5
    ... )
    >>> [round(float(schedule(count)), 4) for count in (0, 1, 4, 16, 64)]
    [0.25, 0.25, 0.25, 0.125, 0.0625]

    ```

    **Arguments:**

    - `init_value`: the value at the first update, if there is a warmup; finite.
    - `peak_value`: the largest value of the power law; greater than 0. The paper takes
        0.02, for models in maximal update parametrization.
    - `warmup_steps`: duration of the warmup, in updates or as a `Fraction`.
    - `batch_size`: number of sequences per update, over all devices and accumulated
        gradients, at least 1.
    - `seq_length`: number of tokens per sequence, at least 1.
    - `a`: the amplitude, per sequence of a batch; greater than 0.
    - `b`: the exponent, less than 0.
    """

    _: KW_ONLY
    init_value: Scalar = number(default=0.0)
    peak_value: Positive = number()
    warmup_steps: Duration = duration(default=0)
    batch_size: PositiveCount = setting()
    seq_length: PositiveCount = setting()
    a: Positive = number(default=4.6)
    b: Annotated[Scalar, Interval(lt=0)] = number(default=-0.51)

    def phases(self) -> tuple[tuple[str, int | None], ...]:
        return (("warmup", known_steps(self, "warmup_steps")), ("decay", None))

    def build(self) -> optax.Schedule:
        warmup = known_steps(self, "warmup_steps")
        rise = optax.linear_schedule(self.init_value, self._law(warmup), warmup)
        return optax.join_schedules(
            [rise, lambda count: self._law(count + warmup)], [warmup]
        )

    def _law(self, count: jax.typing.ArrayLike) -> jax.Array:
        # A float: the number of tokens exceeds an int32.
        tokens = float(self.batch_size * self.seq_length) * jnp.maximum(count, 1)
        rate = jnp.minimum(self.peak_value, self.batch_size * self.a * tokens**self.b)
        # No power of 0: its derivative with respect to `b` is not a number.
        return jnp.where(jnp.equal(count, 0), self.peak_value, rate)
