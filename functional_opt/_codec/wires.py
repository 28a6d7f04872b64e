"""What pydantic validates, derived from the annotated fields of modules.

Never the modules themselves: pydantic builds a dataclass without its `__init__` and
`__check_init__`. Each class has a wire, a strict `TypedDict` of its fields, and is
called with the values that pass it.
"""

import functools
from collections.abc import Callable
from types import NoneType
from typing import (
    Annotated,
    Any,
    ForwardRef,
    get_args,
    get_origin,
    Literal,
    NotRequired,
)

import numpy as np
import typing_extensions
from pydantic import (
    ConfigDict,
    Field as Described,
    TypeAdapter,
    ValidationError,
    WrapValidator,
)

from .._names import name_of
from .choices import (
    bases_of,
    Choice,
    choice_of,
    REFUSALS,
    root_choice,
    why_not,
    written_as,
)
from .encode import plain_default
from .errors import known, shown
from .fields import arms_of, Field, fields_of, is_scalar_array, is_text, items_of
from .problems import (
    About,
    CLASS,
    HABITS,
    Info,
    MOST_PROBLEMS,
    Problem,
    Reading,
    refusal_of_module,
    reworded,
)
from .scalars import (
    array_wire,
    dtype_wire,
    FINITE,
    integer_wire,
    literal_wires,
    no_wire,
    noun_of,
    number_wire,
)
from .tables import table
from .unions import expected, first_of, tagged, union_wire


# To pyright it is syntax.
TypeAliasType: Any = typing_extensions.TypeAliasType


@functools.lru_cache(maxsize=64)
def adapter_of(kinds: tuple[type, ...], kind: type | None) -> TypeAdapter:
    """Validates a document that describes a module of this kind."""
    wires = Wires(kinds)
    root: Any = wires.of_tables(root_choice(kinds, kind))
    adapter = TypeAdapter(root, config=ConfigDict(defer_build=True))
    adapter.rebuild(_types_namespace=wires.aliases)
    return adapter


class Wires:
    """The wires of the modules of one registry, by alias.

    A location that accepts tables refers to them by an alias, so that a module can
    hold modules of its own kind.
    """

    def __init__(self, kinds: tuple[type, ...]) -> None:
        self.aliases: dict[str, Any] = {}
        self._kinds = kinds
        self._known: dict[Any, str] = {}
        self.tables: dict[tuple[type, bool], Any] = {}

    def of_tables(self, choice: Choice) -> ForwardRef:
        """The wire of a location that accepts tables of these classes."""
        key = (choice.title, *choice.options.items(), choice.default)
        if key not in self._known:
            alias = self._new_alias(choice)
            self._known[key] = alias
            self.aliases[alias] = TypeAliasType(alias, self._any_of(choice))
        return ForwardRef(self._known[key])

    def _new_alias(self, choice: Choice) -> str:
        title = choice.title.replace(" or ", "Or")
        alias = title if choice.default is None else f"{title}Table"
        number = sum(known.startswith(alias) for known in self._known.values())
        return f"{alias}{number + 1}" if number else alias

    def _any_of(self, choice: Choice) -> Any:
        classes = [choice.default, *choice.options.values()]
        named = {
            choice.name_of(cls) or "": self._table(cls, cls is choice.default)
            for cls in classes
            if cls is not None
        }
        check = WrapValidator(_check_of(choice, self._kinds))
        return Annotated[tagged(named, lambda table: _tag(table, choice)), check]

    def _table(self, cls: type, is_default: bool) -> Any:
        """The wire of one class, and the module built from the values that pass."""
        if (cls, is_default) not in self.tables:
            wire = self._keys_of(cls, is_default)
            self.tables[cls, is_default] = Annotated[wire, WrapValidator(_maker(cls))]
        return self.tables[cls, is_default]

    def _keys_of(self, cls: type, is_default: bool) -> Any:
        name = Literal[name_of(cls)]  # pyright: ignore[reportInvalidTypeForm]
        keys = {"name": NotRequired[name] if is_default else name}
        for field in fields_of(cls):
            wire = self._of_field(field)
            keys[field.name] = wire if field.required else NotRequired[wire]
        is_both = is_default and cls in self._kinds
        key = f"{cls.__name__}WithoutName" if is_both else cls.__name__
        return table(key, keys, cls)

    def _of_field(self, field: Field) -> Any:
        wire = self._of_annotation(field.annotation, (FINITE,))

        def add_default(schema: dict[str, Any]) -> None:
            if not field.required:
                default = plain_default(self._kinds, field.default, field.annotation)
                schema["default"] = default

        return Annotated[
            wire,
            Described(
                title=field.name,
                description=field.meaning or None,
                json_schema_extra=add_default,
            ),
        ]

    def expected_of(self, annotation: Any) -> str:
        """The values that a field with this annotation accepts, in words."""
        bases = bases_of(annotation)
        nouns = {"table": choice_of(bases, self._kinds).noun} if bases else {}
        types = arms_of(annotation, (FINITE,))
        sorts = [sort for arm, limits in types for sort, _ in self._of_arm(arm, limits)]
        return expected({*nouns, *sorts}, nouns | _nouns(types))

    def _of_annotation(self, annotation: Any, limits: tuple[Any, ...] = ()) -> Any:
        arms: dict[str, list[Any]] = {}
        bases = bases_of(annotation)
        choice = choice_of(bases, self._kinds)
        if bases:
            arms["table"] = [self.of_tables(choice)]
        types = arms_of(annotation, limits)
        for arm, arm_limits in types:
            for sort, wire in self._of_arm(arm, arm_limits):
                arms.setdefault(sort, []).append(wire)
        if not arms:
            return no_wire()

        def hint(value: Any, reading: Reading) -> str | None:
            return written_as(value, choice, reading.notation) if bases else None

        return union_wire(
            {sort: first_of(several) for sort, several in arms.items()},
            {"table": choice.noun} | _nouns(types),
            has_word=not any(is_text(arm) for arm, _ in types),
            hint=hint,
        )

    def _of_arm(self, arm: Any, limits: tuple[Any, ...]) -> list[tuple[str, Any]]:
        """The wires of a type by the sort of data that they read."""
        if arm is NoneType:
            return [("none", None)]
        if arm is bool or arm is str:
            return [("boolean" if arm is bool else "text", arm)]
        if arm is int:
            return [("integer", integer_wire(limits))]
        if arm is float:
            return [("number", number_wire(limits))]
        if arm is np.dtype:
            return [("text", dtype_wire(limits))]
        if get_origin(arm) is Literal:
            return literal_wires(arm)
        if (items := items_of(arm)) is not None:
            return [("list", self._of_tuple(items))]
        if is_scalar_array(arm):
            return [("array", array_wire(arm, limits))]
        return []

    def _of_tuple(self, items: tuple[Any, ...]) -> Any:
        wires = tuple(
            item if item is Ellipsis else self._of_annotation(item) for item in items
        )
        return Annotated[tuple[wires], Described(strict=False)]


