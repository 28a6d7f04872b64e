import subprocess
import sys
from typing import Any

import functional_opt as fo
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure


STABLE = fo.WarmupStableDecay(
    peak_value=0.3, warmup_steps=2, stable_steps=10, decay_steps=8
)
ENDLESS = fo.InverseSqrt(peak_value=0.3, warmup_steps=4)


@pytest.mark.parametrize(
    "schedule, corners",
    [
        (fo.Constant(0.1), (0,)),
        (STABLE, (0, 2, 12, 20)),
        (ENDLESS, (0, 4)),
        (fo.Cosine(peak_value=1.0, decay_steps=9), (0, 9)),
        (fo.CosineOnecycle(transition_steps=10, peak_value=1.0), (0, 3, 10)),
        (fo.LinearOnecycle(transition_steps=20, peak_value=1.0), (0, 6, 17, 20)),
        (
            fo.PiecewiseConstant(
                init_value=1.0,
                boundaries_and_scales={5: 0.5, 3: 0.1},  # pyright: ignore[reportArgumentType]
            ),
            (0, 3, 5),
        ),
    ],
    ids=lambda x: type(x).__name__,
)
def test_corners(schedule, corners):
    assert schedule.corners() == corners


def test_values_are_those_of_a_run():
    counts = jnp.arange(25)
    found = STABLE.values(range(25))
    assert isinstance(found, np.ndarray)
    fo.testing.assert_equal(found, jax.jit(STABLE)(counts))
    fo.testing.assert_equal(STABLE.values(counts), found)
    assert STABLE.values(12).shape == ()


def test_description():
    assert STABLE.describe().splitlines() == [
        "update  value",
        "     0  0      warmup",
        "     2  0.3    stable",
        "    12  0.3    decay",
        "    20  0      end",
    ]
    assert ENDLESS.describe().splitlines()[-1] == "     4  0.3    decay"


def test_schedule_of_a_user_has_no_end():
    class Halving(fo.AbstractSchedule):
        def __call__(self, count: Any) -> Any:
            return 0.5**count

    assert Halving().phases() == (("Halving", None),)
    assert Halving().describe().splitlines()[1] == "     0  1      Halving"
    assert Halving().resolve(100) == Halving()


def test_plot_of_axes():
    axes = Figure().subplots()
    STABLE.plot(axes)
    curve, dots = axes.lines[:2]
    counts, drawn = map(np.asarray, curve.get_data())
    assert (counts[0], counts[-1]) == (0, 21)
    np.testing.assert_array_equal(drawn, STABLE.values(counts))
    np.testing.assert_array_equal(dots.get_xdata(), STABLE.corners())
    assert [text.get_text() for text in axes.texts] == ["warmup", "stable", "decay"]


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_plot_of_a_file(tmp_path, suffix):
    path = tmp_path / f"rate.{suffix}"
    STABLE.plot(path)
    assert path.stat().st_size > 5_000


def test_plot_without_an_end(tmp_path):
    with pytest.raises(ValueError, match=r"`InverseSqrt` has no end: .* total_steps="):
        ENDLESS.plot(tmp_path / "rate.png")
    axes = Figure().subplots()
    ENDLESS.plot(axes, total_steps=100)
    assert np.asarray(axes.lines[0].get_xdata())[-1] == 100


def test_plot_without_matplotlib():
    code = """
import sys
sys.modules["matplotlib.figure"] = None
import functional_opt as fo
try:
    fo.Cosine(peak_value=1.0, decay_steps=9).plot("rate.png")
except ImportError as error:
    print(error)
"""
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert found.stdout == (
        "Plotting a schedule requires Matplotlib: `python -m pip install "
        "'functional_opt[plot]'`.\n"
    )
