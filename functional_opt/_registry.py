import dataclasses
import difflib
import inspect
import os
from collections.abc import Iterator, Mapping
from typing import Any, final, overload, TypeVar

from ._calls import typed
from ._config import AbstractConfig
from ._names import name_of


T = TypeVar("T")


@final
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Registry(Mapping[str, type]):
    """An immutable mapping from names to classes, composed by the user.

    The name of a class is its `__name__` in lower case. A registry contains only the
    classes that it was created with; `|` merges two registries into a new one.

    ```python
    >>> import functional_opt as fo
    >>> registry = fo.Registry.of(fo.AdamW, fo.Cosine)
    >>> registry["adamw"](b2=0.95).b2
    0.95
    >>> registry | fo.Registry.of(fo.Lion)
    Registry.of(AdamW, Cosine, Lion)

    ```

    **Arguments:**

    - `kinds`: the classes: concrete optimizers, schedules and other modules of this
        library; see `Registry.of`.
    """

    kinds: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        known: dict[str, type] = {}
        for kind in self.kinds:
            _check_kind(kind)
            if (name := name_of(kind)) in known:
                raise ValueError(
                    f"`Registry` has the name {name!r} twice: "
                    f"{_place(known[name])} and {_place(kind)}. Remove one of them, or "
                    "rename it."
                )
            known[name] = kind

    @classmethod
    def of(cls, *kinds: Any) -> "Registry":
        """A registry of these classes.

        **Arguments:**

        - `kinds`: concrete subclasses of `AbstractOptimizer` or `AbstractSchedule` with
            different names.
        """
        return cls(kinds)

    def __getitem__(self, name: str) -> type[AbstractConfig]:
        for kind in self.kinds:
            if name_of(kind) == name:
                return kind
        near = difflib.get_close_matches(str(name).lower(), self)
        meant = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise KeyError(
            f"No module is named {name!r}.{meant} Known: {', '.join(self) or 'none'}."
        )

    def __iter__(self) -> Iterator[str]:
        return map(name_of, self.kinds)

    def __len__(self) -> int:
        return len(self.kinds)

    def __contains__(self, name: object) -> bool:
        return any(known == name for known in self)

    def __or__(self, other: "Registry") -> "Registry":
        if not isinstance(other, Registry):
            return NotImplemented
        return Registry(self.kinds + other.kinds)

    @overload
    def decode(self, data: Any, kind: None = None) -> Any: ...

    @overload
    def decode(self, data: Any, kind: type[T]) -> T: ...

    @typed
    def decode(self, data: Any, kind: type | None = None) -> Any:
        """Builds a module from plain data: dicts, lists, numbers, strings.

        A module is a table with a key for each of its fields; fields that have a
        default can be omitted. Where several classes are possible, as in `optimizer`,
        `name` selects one: a name of this registry, never a path to import. Numbers,
        strings and bools stand for themselves, lists for tuples, names for dtypes,
        `{"array": 0.5, "dtype": "float32"}` for a 0-d array and `"none"` for `None`.

        ```python
        >>> import functional_opt as fo
        >>> registry = fo.Registry.of(fo.AdamW, fo.Cosine)
        >>> registry.decode({"optimizer": {"name": "adamw", "b2": 0.95}, "schedule": 1})
        Recipe(optimizer=AdamW(b2=0.95), schedule=Constant(value=1.0))

        ```

        **Arguments:**

        - `data`: a dict, such as [`json`][] and [`tomllib`][] return.
        - `kind`: the class to build, or an abstract class for any of its subclasses in
            this registry. If omitted, the `name` of the document selects the class; a
            document without one is a `Recipe`.

        **Raises:** `ConfigError` with all mistakes of the document.
        """
        from ._codec.decode import decode

        return decode(self.kinds, data, kind)

    @typed
    def encode(self, module: Any, kind: type | None = None) -> dict[str, Any]:
        """Returns plain data from which `decode` builds an equal module.

        **Arguments:**

        - `module`: a `Recipe`, or a module of this registry.
        - `kind`: as in `decode`.

        **Returns:** dicts, lists, floats, ints, bools and strings. A field that is None
        by default and None here is left out.

        **Raises:** `ConfigError` with the locations of values that plain data cannot
        represent: functions, traced values, modules that are not in this registry.
        """
        from ._codec.encode import encode

        return encode(self.kinds, module, kind)

    @overload
    def load(self, path: str | os.PathLike[str], kind: None = None) -> Any: ...

    @overload
    def load(self, path: str | os.PathLike[str], kind: type[T]) -> T: ...

    @typed
    def load(self, path: str | os.PathLike[str], kind: type | None = None) -> Any:
        """Builds a module from a file in TOML, YAML or JSON, depending on its suffix.

        **Arguments:**

        - `path`: a file that ends in `.toml`, `.yaml`, `.yml` or `.json`.
        - `kind`: as in `decode`.

        **Raises:** `ConfigError` with all mistakes of the file and their positions.
        """
        from ._codec.files import load

        return load(self.kinds, path, kind)

    @typed
    def save(
        self, module: Any, path: str | os.PathLike[str], kind: type | None = None
    ) -> None:
        """Writes a file from which `load` builds an equal module.

        **Arguments:**

        - `module`, `kind`: as in `encode`.
        - `path`: as in `load`.

        **Raises:** `ConfigError` as `encode` does.
        """
        from ._codec.files import save

        save(self.kinds, module, path, kind)

    @typed
    def json_schema(self, kind: type | None = None) -> dict[str, Any]:
        """Returns a JSON Schema (2020-12) of the documents that `decode` accepts.

        Editors complete and check documents with it. It contains names, keys, types,
        ranges, defaults and docstrings of all fields, but not what a class checks of
        several fields together.

        **Arguments:**

        - `kind`: as in `decode`. `Recipe` returns the simplest schema for recipes.
        """
        from ._codec.schema import json_schema

        return json_schema(self.kinds, kind)

    def __hash__(self) -> int:
        return hash(frozenset(self.items()))

    def __repr__(self) -> str:
        return f"Registry.of({', '.join(kind.__name__ for kind in self.kinds)})"


def _place(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _check_kind(kind: Any) -> None:
    if isinstance(kind, AbstractConfig):
        raise TypeError(
            f"`Registry` requires classes, got the instance {kind!r}. Pass "
            f"`{type(kind).__name__}`."
        )
    if not (isinstance(kind, type) and issubclass(kind, AbstractConfig)):
        raise TypeError(
            "`Registry` requires subclasses of `AbstractOptimizer` or "
            "`AbstractSchedule`, got "
            f"{_place(kind) if isinstance(kind, type) else repr(kind)}."
        )
    if inspect.isabstract(kind):
        missing = ", ".join(f"`{name}`" for name in sorted(kind.__abstractmethods__))
        raise TypeError(
            f"`Registry` requires concrete classes, got {_place(kind)}, which does not "
            f"implement {missing}."
        )
