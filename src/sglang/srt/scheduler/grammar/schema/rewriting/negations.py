"""Rewrites `not` as what remains allowed, where that can be expressed exactly.

{"type": "string", "enum": ["a", "b"], "not": {"const": "a"}}     ->  {"type": "string", "enum": ["b"]}
{"type": "string", "not": {"enum": ["a"]}}                        ->  a pattern for all other strings
{"type": "object", "not": {"required": ["a", "b"]}}               ->  without a, or without b
{"not": {"type": "null"}}                                         ->  all other types
{"not": {"anyOf": [A, B]}}                                        ->  neither
"""

from __future__ import annotations

from typing import Any

from sglang.srt.scheduler.grammar.schema.drafts import counts
from sglang.srt.scheduler.grammar.schema.keywords import CONSTRAINING, Node
from sglang.srt.scheduler.grammar.schema.rewriting.conditions import Values, in_json, pattern_of_others

MAX_DEPTH = 6
MAX_VALUES = 100
"""that a string must not be"""
_KINDS = ("object", "array", "string", "number", "boolean", "null")


def write_out_not(node: Node, values: Values, draft: int) -> None:
    """Changes `node`, of a draft, if its negation can be told otherwise."""
    kinds = _kinds(node)
    if kinds is None or not isinstance(node.get("properties", {}), dict):
        return
    rest = _Complement(kinds, values, draft).of(node["not"], 0)
    listed = values({key: node[key] for key in ("type", "enum", "const") if key in node}) if rest is None else None
    refused = values(node["not"]) if listed is not None else None
    if rest is None and (listed is None or refused is None):
        return
    del node["not"]
    if rest is None:
        out = set(map(in_json, refused or ()))
        node.pop("const", None)
        node["enum"] = [value for value in listed or () if in_json(value) not in out]
    elif isinstance(rest, bool):
        if not rest:
            node["enum"] = []
            node.pop("const", None)
    else:
        _join(node, rest)


def _join(node: Node, rest: Node) -> None:
    """Puts what is left into `node`: beside its own keywords where none meet, else as one more schema that must hold."""
    if rest.keys() == {"type"}:  # some of its own
        node["type"] = rest["type"]
    elif rest.keys() == {"properties"} and "$ref" not in node:  # all of these are false
        node["properties"] = {**node.get("properties", {}), **rest["properties"]}
    elif not rest.keys() & node.keys():
        node.update(rest)
    else:
        others = node.get("allOf", [])
        if isinstance(others, list):
            node["allOf"] = [*others, rest]


def _kinds(node: Node) -> list[str] | None:
    named = node.get("type", list(_KINDS))
    named = [named] if isinstance(named, str) else named
    return named if isinstance(named, list) and all(isinstance(kind, str) for kind in named) else None


class _Complement:
    """`kinds`: types of the values in question."""

    def __init__(self, kinds: list[str], values: Values, draft: int) -> None:
        self._kinds = kinds
        self._values = values
        self._draft = draft

    def of(self, schema: Any, depth: int) -> Any:
        """A schema of all values that `schema` refuses; None where there is none."""
        if schema in (True, {}):
            return False
        if schema is False:
            return True
        if not isinstance(schema, dict) or depth > MAX_DEPTH:
            return None
        says = {key for key in schema.keys() & CONSTRAINING if counts(key, self._draft)}
        if says & {"enum", "const", "$ref"}:
            return self._of_values(self._values(schema))
        found = [self._of_keyword(key, schema[key], depth) for key in sorted(says)]
        if any(rest is None for rest in found) or not says:
            return None if says else False
        return _any(found)

    def _of_values(self, values: list[Any] | None) -> Any:
        """Strings other than these; where nothing but strings is possible."""
        if values is None or self._kinds != ["string"]:
            return None
        words = [value for value in values if isinstance(value, str)]
        if len(words) > MAX_VALUES:
            return None
        return {"pattern": f"^{pattern_of_others(words)}$"} if words else True

    def _of_keyword(self, key: str, value: Any, depth: int) -> Any:
        if key == "not":
            return {"allOf": [value]}
        if key == "type":
            return self._of_types([value] if isinstance(value, str) else value)
        if key in ("anyOf", "allOf") and isinstance(value, list):
            found = [self.of(part, depth + 1) for part in value]
            if any(rest is None for rest in found):
                return None
            return _any(found) if key == "allOf" else _all(found)
        if "object" not in self._kinds:
            return None
        if key == "required" and isinstance(value, list) and all(isinstance(name, str) for name in value):
            return _any([self._of_objects({"properties": {name: False}}) for name in value])
        if key == "properties" and isinstance(value, dict):
            return _any([self._without(name, schema, depth) for name, schema in value.items()])
        return None

    def _of_types(self, named: Any) -> Any:
        if not isinstance(named, list) or ("integer" in named and "number" not in named and {"number"} & set(self._kinds)):
            return None
        gone = {*named, *(("integer",) if "number" in named else ())}
        left = [kind for kind in self._kinds if kind not in gone]
        return True if left == self._kinds else {"type": left} if left else False

    def _of_objects(self, schema: Node) -> Node:
        return schema if self._kinds == ["object"] else {"type": "object", **schema}

    def _without(self, name: str, schema: Any, depth: int) -> Any:
        """Objects whose property is not so."""
        rest = _Complement(list(_KINDS), self._values, self._draft).of(schema, depth + 1)
        if rest is None or rest is False:
            return rest
        return self._of_objects({"properties": {name: rest}, "required": [name]})


def _any(found: list[Any]) -> Any:
    """None in it where one of them is."""
    if None in found:
        return None
    some = [schema for schema in found if schema is not False]
    if True in some:
        return True
    return some[0] if len(some) == 1 else {"anyOf": some} if some else False


def _all(found: list[Any]) -> Any:
    if False in found:
        return False
    some = [schema for schema in found if schema is not True]
    if some and all(schema.keys() == {"properties"} for schema in some):
        merged = {name: value for schema in some for name, value in schema["properties"].items()}
        if len(merged) == sum(len(schema["properties"]) for schema in some):
            return {"properties": merged}
    return some[0] if len(some) == 1 else {"allOf": some} if some else True
