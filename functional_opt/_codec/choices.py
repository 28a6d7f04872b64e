"""Which classes a table may say at one place of a document."""

import inspect
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from .._recipe import Recipe
from .._registry import name_of
from .errors import shown, suggestion
from .fields import arms_of, is_module, title_of


class Choice(NamedTuple):
    """The classes that a table may say at one place.

    A table says its class by `name`; one without a name says the `default`.
    """

    title: str
    options: Mapping[str, type]
    default: type | None

    def name_of(self, cls: type) -> str | None:
        """The name that a table of this class carries here, if it needs one."""
        return None if cls is self.default else name_of(cls)


def choice_of(bases: tuple[type, ...], kinds: tuple[type, ...]) -> Choice:
    """The classes of these bases: those of `kinds`, and the bases themselves.

    An abstract base stands for the subclasses among `kinds`. One that can be made is
    known from the annotation alone, and the first is the default if all can.
    """
    made = [base for base in bases if not inspect.isabstract(base)]
    found = [kind for kind in kinds if issubclass(kind, bases)]
    options = {name_of(cls): cls for cls in (*made, *found)}
    return Choice(
        title=_title(bases),
        options=MappingProxyType(options),
        default=made[0] if made == list(bases) != [] else None,
    )


def _title(bases: tuple[type, ...]) -> str:
    """What classes are called together: by their abstract base if they share one."""
    for shared in _abstract_bases(bases[0]) if len(bases) > 1 else ():
        if all(issubclass(base, shared) for base in bases):
            return title_of(shared)
    return " or ".join(map(title_of, bases))


def bases_of(annotation: Any) -> tuple[type, ...]:
    """The classes whose tables an annotation allows."""
    found = [arm for arm, _ in arms_of(annotation) if is_module(arm)]
    return tuple(dict.fromkeys(found))


def root_choice(kinds: tuple[type, ...], kind: type | None) -> Choice:
    """The classes of a whole document; `None` is a recipe, or what its name says."""
    if kind is not None:
        return choice_of((kind,), kinds)
    options = {name_of(cls): cls for cls in (Recipe, *kinds)}
    return Choice("Recipe", MappingProxyType(options), Recipe)


def why_not(name: Any, choice: Choice, kinds: tuple[type, ...]) -> str:
    """Why no table here may have this name."""
    others = (kind for kind in kinds if name_of(kind) == name)
    other = next((f" but {_sort_of(kind)}" for kind in others), "")
    near = suggestion(name, choice.options)
    return f"{shown(name)} is no {choice.title}{other}; {near}"


def _sort_of(cls: type) -> str:
    """What a class is, in the words of its most abstract base."""
    *_, base = (cls, *_abstract_bases(cls))
    title = title_of(base)
    return f"{'an' if title[0] in 'AEIOU' else 'a'} {title}"


def _abstract_bases(cls: type) -> list[type]:
    """The abstract classes of ours that a class is one of, the nearest first."""
    return [
        base
        for base in cls.__mro__
        if inspect.isabstract(base) and base.__name__.startswith("Abstract")
    ]
