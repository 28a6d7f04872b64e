"""Templates as text in each format."""

import json
from collections.abc import Iterator
from types import MappingProxyType
from typing import Any

from .._codec.notation import Notation
from .entries import Entry


TOML, YAML = Notation("toml"), Notation("yaml")


def _toml(summary: str, entries: tuple[Entry, ...]) -> str:
    return _text(summary, _toml_lines(entries, ""))


def _toml_lines(entries: tuple[Entry, ...], above: str) -> Iterator[str]:
    """The lines of a table; those of tables in it come last, below their headers."""
    for entry in entries:
        if entry.table is None and entry.item is None:
            yield from _leaf(entry, TOML)
    for entry in entries:
        inner = entry.table or entry.item
        if inner is not None:
            path = f"{above}{TOML.key(entry.key)}"
            header = f"[{path}]" if entry.item is None else f"[[{path}]]"
            yield ""
            yield f"# {entry.comment}"
            yield from _given(entry, [header, *_toml_lines(inner, f"{path}.")])


def _yaml(summary: str, entries: tuple[Entry, ...]) -> str:
    return _text(summary, _yaml_lines(entries))


def _yaml_lines(entries: tuple[Entry, ...]) -> Iterator[str]:
    for entry in entries:
        if entry.table is None and entry.item is None:
            yield from _leaf(entry, YAML)
            continue
        lines = list(_yaml_lines(entry.table or entry.item or ()))
        dash = "  " if entry.item is None else "- "
        inner = [f"{dash}{lines[0]}", *(f"  {line}" for line in lines[1:])]
        yield f"# {entry.comment}"
        yield from _given(entry, [f"{YAML.key(entry.key)}:", *inner])


def _leaf(entry: Entry, notation: Notation) -> Iterator[str]:
    if entry.comment:
        yield f"# {entry.comment}"
    yield from _given(entry, [notation.pair(entry.key, entry.value)])


def _given(entry: Entry, lines: list[str]) -> list[str]:
    return [f"# {line}".rstrip() for line in lines] if entry.is_left_out else lines


def _text(summary: str, lines: Iterator[str]) -> str:
    head = [f"# {summary}", ""] if summary else []
    return "\n".join([*head, *lines]) + "\n"


def _json(summary: str, entries: tuple[Entry, ...]) -> str:
    """JSON has no comments: a placeholder marks each value that must be filled in."""
    del summary
    return json.dumps(_plain(entries), indent=2) + "\n"


def _plain(entries: tuple[Entry, ...]) -> dict[str, Any]:
    found = {}
    for entry in entries:
        if not entry.is_left_out:
            is_leaf = entry.table is None
            found[entry.key] = entry.value if is_leaf else _plain(entry.table or ())
        elif entry.expected is not None and not entry.takes_text:
            found[entry.key] = f"<{entry.expected}>"
    return found


RENDERERS = MappingProxyType({"toml": _toml, "yaml": _yaml, "json": _json})
FORMATS = tuple(RENDERERS)
