"""JSON Schema of the documents of a registry, for editors."""

from typing import Any

from .branches import branched
from .wires import adapter_of


DIALECT = "https://json-schema.org/draft/2020-12/schema"


def json_schema(kinds: tuple[type, ...], kind: type | None) -> dict[str, Any]:
    """The schema of a document that describes a module of this kind."""
    return {"$schema": DIALECT, **branched(adapter_of(kinds, kind).json_schema())}
