import dataclasses
import difflib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any, final

from ._config import AbstractConfig


@final
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Registry(Mapping[str, type]):
    """Modules by name: a frozen mapping that the user composes.

    The name of a class is its own in lower case. Nothing is in a registry but what its
    maker puts there, and `|` makes a new one of two.

    ```python
    >>> import functional_opt as fo
    >>> registry = fo.Registry.of(fo.AdamW, fo.Cosine)
    >>> registry["adamw"](b2=0.95).b2
    0.95
    >>> registry | fo.Registry.of(fo.Lion)
    Registry.of(AdamW, Cosine, Lion)

    ```

    **Arguments:**

    - `kinds`: the classes, each an optimizer, a schedule or another module of this
        library's kind that can be made; see `Registry.of`.
    """

    kinds: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        known: dict[str, type] = {}
        for kind in self.kinds:
            _check_kind(kind)
            if (name := _name(kind)) in known:
                raise ValueError(
                    f"`Registry` has the name {name!r} twice: "
                    f"{_place(known[name])} and {_place(kind)}. Leave one out, or "
                    "rename it."
                )
            known[name] = kind

    @classmethod
    def of(cls, *kinds: Any) -> "Registry":
        """A registry of these classes.

        **Arguments:**

        - `kinds`: subclasses of `AbstractOptimizer` or `AbstractSchedule`, none of them
            abstract, no two of one name.
        """
        return cls(kinds)

    def __getitem__(self, name: str) -> type[AbstractConfig]:
        for kind in self.kinds:
            if _name(kind) == name:
                return kind
        near = difflib.get_close_matches(str(name).lower(), self)
        meant = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise KeyError(
            f"No module is named {name!r}.{meant} Known: {', '.join(self) or 'none'}."
        )

    def __iter__(self) -> Iterator[str]:
        return map(_name, self.kinds)

    def __len__(self) -> int:
        return len(self.kinds)

    def __contains__(self, name: object) -> bool:
        return any(known == name for known in self)

    def __or__(self, other: "Registry") -> "Registry":
        if not isinstance(other, Registry):
            return NotImplemented
        return Registry(self.kinds + other.kinds)

    def __hash__(self) -> int:
        return hash(frozenset(self.items()))

    def __repr__(self) -> str:
        return f"Registry.of({', '.join(kind.__name__ for kind in self.kinds)})"


def _name(kind: type) -> str:
    return kind.__name__.lower()


def _place(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _check_kind(kind: Any) -> None:
    if isinstance(kind, AbstractConfig):
        raise TypeError(
            f"`Registry` takes classes, got the instance {kind!r}. Pass "
            f"`{type(kind).__name__}`."
        )
    if not (isinstance(kind, type) and issubclass(kind, AbstractConfig)):
        raise TypeError(
            "`Registry` takes subclasses of `AbstractOptimizer` or `AbstractSchedule`, "
            f"got {_place(kind) if isinstance(kind, type) else repr(kind)}."
        )
    if inspect.isabstract(kind):
        missing = ", ".join(f"`{name}`" for name in sorted(kind.__abstractmethods__))
        raise TypeError(
            f"`Registry` takes classes that can be made, got {_place(kind)}, which is "
            f"abstract: it lacks {missing}."
        )
