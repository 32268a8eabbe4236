"""A JSON schema as a regular expression: objects write their properties in the order of the schema, and optional ones may be
left out.

A regular expression cannot express all of JSON Schema (bounds of numbers, recursion, ...). Such a keyword gives a warning here, and
recursion a ValueError; use `json_schema`, which follows the whole schema.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Schema = Mapping[str, Any]

WHITESPACE = r"[ ]?"
CHARACTER = r'([^"\\\x00-\x1F\x7F-\x9F]|\\["\\/bfnrt]|\\u[0-9a-fA-F]{4})'
STRING = f'"{CHARACTER}*"'
INTEGER = r"-?(0|[1-9][0-9]*)"
NUMBER = rf"{INTEGER}(\.[0-9]+)?([eE][+-]?[0-9]+)?"
_SCALARS = {"string": STRING, "integer": INTEGER, "number": NUMBER, "boolean": "(true|false)", "null": "null"}
_DATE, _TIME = r"[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])", r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]+)?"
_ZONE = r"(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
_FORMATS = {
    "date": _DATE,
    "time": f"{_TIME}{_ZONE}?",
    "date-time": f"{_DATE}T{_TIME}{_ZONE}?",
    "uuid": r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
}
_UNSAID = (
    *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "uniqueItems", "contains", "not", "if"),
    *("minProperties", "maxProperties", "patternProperties", "propertyNames", "dependentRequired", "dependentSchemas"),
)
_ANY_DEPTH = 2
"""how deep a value may be of which the schema says nothing"""


def convert_json_schema_to_str(json_schema: Any) -> str:
    """The schema as JSON text: of a dict, of text, or of a type that pydantic knows."""
    return json_schema if isinstance(json_schema, str) else json.dumps(_read(json_schema))


def build_regex_from_object(object: Any, whitespace_pattern: str | None = None) -> str:
    """The regular expression of the JSON that fits `object`: a schema as a dict or as JSON text, or a type that pydantic knows.
    `whitespace_pattern` stands around brackets, commas and colons (default: a space or none). Raises ValueError for a schema that
    recurs or that nothing fits."""
    schema = _read(object)
    return _Writer(schema, WHITESPACE if whitespace_pattern is None else whitespace_pattern).value(schema)


def _read(object: Any) -> Any:
    if isinstance(object, str):
        return json.loads(object)
    if isinstance(object, (Mapping, bool)):
        return object
    import pydantic

    return pydantic.TypeAdapter(object).json_schema()


def _escape(text: str) -> str:
    return re.sub(r"([\\.^$*+?{}\[\]|()])", r"\\\1", text)


def _either(options: Sequence[str]) -> str:
    return options[0] if len(options) == 1 else f"({'|'.join(options)})"


@dataclass(frozen=True)
class _Writer:
    """Writes parts of the schema `root`; `inside`: the references that have led here."""

    root: Any
    space: str
    inside: tuple[str, ...] = ()

    def value(self, schema: Any) -> str:
        if schema is True or schema == {}:
            return self.anything(_ANY_DEPTH)
        if not isinstance(schema, Mapping):
            raise ValueError(f"no value fits the schema {schema!r}")
        self._warn(schema)
        if "$ref" in schema:
            return self._referenced(schema["$ref"])
        if "const" in schema:
            return self._literal(schema["const"])
        if "enum" in schema:
            return _either([self._literal(value) for value in schema["enum"]])
        for key in ("anyOf", "oneOf"):
            if key in schema:
                return _either([self.value(option) for option in schema[key]])
        if "allOf" in schema:
            return self.value(self._merged(schema))
        return self._typed(schema)

    def _typed(self, schema: Schema) -> str:
        kind = schema.get("type")
        if isinstance(kind, list):
            return _either([self.value({**schema, "type": one}) for one in kind])
        if kind == "object" or (kind is None and "properties" in schema):
            return self._object(schema)
        if kind == "array" or (kind is None and ("items" in schema or "prefixItems" in schema)):
            return self._array(schema)
        if kind == "string" or (kind is None and ("pattern" in schema or "maxLength" in schema)):
            return self._string(schema)
        if kind is None:
            return self.anything(_ANY_DEPTH)
        if kind not in _SCALARS:
            raise ValueError(f"there is no type {kind!r} in JSON")
        return _SCALARS[kind]

    def _warn(self, schema: Schema) -> None:
        for key in _UNSAID:
            if key in schema:
                warnings.warn(f"the regular expression does not hold {key!r}; json_schema= does", stacklevel=2)

    def _referenced(self, reference: str) -> str:
        if reference in self.inside:
            raise ValueError(f"{reference} recurs: no regular expression fits it; use json_schema=")
        found: Any = self.root
        for part in reference.removeprefix("#").strip("/").split("/"):
            key = part.replace("~1", "/").replace("~0", "~")
            if not reference.startswith("#") or not isinstance(found, Mapping) or (key and key not in found):
                raise ValueError(f"{reference!r} leads nowhere in the schema")
            found = found[key] if key else found
        return _Writer(self.root, self.space, (*self.inside, reference)).value(found)

    def _merged(self, schema: Schema) -> Schema:
        """One schema of all parts that must fit."""
        merged: dict[str, Any] = {key: value for key, value in schema.items() if key != "allOf"}
        parts = schema["allOf"]
        if len(parts) == 1 and not merged.keys() - {"title", "description", "default", "examples"}:
            return dict(parts[0])
        for part in parts:
            if "$ref" in part or "properties" not in part:
                raise ValueError("parts of allOf can be joined where each is an object with properties; use json_schema=")
            merged["properties"] = {**merged.get("properties", {}), **part["properties"]}
            merged["required"] = [*merged.get("required", []), *part.get("required", [])]
        return merged | {"type": "object"}

    def _literal(self, value: Any) -> str:
        return _escape(json.dumps(value, ensure_ascii=False))

    def _string(self, schema: Schema) -> str:
        if "pattern" in schema:
            return f'"({schema["pattern"].removeprefix("^").removesuffix("$")})"'
        if schema.get("format") in _FORMATS:
            return f'"{_FORMATS[schema["format"]]}"'
        low, high = schema.get("minLength", 0), schema.get("maxLength")
        if not low and high is None:
            return STRING
        return f'"{CHARACTER}{_times(low, high)}"'

    def _object(self, schema: Schema) -> str:
        properties, required = schema.get("properties", {}), schema.get("required", [])
        if not properties:
            return self._map(schema.get("additionalProperties", True))
        missing = [name for name in required if name not in properties]
        if missing:
            raise ValueError(f"{missing[0]!r} is required but not a property")
        members = [
            (f"{self._literal(name)}{self.space}:{self.space}{self.value(part)}", name in required)
            for name, part in properties.items()
        ]
        return rf"\{{{self.space}{self._members(members)}{self.space}\}}"

    def _members(self, members: list[tuple[str, bool]]) -> str:
        """Members with commas between, however many of the optional ones are left out."""
        comma = f"{self.space},{self.space}"

        def after(rest: list[tuple[str, bool]]) -> str:
            return "".join(f"{comma}{one}" if needed else f"({comma}{one})?" for one, needed in rest)

        first = next((i for i, (_, needed) in enumerate(members) if needed), None)
        if first is not None:
            before = "".join(f"({one}{comma})?" for one, _ in members[:first])
            return before + members[first][0] + after(members[first + 1 :])
        return f"({'|'.join(one + after(members[i + 1 :]) for i, (one, _) in enumerate(members))})?"

    def _map(self, values: Any) -> str:
        if values is False:
            return rf"\{{{self.space}\}}"
        member = f"{STRING}{self.space}:{self.space}{self.value(values)}"
        return rf"\{{{self.space}{self._listed(member, 0, None)}{self.space}\}}"

    def _array(self, schema: Schema) -> str:
        low, high = schema.get("minItems", 0), schema.get("maxItems")
        first = [self.value(one) for one in schema.get("prefixItems", [])]
        if not first:
            return rf"\[{self.space}{self._listed(self.value(schema.get('items', True)), low, high)}{self.space}\]"
        comma = f"{self.space},{self.space}"
        rest = ""
        if schema.get("items", False) is not False and (high is None or high > len(first)):
            more = _times(max(low - len(first), 0), None if high is None else high - len(first))
            rest = f"({comma}{self.value(schema['items'])}){more}"
        return rf"\[{self.space}{comma.join(first)}{rest}{self.space}\]"

    def _listed(self, item: str, low: int, high: int | None) -> str:
        """`low` to `high` items with commas between."""
        if high == 0:
            return ""
        rest = f"({self.space},{self.space}{item}){_times(max(low - 1, 0), None if high is None else high - 1)}"
        return f"{item}{rest}" if low else f"({item}{rest})?"

    def anything(self, depth: int) -> str:
        """Any value whose lists and objects are `depth` deep at most."""
        options = list(_SCALARS.values())
        if depth:
            inner = self.anything(depth - 1)
            options.append(rf"\[{self.space}{self._listed(inner, 0, None)}{self.space}\]")
            member = f"{STRING}{self.space}:{self.space}{inner}"
            options.append(rf"\{{{self.space}{self._listed(member, 0, None)}{self.space}\}}")
        return _either(options)


def _times(low: int, high: int | None) -> str:
    if high is None:
        return "*" if low == 0 else f"{{{low},}}"
    return f"{{{low},{high}}}"
