"""Files to begin with: every field, its default and what it means."""

import io
import json
import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import tomlkit
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from tomlkit.items import AoT, Table

import functional_opt as fo

from .._codec.errors import ConfigError, suggestion
from .._codec.fields import arms_of, fields_of, is_module, is_text, NONE, summary_of
from .examples import example


class Entry(NamedTuple):
    """One key of a table, with what is said above it."""

    key: str
    comment: str
    value: Any
    entries: "tuple[Entry, ...] | None"  # Those of the value, if it is a table.


def template(registry: fo.Registry, name: str, format: str) -> str:
    """A file that says a class, which loads as it is."""
    known = {"recipe": fo.Recipe, **registry}
    if name not in known:
        text = f"no module is named {name!r}; {suggestion(name, known)}"
        raise ConfigError([("", text)])
    try:
        module = example(known[name], registry.kinds)
    except ValueError as error:
        raise ConfigError([("", str(error))]) from None
    data = registry.encode(module)
    return WRITERS[format](
        _sentence(summary_of(type(module))), tuple(_entries(module, data))
    )


def _entries(module: Any, data: Mapping[str, Any]) -> Iterator[Entry]:
    if "name" in data:
        yield Entry("name", "", data["name"], None)
    for field in fields_of(type(module)):
        value = data.get(field.name, NONE)
        if field.name not in data and _takes_any_word(field.annotation):
            continue
        comment = _sentence(field.meaning)
        if field.required:
            comment = f"{comment} It has no default.".strip()
        part = getattr(module, field.name)
        nested = tuple(_entries(part, value)) if is_module(type(part)) else None
        yield Entry(field.name, comment, value, nested)


def _takes_any_word(annotation: Any) -> bool:
    return any(is_text(arm) for arm, _ in arms_of(annotation))


def _sentence(text: str) -> str:
    """The first sentence, and the links of Markdown as their text."""
    first, *_ = re.split(r"(?<=\.)\s+(?=[A-Z])", text, maxsplit=1)
    return re.sub(r"\[([^]]+)\]\([^)]*\)", r"\1", first)


def _toml(summary: str, entries: tuple[Entry, ...]) -> str:
    document = tomlkit.document()
    if summary:
        document.add(tomlkit.comment(summary))
        document.add(tomlkit.nl())
    _fill_toml(document, entries)
    return tomlkit.dumps(document)


def _fill_toml(table: Any, entries: tuple[Entry, ...]) -> None:
    """Adds the entries; those that TOML takes for tables of their own come last."""
    tables = []
    for entry in entries:
        if entry.entries is not None:
            value = tomlkit.table()
            value.add(tomlkit.comment(entry.comment))
            _fill_toml(value, entry.entries)
        else:
            value = tomlkit.item(entry.value)
        if isinstance(value, Table | AoT):
            tables.append((entry, value))
            continue
        if entry.comment:
            table.add(tomlkit.comment(entry.comment))
        table.add(entry.key, value)
    for entry, value in tables:
        table.add(tomlkit.nl())
        table.add(entry.key, value)


def _yaml(summary: str, entries: tuple[Entry, ...]) -> str:
    stream = io.StringIO()
    mapping = _yaml_mapping(entries, indent=0)
    mapping.yaml_set_start_comment(summary)
    yaml = YAML()
    yaml.width = 2**16
    yaml.dump(mapping, stream)
    return stream.getvalue()


def _yaml_mapping(entries: tuple[Entry, ...], indent: int) -> CommentedMap:
    mapping = CommentedMap()
    for entry in entries:
        nested = entry.entries
        mapping[entry.key] = (
            entry.value if nested is None else _yaml_mapping(nested, indent + 2)
        )
        if entry.comment:
            mapping.yaml_set_comment_before_after_key(
                entry.key, before=entry.comment, indent=indent
            )
    return mapping


def _json(summary: str, entries: tuple[Entry, ...]) -> str:
    """JSON has no comments: the schema says what the fields mean."""
    del summary
    return json.dumps(_plain(entries), indent=2) + "\n"


def _plain(entries: tuple[Entry, ...]) -> dict[str, Any]:
    return {
        entry.key: entry.value if entry.entries is None else _plain(entry.entries)
        for entry in entries
    }


WRITERS = MappingProxyType({"toml": _toml, "yaml": _yaml, "json": _json})
FORMATS = tuple(WRITERS)
