"""JSON schemas, made ready for generation: objects are closed.

JSON Schema lets every object have properties nobody mentioned, unless told otherwise, and a model that may invent properties
does so without end. Output of the closed schema is valid under the schema as it was written. Where schemas are composed
(allOf, or properties beside anyOf, $ref and the like), closing one part could contradict another: those stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_OPEN = frozenset({"additionalProperties", "patternProperties", "unevaluatedProperties", "propertyNames", "minProperties"})
_COMPOSING = frozenset({"anyOf", "oneOf", "$ref", "$dynamicRef", "if", "then", "else", "dependentSchemas", "not"})
_IN_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_IN_MAPS = ("properties", "$defs", "definitions", "patternProperties", "dependentSchemas")
_DIRECT = ("items", "additionalProperties", "contains", "not", "if", "then", "else", "unevaluatedProperties", "unevaluatedItems")


def close_objects(schema: Any) -> Any:
    """A schema in which objects have the properties that it lists and no others. Raises RecursionError when nested too deep."""
    if any("allOf" in node or ("properties" in node and node.keys() & _COMPOSING) for node in _nodes(schema)):
        return schema
    return _closed(schema)


def _children(node: dict[str, Any]) -> Iterator[Any]:
    for key in _IN_LISTS:
        if isinstance(node.get(key), list):
            yield from node[key]
    for key in _IN_MAPS:
        if isinstance(node.get(key), dict):
            yield from node[key].values()
    for key in _DIRECT:
        if key in node:
            yield node[key]


def _nodes(schema: Any) -> Iterator[dict[str, Any]]:
    stack = [schema]
    while stack:
        node = stack.pop()
        if isinstance(node, dict):
            yield node
            stack.extend(_children(node))


def _closed(node: Any) -> Any:
    if not isinstance(node, dict):
        return node
    out = dict(node)
    for key in _IN_LISTS:
        if isinstance(node.get(key), list):
            out[key] = [_closed(child) for child in node[key]]
    for key in _IN_MAPS:
        if isinstance(node.get(key), dict):
            out[key] = {name: _closed(child) for name, child in node[key].items()}
    for key in _DIRECT:
        if key in node:
            out[key] = _closed(node[key])
    properties = node.get("properties")
    if isinstance(properties, dict) and not node.keys() & _OPEN and set(_names(node.get("required"))) <= properties.keys():
        out["additionalProperties"] = False
    return out


def _names(required: Any) -> list[str]:
    return [name for name in required if isinstance(name, str)] if isinstance(required, list) else []
