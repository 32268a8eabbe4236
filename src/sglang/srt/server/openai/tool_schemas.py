"""Validates tools' parameter schemas: names of types, types of keywords, and references that resolve. A schema that passes may still be
one that no grammar can hold an answer to."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

from sglang.srt.errors import RequestError
from sglang.srt.json_drafts import draft_of

_SCHEMA = frozenset(
    {
        *("additionalProperties", "additionalItems", "not", "if", "then", "else", "contains", "propertyNames"),
        *("unevaluatedItems", "unevaluatedProperties", "contentSchema"),
    }
)
_SCHEMAS = frozenset({"anyOf", "oneOf", "allOf", "prefixItems"})
_NAMED_SCHEMAS = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})
_TEXT = frozenset({"$ref", "pattern", "format"})
_NUMBER = frozenset({"minimum", "maximum", "multipleOf"})
_BOUND = frozenset({"exclusiveMinimum", "exclusiveMaximum"})
"""numbers, or in old drafts whether the other bound is one"""
_TYPES = ("null", "boolean", "object", "array", "number", "integer", "string")
_COUNT = frozenset(
    {"minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties", "minContains", "maxContains"}
)


def check_tool_schema(schema: Any, where: str) -> None:
    """Raises RequestError, beginning with `where`, for what is no JSON schema. Bodies are not nested deeply (json_limits)."""
    _Checker(schema, where).check(schema, "#")


def refers_outside(schema: Any) -> bool:
    """Whether a reference of a checked schema leads to another document, which is never fetched."""
    stack, references, names = [schema], [], set()
    while stack:
        node = stack.pop()
        if isinstance(node, dict):
            references.append(node.get("$ref"))
            names.add(node.get("$id"))
            stack.extend(node.values())
        elif isinstance(node, list):
            stack.extend(node)
    outside = [ref for ref in references if isinstance(ref, str) and not ref.startswith("#")]
    return bool(outside) and names <= {None}


class _Checker:
    def __init__(self, root: Any, where: str) -> None:
        self._root = root
        self._where = where
        self._types = (*_TYPES, "any") if draft_of(root) == 3 else _TYPES

    def _refuse(self, place: str, must: str) -> None:
        raise RequestError(f"{self._where} are not a valid JSON schema: {place[:200]} must be {must}", "tools")

    def check(self, schema: Any, place: str) -> None:
        if isinstance(schema, bool):
            return
        if not isinstance(schema, dict):
            self._refuse(place, "an object, true or false")
        for key, value in schema.items():
            self._check_keyword(key, value, f"{place}/{key[:50]}")

    def _check_keyword(self, key: str, value: Any, place: str) -> None:
        if key in _SCHEMA or (key == "items" and not isinstance(value, list)):
            self.check(value, place)
        elif key in _SCHEMAS or key == "items":
            if not isinstance(value, list):
                self._refuse(place, "a list of schemas")
            for i, item in enumerate(value):
                self.check(item, f"{place}/{i}")
        elif key in _NAMED_SCHEMAS:
            if not isinstance(value, dict):
                self._refuse(place, "an object of schemas")
            for name, item in value.items():
                self.check(item, f"{place}/{name[:50]}")
        elif key in ("dependencies", "dependentRequired"):
            self._check_dependencies(value, place, may_be_schemas=key == "dependencies")
        else:
            self._check_value(key, value, place)

    def _check_dependencies(self, value: Any, place: str, may_be_schemas: bool) -> None:
        if not isinstance(value, dict):
            self._refuse(place, "an object")
        for name, item in value.items():
            if may_be_schemas and isinstance(item, (dict, bool)):
                self.check(item, f"{place}/{name[:50]}")
            elif not _is_texts(item) and not (may_be_schemas and isinstance(item, str)):  # draft 3 has one name
                self._refuse(f"{place}/{name[:50]}", "a list of names")

    def _check_value(self, key: str, value: Any, place: str) -> None:
        if key == "type":
            self._check_type(value, place)
        elif key == "required" and not _is_texts(value):
            self._refuse(place, "a list of names")
        elif key == "enum" and not (isinstance(value, list) and value):
            self._refuse(place, "a list that is not empty")
        elif key in _TEXT and not isinstance(value, str):
            self._refuse(place, "a string")
        elif key in _NUMBER and (isinstance(value, bool) or not isinstance(value, (int, float))):
            self._refuse(place, "a number")
        elif key == "multipleOf" and value <= 0:
            self._refuse(place, "larger than 0")
        elif key in _BOUND and not isinstance(value, (bool, int, float)):
            self._refuse(place, "a number")
        elif key == "uniqueItems" and not isinstance(value, bool):
            self._refuse(place, "true or false")
        elif key in _COUNT and (isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0 or value % 1):
            self._refuse(place, "a count")
        elif key == "$ref" and not self._leads_somewhere(value):
            self._refuse(place, "a reference to a place in the same schema")

    def _check_type(self, value: Any, place: str) -> None:
        names = [value] if isinstance(value, str) else value
        if not _is_texts(names) or not names:
            self._refuse(place, "a name of a type, or a list of them")
        for name in names:
            if name not in self._types:
                self._refuse(place, f"one of {', '.join(self._types)}, or a list of them; it has {name[:50]!r}")

    def _leads_somewhere(self, reference: str) -> bool:
        """A JSON pointer (RFC 6901) from the root; other references are left to the grammar engine."""
        if not reference.startswith("#/"):
            return True
        at = self._root
        for step in reference[2:].split("/"):
            name = unquote(step).replace("~1", "/").replace("~0", "~")
            if isinstance(at, dict) and name in at:
                at = at[name]
            elif isinstance(at, list) and name.isascii() and name.isdigit() and len(name) < 10 and int(name) < len(at):
                at = at[int(name)]
            else:
                return False
        return True


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)