def _nouns(types: list[tuple[Any, Any]]) -> dict[str, str]:
    """More specific names of sorts: the range of a number, the words allowed."""
    arms = [arm for arm, _ in types]
    words = [x for arm in arms if get_origin(arm) is Literal for x in get_args(arm)]
    nouns = [repr(word) for word in words if isinstance(word, str)]
    nouns += ["a dtype"] if np.dtype in arms else []
    texts = {"text": " or ".join(nouns)} if nouns and str not in arms else {}
    sorts = {int: "integer", float: "number"}
    numbers = {sorts[x]: noun_of(sorts[x], y) for x, y in types if x in sorts}
    return numbers | texts


Validator = Callable[[Any, Callable[[Any], Any], Info], Any]


def _check_of(choice: Choice, kinds: tuple[type, ...]) -> Validator:
    def check(value: Any, validate: Callable[[Any], Any], info: Info) -> Any:
        problem = _problem_of(value, choice, kinds, info.context)
        if problem is not None:
            raise info.context.refusal(problem)
        return validate(value)

    return check


def _problem_of(
    value: Any, choice: Choice, kinds: tuple[type, ...], reading: Reading
) -> Problem | None:
    """The error for a value with an unknown class."""
    if not isinstance(value, dict):
        text = f"expected {choice.noun}, got {shown(value)}"
        is_joined = isinstance(value, str) and ":" in value
        if is_joined and reading.notation.format == "yaml":
            text += "; YAML requires a space after a colon"
        return Problem((), text)
    if "name" in value:
        name = value["name"]
        is_known = isinstance(name, str) and name in choice.options
        return None if is_known else Problem(("name",), why_not(name, choice, kinds))
    if choice.default is not None:
        return None
    options = known(choice.options)
    for key in value:
        if HABITS.get(key) is CLASS:
            return Problem((key,), f"{CLASS.text()}; {options}", About.KEY)
    return Problem(("name",), f"the name of {choice.noun} is required; {options}")


def _tag(table: dict[str, Any], choice: Choice) -> str:
    cls = choice.options.get(table["name"]) if "name" in table else choice.default
    return "" if cls is None else choice.name_of(cls) or ""


def _maker(cls: type) -> Validator:
    keys = [field.name for field in fields_of(cls)]
    most = len(keys) + MOST_PROBLEMS

    def make(
        value: Any,
        validate: Callable[[Any], Any],
        info: Info,
    ) -> Any:
        reading = info.context
        if len(value) > most:
            text = f"{cls.__name__} has {len(keys)} keys, got {len(value):,}"
            raise reading.refusal(Problem((), text))
        try:
            given = validate(value)
        except ValidationError as error:
            raise reworded(error, cls.__name__, keys, reading) from None
        if reading.is_full:
            return None
        try:
            return cls(**{key: given[key] for key in keys if key in given})
        except REFUSALS as error:
            raise refusal_of_module(cls, error, reading) from None

    return make
