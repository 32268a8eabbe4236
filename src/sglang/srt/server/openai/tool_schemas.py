"""Validates the structure of tools' parameter schemas: types of keywords, and references that resolve. The grammar engine checks the
meaning of keywords."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

from sglang.srt.errors import RequestError

_SCHEMA = frozenset(
    {
        *("additionalProperties", "additionalItems", "not", "if", "then", "else", "contains", "propertyNames"),
        *("unevaluatedItems", "unevaluatedProperties"),
    }
)
_SCHEMAS = frozenset({"anyOf", "oneOf", "allOf", "prefixItems"})
_NAMED_SCHEMAS = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})
_TEXT = frozenset({"$ref", "pattern", "format"})
_NUMBER = frozenset({"minimum", "maximum", "multipleOf"})
_COUNT = frozenset(
    {"minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties", "minContains", "maxContains"}
)


def check_tool_schema(schema: Any, where: str) -> None:
    """Raises RequestError, beginning with `where`, for what is no JSON schema. Bodies are not nested deeply (json_limits)."""
    _Checker(schema, where).check(schema, "#")


def refers_outside(schema: Any) -> bool:
    """Whether a reference of a checked schema leads to another document, which nobody has."""
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
        else:
            self._check_value(key, value, place)

    def _check_value(self, key: str, value: Any, place: str) -> None:
        if key == "type" and not _is_texts(value) and not isinstance(value, str):
            self._refuse(place, "a name, or a list of names")
        elif key == "required" and not _is_texts(value):
            self._refuse(place, "a list of names")
        elif key == "enum" and not (isinstance(value, list) and value):
            self._refuse(place, "a list that is not empty")
        elif key in _TEXT and not isinstance(value, str):
            self._refuse(place, "a string")
        elif key in _NUMBER and (isinstance(value, bool) or not isinstance(value, (int, float))):
            self._refuse(place, "a number")
        elif key in _COUNT and (isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0 or value % 1):
            self._refuse(place, "a count")
        elif key == "$ref" and not self._leads_somewhere(value):
            self._refuse(place, "a reference to a place in the same schema")

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
