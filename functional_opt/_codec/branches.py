"""A JSON Schema in which editors find the branch that applies to a value.

Pydantic writes `oneOf`. Of a table that fits none of its branches, most validators only
report that, for the whole table. With `if` and `then`, the name of a table selects the
branch, and mistakes are reported at the key or value that is wrong.

Taplo completes no keys behind `then`. For it, the keys of all branches are listed
without types. `doNotSuggest` hides them from other language servers, which complete the
keys of the selected branch. An `allOf` must be behind `then`, too: Taplo would merge it
again and again (`collect_child_schemas` removes it from objects only).
https://github.com/tamasfe/taplo/blob/master/crates/taplo-common/src/schema/mod.rs
"""

from collections.abc import Mapping
from types import MappingProxyType, NoneType
from typing import Any


TYPES = MappingProxyType(
    {bool: "boolean", int: "integer", str: "string", NoneType: "null"}
)

Schema = dict[str, Any]


def branched(schema: Schema) -> Schema:
    """The same schema with `if` and `then` in place of `oneOf`."""
    return Branches(schema.get("$defs", {})).of(schema)


class Branches:
    """Rewrites the schemas of a document with these definitions."""

    def __init__(self, definitions: Mapping[str, Schema]) -> None:
        self._definitions = definitions

    def of(self, schema: Any) -> Any:
        if isinstance(schema, list):
            return [self.of(item) for item in schema]
        if not isinstance(schema, dict):
            return schema
        rest = {key: self.of(value) for key, value in schema.items() if key != "oneOf"}
        if "oneOf" not in schema:
            return rest
        # A registry may have no class for a location: then no table is valid there.
        arms = [arm for arm in schema["oneOf"] if self._resolved(arm) != {"not": {}}]
        are_named = all(self._name(arm) is not None for arm in arms)
        return rest | (self._by_name(arms) if are_named else self._by_type(arms))

    def _resolved(self, schema: Schema) -> Schema:
        while "$ref" in schema:
            schema = self._definitions[schema["$ref"].removeprefix("#/$defs/")]
        return schema

    def _type(self, arm: Schema) -> str:
        """The type of a branch; of one with branches, the type that they share."""
        schema = self._resolved(arm)
        if "type" in schema:
            return schema["type"]
        if "enum" in schema:
            return TYPES[type(schema["enum"][0])]
        arms = schema["oneOf"] if "oneOf" in schema else schema["anyOf"]
        return self._type(arms[0])

    def _name(self, arm: Schema) -> str | None:
        return self._keys(arm).get("name", {}).get("const")

    def _keys(self, arm: Schema) -> dict[str, Schema]:
        return self._resolved(arm).get("properties", {})

    def _by_name(self, arms: list[Schema]) -> Schema:
        """Tables of several classes: the name selects one, or there is a default."""
        branches = [
            {"if": _has_name(self._name(arm)), "then": self.of(arm)} for arm in arms
        ]
        schema: Schema = {
            "type": "object",
            "properties": self._all_keys(arms),
            "if": {"required": ["name"]},
            "then": {"allOf": branches},
        }
        for arm in arms:
            if "name" not in self._resolved(arm).get("required", []):
                return schema | {"else": self.of(arm)}
        return schema | {"required": ["name"]}

    def _all_keys(self, arms: list[Schema]) -> Schema:
        """The keys of all classes, with their meanings in Taplo's own extension."""
        meanings: dict[str, dict[str, list[str]]] = {}
        for arm in arms:
            title = self._resolved(arm).get("title", "")
            for key, value in self._keys(arm).items():
                known = meanings.setdefault(key, {})
                known.setdefault(value.get("description", ""), []).append(title)
        keys: Schema = {"name": {"enum": [self._name(arm) for arm in arms]}}
        for key in [key for key in meanings if key != "name"]:
            texts = [f"{x} ({', '.join(names)})" for x, names in meanings[key].items()]
            docs = {"main": "\n\n".join(texts)}
            keys[key] = {"title": key, "doNotSuggest": True, "x-taplo": {"docs": docs}}
        return keys

    def _by_type(self, arms: list[Schema]) -> Schema:
        """Values of several types: the type selects a branch."""
        words = [word for arm in arms if "enum" in arm for word in arm["enum"]]
        others = [arm for arm in arms if "enum" not in arm]
        types = [self._type(arm) for arm in others]
        branches = [
            {"if": self._condition(arm, name, types), "then": self.of(arm)}
            for arm, name in zip(others, types, strict=True)
        ]
        if words:
            kinds = sorted({TYPES[type(word)] for word in words})
            branches.append({"if": {"type": kinds}, "then": {"enum": words}})
            types += kinds
        schema: Schema = {}
        for branch in reversed(branches):
            schema = branch | ({"else": schema} if schema else {})
        return {"type": sorted(set(types)), **schema}

    def _condition(self, arm: Schema, name: str, types: list[str]) -> Schema:
        """The condition that distinguishes a value of this branch from all others."""
        if name == "object" and types.count(name) > 1:
            is_array = "array" in self._keys(arm)
            return {"type": name, **(_array() if is_array else {"not": _array()})}
        if name == "number" and "integer" in types:
            return {"type": name, "not": {"type": "integer"}}
        return {"type": name}


def _array() -> Schema:
    """A table for a 0-d array, which has no name."""
    return {"required": ["array"], "not": {"required": ["name"]}}


def _has_name(name: str | None) -> Schema:
    return {"properties": {"name": {"const": name}}, "required": ["name"]}
