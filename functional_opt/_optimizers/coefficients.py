"""Coefficients of iterations that make a matrix orthogonal."""

from typing import Any


Coefficients = tuple[float, float, float]


def as_coefficients(value: Any) -> Any:
    """Makes lists tuples and ints floats, so that equal coefficients are equal."""
    if isinstance(value, list | tuple):
        return tuple(as_coefficients(item) for item in value)
    return float(value) if type(value) is int else value


def check_coefficients(name: str, triples: tuple[Any, ...] | str, steps: int) -> None:
    """Checks that there are triples for all iterations of a class of this name."""
    if not triples:
        raise ValueError(f"`{name}.ns_coeffs` must have at least one triple, got ().")
    if isinstance(triples[0], tuple) and len(triples) > steps:
        raise ValueError(
            f"`{name}.ns_steps` must be at least the number of triples in "
            f"`{name}.ns_coeffs`, {len(triples)}, got {steps}."
        )
