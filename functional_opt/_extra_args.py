"""The extra arguments that the updates of optimizers require."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from ._slicing.errors import CrossStageError


class ExtraArg(NamedTuple):
    """The description of an extra argument, for `AbstractOptimizer.extra_args`.

    ```python
    >>> import functional_opt as fo
    >>> fo.PolyakSGD().extra_args()["value"].meaning
    'the loss whose gradient is given'

    ```

    **Attributes:**

    - `meaning`: its meaning, in words.
    - `instead`: for a function of all parameters, an alternative for stages and
        `Groups`, where no caller has all parameters. None for arrays.
    """

    meaning: str
    instead: str | None = None


def required(optimizers: Iterable[Any]) -> Iterator[tuple[str, str, ExtraArg]]:
    """The names of optimizers, with the names and descriptions of their arguments."""
    for optimizer in optimizers:
        for name, extra in optimizer.extra_args().items():
            yield type(optimizer).__name__, name, extra


def explain_extra_args(optimizers: Iterable[Any]) -> str:
    """A line for each extra argument, empty if there are none."""
    return "".join(
        f"\n{owner} requires the extra argument `{name}`: {extra.meaning}."
        for owner, name, extra in required(optimizers)
    )


def check_staged(optimizers: Iterable[Any], given: Mapping[str, Any] | None) -> None:
    """Checks that `build_mpmd` is given examples of all extra arguments.

    **Raises:** `CrossStageError` for a function of the whole parameters; `ValueError`
    for an argument that is missing.
    """
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


def check_grouped(optimizers: Iterable[Any], place: str) -> None:
    """Refuses optimizers in `Groups` that call functions of all parameters."""
    for owner, name, extra in required(optimizers):
        if extra.instead is not None:
            raise ValueError(
                f"`{place}` is or holds `{owner}`, which calls `{name}`, "
                f"{extra.meaning}, with the whole parameters: a group has only its "
                f"own. {extra.instead}"
            )


def check_combined(optimizers: Iterable[Any], place: str) -> None:
    """Refuses optimizers that cannot be combined with others."""
    for optimizer in optimizers:
        if optimizer.ALONE is not None:
            name = type(optimizer).__name__
            raise ValueError(
                f"`{place}` cannot be or hold `{name}`: {optimizer.ALONE} Use "
                f"`{name}.build` or `{name}.build_mpmd`."
            )
