"""The display of a training run in the terminal."""

import time

import numpy as np
from jaxtyping import Float
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)


Rates = Float[np.ndarray, " steps"]


class Display:
    """A progress bar with step, loss, learning rate and speed of a training run."""

    def __init__(self, progress: Progress, name: str, rates: Rates):
        self._progress = progress
        self._rates = rates
        self._steps = 0
        self._tokens = 0
        self._started: float | None = None
        self._line = progress.add_task(
            name, total=len(rates), loss=0.0, rate=0.0, speed=0.0
        )

    def skip(self, steps: int) -> None:
        """Sets the number of steps that were completed before."""
        self._steps += steps
        self._progress.update(self._line, advance=steps)

    def advance(self, loss: float, tokens: int) -> None:
        """Advances by one step.

        **Arguments:**

        - `loss`: the loss in bits per byte.
        - `tokens`: the number of tokens of this step.
        """
        rate = float(self._rates[self._steps])
        self._steps += 1
        speed = self._speed(tokens)
        self._progress.update(self._line, advance=1, loss=loss, rate=rate, speed=speed)

    def _speed(self, tokens: int) -> float:
        """Tokens per second since the first step, which compiles programs."""
        now = time.perf_counter()
        if self._started is None:
            self._started = now
            return 0.0
        self._tokens += tokens
        return self._tokens / (now - self._started)


def progress_bar(shown: bool = True) -> Progress:
    """The bar that `Display` adds a line to."""
    return Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=12),
        MofNCompleteColumn(),
        TextColumn("loss [cyan]{task.fields[loss]:.3f}[/]"),
        TextColumn("rate [cyan]{task.fields[rate]:.1e}[/]"),
        TextColumn("[cyan]{task.fields[speed]:,.0f}[/] tokens/s"),
        TimeRemainingColumn(),
        disable=not shown,
    )
