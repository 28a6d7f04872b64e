from typing import final

import jax
import jax.numpy as jnp
import optax

from .._base import AbstractSchedule
from .._config import check_fields, number, setting
from .._types import NonNegative, PositiveSteps, Scalar, Scalars, Steps, typed


@final
class Cosine(AbstractSchedule):
    """Half a cosine down, after a linear warmup: `warmup_cosine_decay_schedule`.

    With $W$ = `warmup_steps`, $T$ = `decay_steps`, $I$ = `init_value`, $P$ =
    `peak_value`, $E$ = `end_value` and $p$ = `exponent`, the value after $t$ updates is
    $I + (P - I) t / W$ where $t < W$, and from there
    $E + (P - E) (\\frac{1}{2} (1 + \\cos(\\pi \\min(\\frac{t - W}{T - W}, 1))))^p$:
    equation 5 of [SGDR](https://arxiv.org/abs/1608.03983) (Loshchilov and Hutter 2017)
    without restarts.

    ```python
    >>> import functional_opt as fo
    >>> schedule = fo.Cosine(peak_value=1.0, warmup_steps=2, decay_steps=10)
    >>> [round(float(schedule(count)), 3) for count in (0, 1, 2, 4, 6, 10)]
    [0.0, 0.5, 1.0, 0.854, 0.5, 0.0]

    ```

    **Arguments:**

    - `init_value`: the value at the first update, where there is a warmup. Any finite
        number, in the unit of the hyperparameter, as `peak_value` and `end_value`.
    - `peak_value`: the value at the end of the warmup. Where it is 0, all that follows
        is 0, as in Optax.
    - `warmup_steps`: how many updates the warmup takes.
    - `decay_steps`: how many updates warmup and decay take together; more than
        `warmup_steps`.
    - `end_value`: the value from the end of the decay on.
    - `exponent`: at least 0; above 1 the decay comes earlier, below 1 later.
    """

    init_value: Scalar = number(0.0)
    peak_value: Scalar = number()
    warmup_steps: Steps = setting(0)
    decay_steps: PositiveSteps = setting()
    end_value: Scalar = number(0.0)
    exponent: NonNegative = number(1.0)

    def __check_init__(self) -> None:
        check_fields(self)  # Equinox checks the base class later than this one.
        if self.decay_steps <= self.warmup_steps:
            raise ValueError(
                f"`Cosine.decay_steps` must be greater than `Cosine.warmup_steps`, got "
                f"{self.decay_steps} and {self.warmup_steps}. It counts the warmup too."
            )

    @typed
    def __call__(self, count: jax.typing.ArrayLike) -> Scalars:
        # Optax's `warmup_cosine_decay_schedule`, but for the ratio.
        warmup = optax.linear_schedule(
            self.init_value, self.peak_value, self.warmup_steps
        )
        decay = optax.cosine_decay_schedule(
            self.peak_value,
            self.decay_steps - self.warmup_steps,
            alpha=_ratio(self.end_value, self.peak_value),
            exponent=self.exponent,
        )
        schedule = optax.join_schedules([warmup, decay], [self.warmup_steps])
        return schedule(count)  # pyright: ignore[reportReturnType]


def _ratio(end: Scalar, peak: Scalar) -> Scalar:
    """`end / peak`, or 0 where `peak` is 0."""
    if isinstance(peak, float):
        return end / peak if peak else 0.0
    # Where a derivative is taken, the quotient must be finite on both sides.
    is_zero = peak == 0
    return jnp.where(is_zero, 0.0, end / jnp.where(is_zero, 1.0, peak))
