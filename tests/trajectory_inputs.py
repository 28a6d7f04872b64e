"""What the recorded trajectories start from: the same for the authors and for us."""

from pathlib import Path

import numpy as np


TRAJECTORIES = Path(__file__).parent / "trajectories"
STEPS = 20

# No axis of up to 6 is longer than the others' product: no covariance of it has a null
# space, whose basis would be arbitrary.
SHAPES = {
    "scalar": (),
    "vector": (5,),
    "square": (6, 6),
    "wide": (4, 7),
    "stacked": (2, 3, 6),
}


def params() -> dict[str, np.ndarray]:
    return _normal(np.random.default_rng(0))


def gradients() -> list[dict[str, np.ndarray]]:
    """They do not depend on the parameters, so that no error grows on itself."""
    generator = np.random.default_rng(1)
    return [_normal(generator) for _ in range(STEPS)]


def _normal(generator: np.random.Generator) -> dict[str, np.ndarray]:
    return {name: generator.normal(size=shape) for name, shape in SHAPES.items()}


def stand_in(shape: tuple[int, ...]) -> np.ndarray:
    """Takes the place of normal random numbers on both sides."""
    places = np.meshgrid(*map(np.arange, shape), indexing="ij")
    phase = sum((0.7 + axis) * place for axis, place in enumerate(places))
    return np.sqrt(2) * np.sin(1.0 + np.asarray(phase, np.float64))
