from typing import final

import jax
import optax

from .._base import AbstractSchedule
from .._config import number, setting
from .._types import PositiveSteps, Scalar, Scalars, Steps, typed


@final
class Linear(AbstractSchedule):
    """From one value to another in a straight line: `optax.linear_schedule`.

    With $W$ = `warmup_steps`, $B$ = `transition_begin`, $T$ = `transition_steps`, $I$ =
    `init_value` and $E$ = `end_value`, the value after $t$ updates is $I t / W$ where
    $t < W$, and from there $I + (E - I) \\min(\\max(t - W - B, 0), T) / T$.

    ```python
    >>> import functional_opt as fo
    >>> schedule = fo.Linear(init_value=1.0, end_value=0.0, transition_steps=8)
    >>> [float(schedule(count)) for count in (0, 2, 8, 9)]
    [1.0, 0.75, 0.0, 0.0]

    ```

    **Arguments:**

    - `init_value`: the value that the transition starts from. Any finite number, in
        the unit of the hyperparameter, as `end_value`.
    - `end_value`: the value from the end of the transition on.
    - `transition_steps`: how many updates the transition takes, at least 1.
    - `transition_begin`: how many updates after the warmup the transition starts.
    - `warmup_steps`: how many updates the value rises from 0 to `init_value` before
        all this. It is no field of Optax's; 0 is Optax's schedule.
    """

    init_value: Scalar = number()
    end_value: Scalar = number()
    transition_steps: PositiveSteps = setting()
    transition_begin: Steps = setting(0)
    warmup_steps: Steps = setting(0)

    @typed
    def __call__(self, count: jax.typing.ArrayLike) -> Scalars:
        schedule = optax.linear_schedule(
            init_value=self.init_value,
            end_value=self.end_value,
            transition_steps=self.transition_steps,
            transition_begin=self.transition_begin,
        )
        if self.warmup_steps:
            warmup = optax.linear_schedule(0.0, self.init_value, self.warmup_steps)
            schedule = optax.join_schedules([warmup, schedule], [self.warmup_steps])
        return schedule(count)  # pyright: ignore[reportReturnType]
