"""The lines of a template, whatever its format."""

import re
from typing import Any, NamedTuple

from .._codec.choices import bases_of, Choice, choice_of
from .._codec.encode import plain_default
from .._codec.fields import arms_of, Field, fields_of, is_module, is_text, items_of
from .._codec.wires import Wires


PREFERRED = ("adamw", "cosine")
DEEPEST = 4


class Entry(NamedTuple):
    """One key of a table, with the comment above it.

    **Attributes:**

    - `key`, `comment`: as they are written.
    - `value`: plain data, or `...` where there is none to write.
    - `expected`: what the value must be, if whoever uses the template must fill it in.
    - `takes_text`: whether any string would do, also one that is meant as a comment.
    - `table`: the entries of the value if it is a table.
    - `item`: those of one item if the value is a list of tables.
    """

    key: str
    comment: str
    value: Any = ...
    expected: str | None = None
    takes_text: bool = False
    table: "tuple[Entry, ...] | None" = None
    item: "tuple[Entry, ...] | None" = None

    @property
    def is_left_out(self) -> bool:
        """Whether the entry is only a comment, so that a required key is missing."""
        if self.expected is None:
            return self.value is ...
        return self.table is None or all(x.expected is None for x in self.table)


class Entries:
    """Builds the entries of the classes of a registry."""

    def __init__(self, kinds: tuple[type, ...]) -> None:
        self._kinds = kinds
        self._wires = Wires(kinds)

    def of_class(self, cls: type, choice: Choice, depth: int = 0) -> tuple[Entry, ...]:
        """The entries of a class where the classes of a choice are expected."""
        name = choice.name_of(cls)
        first = () if name is None else (self._of_name(name, choice, depth),)
        return first + tuple(self._of_field(x, depth) for x in fields_of(cls))

    def _of_name(self, name: str, choice: Choice, depth: int) -> Entry:
        """The class itself if the template is about it, one to be chosen elsewhere."""
        if depth == 0:
            return Entry("name", "", name)
        known = f"one of {', '.join(choice.options)}"
        return Entry("name", f"Required: {known}.", name, known)

    def _of_field(self, field: Field, depth: int) -> Entry:
        comment = first_sentence(field.meaning)
        takes_text = any(is_text(arm) for arm, _ in arms_of(field.annotation))
        if not field.required:
            value = plain_default(self._kinds, field.default, field.annotation)
            value = ... if value is None and takes_text else value
            return Entry(field.name, comment, value, takes_text=takes_text)
        expected = self._wires.expected_of(field.annotation)
        comment = f"{comment} Required: {expected}.".strip()
        items = [x for arm, _ in arms_of(field.annotation) for x in items_of(arm) or ()]
        return Entry(
            field.name,
            comment,
            expected=expected,
            takes_text=takes_text,
            table=self._of_annotation(field.annotation, depth),
            item=self._of_annotation(items[0], depth) if items else None,
        )

    def _of_annotation(self, annotation: Any, depth: int) -> tuple[Entry, ...] | None:
        """The entries of a class that an annotation allows.

        `None` if there is no class, or a number would do where one is known.
        """
        choice = choice_of(bases_of(annotation), self._kinds)
        is_plain = any(not is_module(arm) for arm, _ in arms_of(annotation))
        if choice.default is not None and is_plain:
            return None
        for name in sorted(choice.options, key=lambda name: name not in PREFERRED):
            if depth < DEEPEST:
                return self.of_class(choice.options[name], choice, depth + 1)
        return None


def first_sentence(text: str) -> str:
    """The first sentence, with the links of Markdown as their text."""
    first, *_ = re.split(r"(?<=\.)\s+(?=[A-Z])", text, maxsplit=1)
    return re.sub(r"\[([^]]+)\]\([^)]*\)", r"\1", first)
