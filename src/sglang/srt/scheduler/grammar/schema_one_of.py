"""`oneOf` whose schemas exclude each other is `anyOf`, which engines follow.

    [{"$ref": "#/$defs/Cat"}, {"$ref": "#/$defs/Dog"}]      Cat: {"kind": {"const": "cat"}, ...}, Dog: {"kind": {"const": "dog"}, ...}

Two schemas exclude each other when for every type of value that both allow there is a reason: different constants, a property that
both require with values that exclude each other, one that only one allows, limits that do not overlap. It is judged on the schemas as they were written, through references; that objects are closed later
makes them smaller, and so changes nothing. Where the schemas differ in a property that some do not require, as a discriminator that has a
default, it is required here: fewer values, and all of them valid.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from sglang.srt.errors import GrammarError
from sglang.srt.scheduler.grammar.schema_refs import SchemaDocument

TYPES = frozenset({"null", "boolean", "number", "string", "array", "object"})
MAX_DEPTH = 12
"""of references and schemas inside schemas that are looked into"""
MAX_PAIRS = 2_000
"""pairs of schemas of one oneOf"""
MAX_VALUES = 512
_RANGES = {
    "number": ("minimum", "maximum"),
    "string": ("minLength", "maxLength"),
    "array": ("minItems", "maxItems"),
    "object": ("minProperties", "maxProperties"),
}
_SAY_MORE = frozenset({"allOf", "anyOf", "oneOf", "not", "if", "pattern", "minLength", "maxLength", "minimum", "maximum",
                       "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minItems", "maxItems", "items", "properties", "required"})  # fmt: skip
Located = tuple[Any, str]
"""a schema, and the base that its references are relative to"""


class Exclusion:
    """Judges schemas of one document."""

    def __init__(self, document: SchemaDocument) -> None:
        self._document = document

    def all_exclusive(self, schemas: list[Any], base: str) -> bool:
        """Whether no value can satisfy two of them."""
        if len(schemas) ** 2 > 2 * MAX_PAIRS:
            return False
        located = [(schema, base) for schema in schemas]
        return all(self.excludes(a, b) for i, a in enumerate(located) for b in located[:i])

    def tag(self, schemas: list[Any], base: str) -> str | None:
        """A property in which all of the schemas differ, once it is required of all."""
        plain = [self.object_of(schema, base) for schema in schemas]
        if not plain or any(parts is None for parts in plain):
            return None
        listed: list[dict[str, Any]] = [parts[0].get("properties", {}) for parts in plain if parts is not None]
        for name in listed[0]:
            if all(isinstance(properties, dict) and name in properties for properties in listed):
                values = [
                    self._values((properties[name], parts[1]), 0)
                    for properties, parts in zip(listed, plain, strict=True)
                    if parts
                ]
                known = [found for found in values if found is not None]
                if len(known) == len(values) and sum(map(len, known)) == len(frozenset().union(*known)):
                    return name
        return None

    def object_of(self, schema: Any, base: str) -> Located | None:
        """The schema of objects that this is or refers to; None for others."""
        for _ in range(MAX_DEPTH):
            if not isinstance(schema, dict):
                return None
            if "$ref" not in schema:
                return (schema, base) if schema.get("type") == "object" and _is_plain(schema) else None
            schema, base = self._target(schema["$ref"], self._document.base_of(schema, base)) or (None, "")
        return None

    def excludes(self, a: Located, b: Located, depth: int = 0) -> bool:
        """Whether no value satisfies both."""
        if depth > MAX_DEPTH:
            return False
        if a[0] is False or b[0] is False:
            return True
        for one, other in ((a, b), (b, a)):
            if any(all(self.excludes(part, other, depth + 1) for part in parts) for parts in self._alternatives(one)):
                return True
        if not isinstance(a[0], dict) or not isinstance(b[0], dict):
            return False
        x, y = self._values(a, depth), self._values(b, depth)
        if x is not None and y is not None:
            return not x & y
        if x is not None or y is not None:
            few, schema = (x, b[0]) if x is not None else (y, a[0])
            return few is not None and all(_type_of(value) not in _types(schema) for value in few)
        return all(self._differ(kind, a, b, depth) for kind in _types(a[0]) & _types(b[0]))

    def _alternatives(self, one: Located) -> Iterator[list[Located]]:
        """Lists of schemas of which a value must satisfy at least one."""
        schema, base = one
        if not isinstance(schema, dict):
            return
        base = self._document.base_of(schema, base)
        target = self._target(schema["$ref"], base) if "$ref" in schema else None
        if target is not None:
            yield [target]
        for key in ("anyOf", "oneOf"):
            if isinstance(schema.get(key), list):
                yield [(child, base) for child in schema[key]]
        if isinstance(schema.get("allOf"), list):
            yield from ([(child, base)] for child in schema["allOf"])

    def _target(self, ref: Any, base: str) -> Located | None:
        try:
            _, target, around = self._document.resolve(ref, base, "#")
        except GrammarError:  # whoever needs it meets it again
            return None
        return target, around

    def values_of(self, schema: Any, base: str) -> list[str] | None:
        """The values that a schema names, as JSON in its order, each once; None if it names none or says more of them."""
        for _ in range(MAX_DEPTH):
            if schema is True or not isinstance(schema, dict):
                return None
            if "const" in schema or isinstance(schema.get("enum"), list):
                values = [schema["const"]] if "const" in schema else schema["enum"]
                written = list(dict.fromkeys(map(_written, values)))
                return [one for one in written if _has_type(one, schema)] if _names_only(schema) else None
            if "$ref" not in schema and schema.get("type") in ("boolean", "null"):
                return ["true", "false"] if schema["type"] == "boolean" else ["null"]
            found = self._target(schema["$ref"], self._document.base_of(schema, base)) if "$ref" in schema else None
            if found is None:
                return None
            schema, base = found
        return None

    def _values(self, one: Located, depth: int) -> frozenset[str] | None:
        """The values that a schema names, as JSON; None if it does not."""
        schema, base = one
        if not isinstance(schema, dict) or depth > MAX_DEPTH:
            return None
        if "const" in schema:
            return frozenset([_written(schema["const"])])
        if isinstance(schema.get("enum"), list) and len(schema["enum"]) <= MAX_VALUES:
            return frozenset(map(_written, schema["enum"]))
        target = self._target(schema["$ref"], self._document.base_of(schema, base)) if "$ref" in schema else None
        return self._values(target, depth + 1) if target is not None else None

    def _differ(self, kind: str, a: Located, b: Located, depth: int) -> bool:
        """Whether no value of this type satisfies both."""
        if kind in _RANGES and (_is_above(kind, a[0], b[0]) or _is_above(kind, b[0], a[0])):
            return True
        return kind == "object" and any(self._objects_differ(x, y, depth) for x, y in ((a, b), (b, a)))

    def _objects_differ(self, a: Located, b: Located, depth: int) -> bool:
        """Whether a property that `a` requires cannot be right in `b`."""
        listed, others = _listed(a[0]), _listed(b[0])
        for name in _required(a[0]):
            if name not in others:
                if b[0].get("additionalProperties") is False and "patternProperties" not in b[0]:
                    return True
            elif others[name] is False or (name in listed and name in _required(b[0])):
                inner = (listed.get(name, True), self._document.base_of(a[0], a[1]))
                if self.excludes(inner, (others[name], self._document.base_of(b[0], b[1])), depth + 1):
                    return True
        return False


def _names_only(schema: dict[str, Any]) -> bool:
    """Whether a schema with values says nothing else of them, but perhaps their type."""
    return len({"const", "enum", "$ref"} & schema.keys()) == 1 and not schema.keys() & _SAY_MORE


def _has_type(written: str, schema: dict[str, Any]) -> bool:
    """Whether a value, as JSON, has a type that a schema names."""
    is_whole = schema.get("type") != "integer" or isinstance(json.loads(written), int)
    return _type_of(written) in _types(schema) and is_whole


def _types(schema: dict[str, Any]) -> frozenset[str]:
    named = schema.get("type")
    if named is None:
        return TYPES
    kinds = [named] if isinstance(named, str) else named if isinstance(named, list) else []
    return frozenset("number" if kind == "integer" else str(kind) for kind in kinds) | (
        frozenset({"null"}) if schema.get("nullable") is True else frozenset()
    )


def _type_of(written: str) -> str:
    names = {"n": "null", "t": "boolean", "f": "boolean", '"': "string", "[": "array", "{": "object"}
    return names.get(written[0], "number")


def _written(value: Any) -> str:
    """Equal for equal values of JSON: 1 and 1.0 are, 1 and true are not."""
    return json.dumps(_plain_numbers(value), sort_keys=True)


def _plain_numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain_numbers(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_plain_numbers(part) for part in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _is_plain(schema: dict[str, Any]) -> bool:
    return isinstance(schema.get("properties", {}), dict) and isinstance(schema.get("required", []), list)


def _listed(schema: dict[str, Any]) -> dict[str, Any]:
    properties = schema.get("properties")
    return properties if isinstance(properties, dict) else {}


def _required(schema: dict[str, Any]) -> list[str]:
    required = schema.get("required")
    return [name for name in required if isinstance(name, str)] if isinstance(required, list) else []


def _is_above(kind: str, a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Whether all of `a` lies above all of `b`."""
    low, high = _RANGES[kind]
    least, most = a.get(low), b.get(high)
    return type(least) in (int, float) and type(most) in (int, float) and least > most  # type: ignore[operator]
