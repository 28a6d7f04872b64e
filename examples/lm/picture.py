"""Plots the losses and the learning rate."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator


INK, GREY, BAND, LINE, MARK = "#1f2933", "#7b8794", "#9ecbf5", "#0b4f9c", "#d9480f"

Curve = Float[np.ndarray, " steps"]


class Story(NamedTuple):
    """The content of the plot; losses are in bits per byte."""

    title: str
    staged: Curve
    whole: Curve
    rates: Curve
    validation: float
    unigram: float
    verdict: str
    costs: str


def draw(story: Story, path: Path) -> Path:
    """Draws the plot into a file, and returns its path."""
    figure = Figure(figsize=(9, 6.4), dpi=160, layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    figure.suptitle(story.title, x=0.01, ha="left", color=INK, weight="bold")
    _draw_losses(top, story)
    _draw_rates(bottom, story.rates)
    for axes in (top, bottom):
        _clean(axes)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path


def _draw_losses(axes: Axes, story: Story) -> None:
    steps = np.arange(1, len(story.staged) + 1)
    axes.plot(steps, story.whole, color=BAND, lw=5, label="whole tree, plain Optax")
    axes.plot(steps, story.staged, color=LINE, lw=1.2, label="stage by stage")
    _level(axes, story.unigram, f"byte frequencies\n{story.unigram:.2f}", GREY)
    _level(axes, story.validation, f"validation\n{story.validation:.2f}", MARK)
    axes.set_ylabel("loss, bits per byte")
    found = f"Parameters at the end: {story.verdict}\n{story.costs}"
    axes.set_title(found, loc="left", fontsize=10)
    axes.legend(frameon=False, loc="best")


def _draw_rates(axes: Axes, rates: Curve) -> None:
    steps = np.arange(1, len(rates) + 1)
    axes.plot(steps, rates, color=LINE, lw=1.5)
    axes.fill_between(steps, rates, color=BAND, alpha=0.4, lw=0)
    axes.set(xlabel="step", ylabel="learning rate", ylim=(0, None))
    axes.ticklabel_format(axis="y", scilimits=(0, 0), useMathText=True)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(x=0.01)


def _level(axes: Axes, value: float, text: str, color: str) -> None:
    axes.axhline(value, color=color, lw=1, ls=(0, (4, 3)), zorder=1)
    axes.annotate(
        text,
        (1, value),
        xytext=(6, 0),
        xycoords=axes.get_yaxis_transform(),
        textcoords="offset points",
        va="center",
        color=color,
        fontsize=9,
    )


def _clean(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK)
    axes.grid(axis="y", color=GREY, alpha=0.2, lw=0.8)
