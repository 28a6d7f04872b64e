"""The pages of the reference, made of the public names."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from functional_opt._annotations import describe, limit_text, shown
from functional_opt._codec.fields import arms_of, Field, fields_of
from public_names import pages, public, summary, TITLES


# Of each page, where to see or to read more.
MORE = {
    "optimizers": ("Pictures", "../gallery/optimizers.md"),
    "schedules": ("Pictures", "../gallery/schedules.md"),
    "recipes": ("How to use them", "../recipes.md"),
    "stages": ("How to use them", "../stage_local.md"),
    "checkpoints": ("How to use them", "../checkpoints.md"),
    "testing": ("How to use them", "../ideas/equal.md"),
}


def page_text(page: str) -> str:
    """The Markdown of a page; mkdocstrings renders its directives."""
    objects = "\n\n".join(f"::: {path}" for path in pages()[page])
    words, link = MORE[page]
    return f"# {TITLES[page]}\n\n[{words}]({link})\n\n{objects}\n"


def index_text() -> str:
    """All public names with their first sentences."""
    return "\n".join(["# API reference", "", *_index()]) + "\n"


def _index() -> Iterator[str]:
    objects = public()
    yield "All names are imported as `import functional_opt as fo`."
    for page, paths in pages().items():
        yield f"\n## {TITLES[page]}\n"
        yield "| Name | |"
        yield "| --- | --- |"
        for path in paths:
            name = path.removeprefix("functional_opt.")
            yield f"| [`{name}`][{path}] | {_cell(summary(objects[path]))} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def fields_table(cls: Any) -> str:
    """The fields of a class with their types in words and their defaults."""
    rows = [
        f"| `{field.name}` | {_cell(type_text(field))} | {_cell(_default(field))} |"
        for field in fields_of(cls)
    ]
    return "\n".join(["| Field | Type | Default |", "| --- | --- | --- |", *rows])


def type_text(field: Field) -> str:
    """In words, which values a field accepts."""
    limits = [
        limit_text(limit)
        for _, metadata in arms_of(field.annotation)
        for limit in metadata
        if hasattr(limit, "ge")
    ]
    return ", ".join(dict.fromkeys([describe(field.annotation), *limits]))


def _default(field: Field) -> str:
    return "required" if field.required else f"`{shown(field.default)}`"


def has_fields(value: Any) -> bool:
    return isinstance(value, type) and dataclasses.is_dataclass(value)
