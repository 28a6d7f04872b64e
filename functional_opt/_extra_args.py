"""The extra arguments that the updates of optimizers require."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from ._slicing.errors import CrossStageError


class ExtraArg(NamedTuple):
    """The description of an extra argument, for `AbstractOptimizer.EXTRA_ARGS`.

    ```python
    >>> import functional_opt as fo
    >>> fo.PolyakSGD().extra_args()["value"].meaning
    'the loss whose gradient is given'

    ```

    **Attributes:**

    - `meaning`: its meaning, in words.
    - `instead`: for a function of all parameters, an alternative for stages and
        `Groups`, where no caller has all parameters. None for arrays.
    - `when`: whether an optimizer requires it. If None, it always does.
    """

    meaning: str
    instead: str | None = None
    when: Callable[[Any], bool] | None = None


def required(optimizers: Iterable[Any]) -> Iterator[tuple[str, str, ExtraArg]]:
    """The names of optimizers, with the names and descriptions of their arguments."""
    for optimizer in optimizers:
        for name, extra in optimizer.EXTRA_ARGS.items():
            if extra.when is None or extra.when(optimizer):
                yield type(optimizer).__name__, name, extra


def explain_extra_args(optimizers: Iterable[Any]) -> str:
    """A line for each extra argument, empty if there are none."""
    return "".join(
        f"\n{owner} requires the extra argument `{name}`: {extra.meaning}."
        for owner, name, extra in required(optimizers)
    )


def check_staged(optimizers: Iterable[Any], given: Mapping[str, Any] | None) -> None:
    """Checks that `build_mpmd` is given examples of all extra arguments.

    **Raises:** `CrossStageError` for an optimizer that cannot be split into stages, or
    calls a function of the whole parameters; `ValueError` for an argument that is
    missing.
    """
    optimizers = list(optimizers)
    for name, reason in _refused(optimizers, "build_mpmd"):
        raise CrossStageError(f"`{name}` cannot be split into stages: {reason}")
    for owner, name, extra in required(optimizers):
        if extra.instead is not None:
            raise CrossStageError(
                f"`{owner}` calls `{name}`, {extra.meaning}, with the whole "
                f"parameters, which no stage has. {extra.instead}"
            )
        if name not in (given or {}):
            raise ValueError(
                f"`{owner}` requires the extra argument `{name}`, {extra.meaning}. "
                f"Give `build_mpmd` an example or its shape and dtype, "
                f"`extra_args={{{name!r}: ...}}`, and pass the argument itself to each "
                "step."
            )


def check_inside(optimizers: Iterable[Any], kind: str) -> None:
    """Refuses optimizers that do not work in the field `optimizer` of a class."""
    for name, reason in _refused(optimizers, kind):
        raise ValueError(f"`{kind}.optimizer` cannot be or hold `{name}`: {reason}")


def check_grouped(optimizers: Iterable[Any], place: str) -> None:
    """Refuses optimizers that do not work in `Groups`."""
    optimizers = list(optimizers)
    for name, reason in _refused(optimizers, "Groups"):
        raise ValueError(f"`{place}` cannot be or hold `{name}`: {reason}")
    for owner, name, extra in required(optimizers):
        if extra.instead is not None:
            raise ValueError(
                f"`{place}` cannot be or hold `{owner}`, which calls `{name}`, "
                f"{extra.meaning}, with the whole parameters: a group has only its "
                f"own. {extra.instead}"
            )


def _refused(optimizers: Iterable[Any], place: str) -> Iterator[tuple[str, str]]:
    for optimizer in optimizers:
        if (reason := optimizer.REFUSED_BY.get(place)) is not None:
            yield type(optimizer).__name__, reason
