"""The keywords of JSON Schema, of all drafts: those that hold schemas, those that constrain, and the type of the value of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import Enum
from typing import Any

from sglang.srt.errors import GrammarError

Node = dict[str, Any]
Place = tuple[str, ...]
"""a path, from a schema to a part of it"""


class Holds(Enum):
    """The kind of value at a keyword."""

    ONE = 1
    """a schema; at `items` before draft 2020-12 also a list of them"""
    LIST = 2
    MAP = 3


HOLDING = {
    "properties": Holds.MAP,
    "additionalProperties": Holds.ONE,
    "patternProperties": Holds.MAP,
    "propertyNames": Holds.ONE,
    "dependentSchemas": Holds.MAP,
    "dependencies": Holds.MAP,
    "unevaluatedProperties": Holds.ONE,
    "items": Holds.ONE,
    "prefixItems": Holds.LIST,
    "additionalItems": Holds.ONE,
    "contains": Holds.ONE,
    "unevaluatedItems": Holds.ONE,
    "allOf": Holds.LIST,
    "anyOf": Holds.LIST,
    "oneOf": Holds.LIST,
    "not": Holds.ONE,
    "if": Holds.ONE,
    "then": Holds.ONE,
    "else": Holds.ONE,
    "$defs": Holds.MAP,
    "definitions": Holds.MAP,
}
COUNTS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties", "minContains", "maxContains")
LOWER = ("minimum", "exclusiveMinimum")
UPPER = ("maximum", "exclusiveMaximum")
_OTHERS = ("type", "enum", "const", "required", "dependentRequired", "uniqueItems", "pattern", "format", "multipleOf",
           "$ref", "$dynamicRef", "$recursiveRef", "nullable", "divisibleBy", "disallow", "extends")  # fmt: skip
CONSTRAINING = frozenset({*HOLDING, *COUNTS, *LOWER, *UPPER, *_OTHERS} - {"$defs", "definitions"})
"""keywords that say what is valid, and OpenAPI's `nullable`"""
IN_PLACE = frozenset({"allOf", "anyOf", "oneOf", "$ref", "$dynamicRef", "if", "then", "else", "dependentSchemas", "not"})
"""keywords whose schemas speak of the same value"""


KINDS = {"number": ("integer", "fraction")}
"""types that are several kinds"""


def children(node: Node) -> Iterator[tuple[Place, Any]]:
    """Values where `node` holds schemas, and their steps from it; the caller checks whether each is a schema."""
    for key, holds in HOLDING.items():
        if key in node:
            yield from _held(key, holds, node[key])


def replace_children(node: Node, replace: Callable[[Place, Any], Any]) -> None:
    """Puts into `node` what `replace` makes of each child. Lists and maps of children become new ones."""
    for key, holds in HOLDING.items():
        if key not in node:
            continue
        value = node[key]
        made = [replace(place, child) for place, child in _held(key, holds, value)]
        if isinstance(value, list) and holds is not Holds.MAP:
            node[key] = made
        elif isinstance(value, dict) and holds is Holds.MAP:
            node[key] = dict(zip(value, made, strict=True))
        elif holds is Holds.ONE:
            node[key] = made[0]


def kind_of(value: Any) -> str:
    """The type of a JSON value. A number is an `integer` or a `fraction`."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else "boolean"
    if isinstance(value, (int, float)):
        return "integer" if value == value // 1 else "fraction"
    if isinstance(value, str):
        return "string"
    return "array" if isinstance(value, list) else "object"


def has_type(value: Any, types: list[str]) -> bool:
    """Whether a JSON value is of one of these types of JSON Schema."""
    return kind_of(value) in {kind for name in types for kind in KINDS.get(name, (name,))}


def _held(key: str, holds: Holds, value: Any) -> Iterator[tuple[Place, Any]]:
    if isinstance(value, list) and (holds is Holds.LIST or key == "items"):
        yield from (((key, str(i)), child) for i, child in enumerate(value))
    elif isinstance(value, dict) and holds is Holds.MAP:
        yield from (((key, name), child) for name, child in value.items())
    elif holds is Holds.ONE:
        yield (key,), value


def check_shapes(node: Node, path: str) -> None:
    """Checks the types of the values in one schema, not in the schemas inside. Raises GrammarError."""
    for key, value in node.items():
        wanted, is_right = _SHAPES.get(key, _ANYTHING)
        if not is_right(value):
            raise GrammarError(f"json_schema: {path}/{key} must be {wanted}", "json_schema")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


Shape = tuple[str, Callable[[Any], bool]]
_ANYTHING: Shape = ("anything", lambda value: True)
_LIST: Shape = ("a list", lambda value: isinstance(value, list))
_MAP: Shape = ("an object", lambda value: isinstance(value, dict))
_TEXT: Shape = ("a string", lambda value: isinstance(value, str))
_SHAPES: dict[str, Shape] = {
    **{key: _LIST for key, holds in HOLDING.items() if holds is Holds.LIST},
    **{key: _MAP for key, holds in HOLDING.items() if holds is Holds.MAP},
    **dict.fromkeys((*LOWER, *UPPER), ("a number", _is_number)),
    "items": ("a schema; a list of them stands at prefixItems since draft 2020-12", lambda value: not isinstance(value, list)),
    "enum": _LIST,
    "required": ("a list of strings", _is_names),
    "type": ("a string or a list of strings", lambda value: isinstance(value, str) or _is_names(value)),
    "pattern": _TEXT,
    "format": _TEXT,
}
