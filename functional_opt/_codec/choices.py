"""The classes that a table may describe at a location of a document."""

import inspect
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from .._names import name_of
from .._recipe import Recipe
from .errors import shown, suggestion
from .fields import arms_of, fields_of, is_module, items_of, title_of
from .notation import Notation


# The errors of constructors for invalid values. `re.compile` raises the last two for
# patterns that exceed its limits.
REFUSALS = (ValueError, OverflowError, RecursionError)


class Choice(NamedTuple):
    """The classes that a table may describe at one location.

    The `name` in a table selects the class; without one it is the `default`.
    """

    title: str
    noun: str  # With its article, as in "an optimizer is expected here".
    options: Mapping[str, type]
    default: type | None
    is_abstract: bool = False  # Whether the title names a kind of classes.

    @property
    def unknown(self) -> str:
        """The start of the error for a name that no class has."""
        if self.is_abstract:
            return f"no {self.title.lower()} is named"
        return f"expected the name of {self.noun}, got"

    def name_of(self, cls: type) -> str | None:
        """The `name` that a table of this class requires here, if any."""
        return None if cls is self.default else name_of(cls)


def choice_of(bases: tuple[type, ...], kinds: tuple[type, ...]) -> Choice:
    """The classes with these bases: those of `kinds`, and the bases themselves.

    An abstract base stands for its subclasses among `kinds`. A concrete one is known
    from the annotation alone. The first is the default if all of them are concrete.
    """
    concrete = [base for base in bases if not inspect.isabstract(base)]
    found = [kind for kind in kinds if issubclass(kind, bases)]
    options = {name_of(cls): cls for cls in (*concrete, *found)}
    title = _title(bases)
    is_abstract = len(bases) == 1 and not concrete
    return Choice(
        title=title,
        noun=with_article(title.lower()) if is_abstract else f"a table for {title}",
        options=MappingProxyType(options),
        default=concrete[0] if concrete == list(bases) != [] else None,
        is_abstract=is_abstract,
    )


def _title(bases: tuple[type, ...]) -> str:
    """The common name of classes: that of their abstract base if they share one."""
    for shared in _abstract_bases(bases[0]) if len(bases) > 1 else ():
        if all(issubclass(base, shared) for base in bases):
            return title_of(shared)
    return " or ".join(map(title_of, bases))


def bases_of(annotation: Any) -> tuple[type, ...]:
    """The classes whose tables an annotation allows."""
    found = [arm for arm, _ in arms_of(annotation) if is_module(arm)]
    return tuple(dict.fromkeys(found))


def root_choice(kinds: tuple[type, ...], kind: type | None) -> Choice:
    """The classes of a whole document.

    If `kind` is `None`, its `name` is that of any class that the registry reaches, and
    a document without one is a recipe.
    """
    if kind is not None:
        return choice_of((kind,), kinds)
    options = {name_of(x): x for x in (Recipe, *kinds, *reachable(kinds), *kinds)}
    return Choice(
        "Module", "a table for Recipe", MappingProxyType(options), Recipe, True
    )


def reachable(kinds: tuple[type, ...]) -> list[type]:
    """All classes that may occur in a document, recipes first."""
    found: dict[type, None] = {}
    waiting: list[type] = [*reversed(kinds), Recipe]
    while waiting:
        cls = waiting.pop()
        if cls not in found:
            found[cls] = None
            waiting += reversed([x for f in fields_of(cls) for x in _parts(f, kinds)])
    return list(found)


def _parts(field: Any, kinds: tuple[type, ...]) -> list[type]:
    """The classes that may be in a field."""
    bases = [base for part in _parts_of(field.annotation) for base in bases_of(part)]
    return [cls for base in bases for cls in choice_of((base,), kinds).options.values()]


def _parts_of(annotation: Any) -> Iterator[Any]:
    """An annotation and those of the items of tuples in it."""
    yield annotation
    for arm, _ in arms_of(annotation):
        for item in items_of(arm) or ():
            yield from _parts_of(item)


def why_not(name: Any, choice: Choice, kinds: tuple[type, ...]) -> str:
    """The error for a table with a name that is not valid here."""
    if not isinstance(name, str):
        return f"expected a name, got {shown(name)}; {suggestion(name, choice.options)}"
    known = suggestion(name, choice.options)
    for kind in kinds:
        if name_of(kind) == name:
            is_other = f"{shown(name)} is {_sort_of(kind)}"
            return f"{is_other}; {choice.noun} is expected here; {known}"
    return f"{choice.unknown} {shown(name)}; {known}"


def _sort_of(cls: type) -> str:
    """The kind of a class, named after its most abstract base."""
    *_, base = (cls, *_abstract_bases(cls))
    return with_article(title_of(base).lower())


def with_article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _abstract_bases(cls: type) -> list[type]:
    """The abstract classes of the library among the bases, the closest first."""
    return [
        base
        for base in cls.__mro__
        if inspect.isabstract(base) and base.__name__.startswith("Abstract")
    ]


def written_as(value: Any, choice: Choice, notation: Notation) -> str | None:
    """The table that a bare value, such as `"adamw"` or `0.1`, probably stands for."""
    named = choice.options.get(value) if isinstance(value, str) else None
    if named is not None:
        required = {field.name: ... for field in fields_of(named) if field.required}
        return notation.table({"name": name_of(named), **required})
    for cls in dict.fromkeys((choice.default, *choice.options.values())):
        if cls is not None and (key := _takes(cls, value)) is not None:
            name = choice.name_of(cls)
            tag = {} if name is None else {"name": name}
            return notation.table(tag | {key: value})
    return None


def _takes(cls: type, value: Any) -> str | None:
    """The first key of a class, if nothing else is required and it fits the value."""
    first, *others = fields_of(cls) or (None,)
    if first is None or any(field.required for field in others):
        return None
    if not isinstance(value, str | int | float) or isinstance(value, bool):
        return None
    try:
        cls(**{first.name: value})
    except (TypeError, *REFUSALS):
        return None
    return first.name
