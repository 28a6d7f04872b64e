"""Warmup-stable-decay schedules, and decays that branch off another schedule."""

import dataclasses
from dataclasses import KW_ONLY
from typing import Any, final, Literal

import jax
import jax.numpy as jnp
import optax

from .._base import AbstractSchedule
from .._durations import Duration, known_steps, PositiveDuration
from .._fields import duration, number, part, setting
from .._previews import spans
from .._types import Scalar
from .base import AbstractOptaxSchedule
from .cosine import ratio


DecayType = Literal["linear", "cosine", "sqrt"]


@final
class WarmupStableDecay(AbstractOptaxSchedule):
    """Linear warmup, constant phase and final decay.

    [WSD](https://arxiv.org/abs/2404.06395) (Hu et al. 2024, section 4.2). Each phase
    has its own duration: `decay_steps` does not include the other phases. To start the
    decay of a run that is in its constant phase, end this phase at the current update,
    or wrap the schedule in a `Cooldown`. Neither changes the state of the optimizer.

    ```python
    >>> import functional_opt as fo
    >>> schedule = fo.WarmupStableDecay(
    ...     peak_value=1.0, warmup_steps=2, stable_steps=6, decay_steps=4
    ... )
    >>> [float(schedule(count)) for count in (0, 1, 2, 8, 10, 12)]
    [0.0, 0.5, 1.0, 1.0, 0.5, 0.0]

    ```

    **Arguments:**

    - `init_value`: the value at the first update, if there is a warmup; finite.
    - `peak_value`: the value of the constant phase; finite.
    - `warmup_steps`: duration of the warmup, in updates or as a `Fraction`.
    - `stable_steps`: duration of the constant phase. If None, the rest of the run,
        given the length of the run by `Recipe.build(total_steps=...)` or `resolve`.
    - `decay_steps`: duration of the decay, in updates, at least 1, or as a `Fraction`.
    - `end_value`: the value from the end of the decay on; finite.
    - `decay_type`: "linear"; "cosine" for half a cosine; or "sqrt" for
        $1 - \\sqrt{t / T}$, equation 1 of
        [Hägele et al. 2024](https://arxiv.org/abs/2405.18392).
    """

    _: KW_ONLY
    init_value: Scalar = number(default=0.0)
    peak_value: Scalar = number()
    warmup_steps: Duration = duration(default=0)
    stable_steps: Duration | None = duration(default=None)
    decay_steps: PositiveDuration = duration()
    end_value: Scalar = number(default=0.0)
    decay_type: DecayType = setting(default="linear")

    def _in_run(self, total_steps: int) -> Any:
        if self.stable_steps is not None:
            return self
        warmup, decay = (known_steps(self, f"{x}_steps") for x in ("warmup", "decay"))
        if warmup + decay > total_steps:
            raise ValueError(
                f"`WarmupStableDecay.warmup_steps` = {warmup} and "
                f"`WarmupStableDecay.decay_steps` = {decay} overlap in a run of "
                f"{total_steps} updates. Shorten one of them."
            )
        stable = total_steps - warmup - decay
        return dataclasses.replace(self, stable_steps=stable)

    def phases(self) -> tuple[tuple[str, int | None], ...]:
        return tuple(
            (name, known_steps(self, f"{name}_steps"))
            for name in ("warmup", "stable", "decay")
        )

    def build(self) -> optax.Schedule:
        (_, warmup), (_, stable), (_, decay) = self.phases()
        assert warmup is not None and stable is not None and decay is not None
        return optax.join_schedules(
            [
                optax.linear_schedule(self.init_value, self.peak_value, warmup),
                optax.constant_schedule(self.peak_value),
                _decay(self.decay_type, self.peak_value, self.end_value, decay),
            ],
            [warmup, warmup + stable],
        )


@final
class Cooldown(AbstractOptaxSchedule):
    """A decay that branches off another schedule.

    The value is that of `schedule` until `start_at`, and then decays to `end_value`.
    Counts are those of the whole run, and the state of the optimizer has the same
    structure as with `schedule`. Any checkpoint of a run can therefore be resumed with
    a cooldown.

    ```python
    >>> import functional_opt as fo
    >>> stable = fo.WarmupConstant(init_value=0.0, peak_value=1.0, warmup_steps=2)
    >>> schedule = fo.Cooldown(stable, start_at=8, decay_steps=4)
    >>> [float(schedule(count)) for count in (0, 2, 8, 10, 12)]
    [0.0, 1.0, 1.0, 0.5, 0.0]

    ```

    **Arguments:**

    - `schedule`: the schedule before the decay.
    - `start_at`: the number of completed updates when the decay begins, as an int or a
        `Fraction`. If None, the decay ends with the run, given its length by
        `Recipe.build(total_steps=...)` or `resolve`.
    - `decay_steps`: duration of the decay, in updates, at least 1, or as a `Fraction`.
    - `end_value`: the value from the end of the decay on; finite.
    - `decay_type`: as in `WarmupStableDecay`.
    """

    schedule: AbstractSchedule = part()
    _: KW_ONLY
    start_at: Duration | None = duration(default=None)
    decay_steps: PositiveDuration = duration()
    end_value: Scalar = number(default=0.0)
    decay_type: DecayType = setting(default="linear")

    def _in_run(self, total_steps: int) -> Any:
        if self.start_at is not None:
            return self
        decay_steps = known_steps(self, "decay_steps")
        if decay_steps > total_steps:
            raise ValueError(
                f"`Cooldown.decay_steps` = {decay_steps} is longer than the run of "
                f"{total_steps} updates. Shorten it."
            )
        return dataclasses.replace(self, start_at=total_steps - decay_steps)

    def phases(self) -> tuple[tuple[str, int | None], ...]:
        start_at = known_steps(self, "start_at")
        before = [
            (name, min(start_at if end is None else end, start_at) - start)
            for name, start, end in spans(self.schedule)
            if start < start_at
        ]
        held = start_at - sum(steps for _, steps in before)
        decay_steps = known_steps(self, "decay_steps")
        return (*before, ("constant", held), ("cooldown", decay_steps))

    def build(self) -> optax.Schedule:
        start_at = known_steps(self, "start_at")
        decay_steps = known_steps(self, "decay_steps")
        start: Any = self.schedule(start_at)
        decay = _decay(self.decay_type, start, self.end_value, decay_steps)
        return optax.join_schedules([self.schedule, decay], [start_at])


def _decay(
    decay_type: DecayType, start: Scalar, end: Scalar, steps: int
) -> optax.Schedule:
    if decay_type == "linear":
        return optax.linear_schedule(start, end, steps)
    if decay_type == "cosine":
        return optax.cosine_decay_schedule(start, steps, alpha=ratio(end, start))

    def root(count: jax.typing.ArrayLike) -> jax.Array:
        part = jnp.clip(count, 0, steps) / steps
        return (start - end) * (1 - jnp.sqrt(part)) + end

    return root
