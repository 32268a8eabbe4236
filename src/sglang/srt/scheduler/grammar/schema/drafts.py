"""Translates keywords of older drafts of JSON Schema to those of the newest.

A keyword counts in the drafts that have it, and is an annotation in all others: `prefixItems` says nothing under draft 7, nor
`dependencies` under 2020-12. Where a schema declares no draft, it counts whatever the draft.
"""

from __future__ import annotations

from typing import Any

from sglang.srt.json_drafts import ANY, NEWEST
from sglang.srt.scheduler.grammar.schema.keywords import CONSTRAINING, Node

_SPANS: dict[str, tuple[int, int]] = {
    **dict.fromkeys(("disallow", "divisibleBy", "extends"), (3, 3)),
    **dict.fromkeys(("allOf", "anyOf", "oneOf", "not", "minProperties", "maxProperties", "multipleOf"), (4, ANY)),
    **dict.fromkeys(("const", "contains", "propertyNames"), (6, ANY)),
    **dict.fromkeys(("if", "then", "else"), (7, ANY)),
    **dict.fromkeys(("dependentRequired", "dependentSchemas", "minContains", "maxContains"), (2019, ANY)),
    **dict.fromkeys(("unevaluatedItems", "unevaluatedProperties", "$defs", "$anchor"), (2019, ANY)),
    **dict.fromkeys(("$recursiveRef", "$recursiveAnchor"), (2019, 2019)),
    **dict.fromkeys(("prefixItems", "$dynamicRef", "$dynamicAnchor"), (2020, ANY)),
    "dependencies": (3, 7),
    "additionalItems": (3, 2019),
}
"""the first and the last draft that have a keyword, of those that not all have"""
_WRITTEN = frozenset({"allOf", "anyOf"})
"""what rewriting writes into schemas of any draft. A schema of draft 3 that has them itself is followed more closely than it must be"""
_LIMITS = (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum"))


def counts(key: str, draft: int) -> bool:
    """Whether a keyword says something in a draft."""
    first, last = _SPANS.get(key, (0, ANY))
    return draft == ANY or first <= draft <= last


def read_draft(node: Node, draft: int) -> Node:
    """One schema object of a draft in the newest one's keywords, without what does not count. Its subschemas are left alone."""
    out = dict(node) if draft == ANY else {key: value for key, value in node.items() if counts(key, draft) or key in _WRITTEN}
    if draft <= 7 and "$ref" in out:  # nothing counts beside it
        return {key: value for key, value in out.items() if key == "$ref" or key not in CONSTRAINING}
    if draft == 3:
        _read_draft_3(out)
    if draft <= 4 or draft == ANY:
        _read_limits(out, draft)
    if draft != NEWEST:
        _read_tuples(out)
    return out


def _read_limits(node: Node, draft: int) -> None:
    """Until draft 4, a limit was excluded by a word beside it."""
    for key, limit in _LIMITS:
        excluded = node.get(key)
        if draft == ANY and not isinstance(excluded, bool):
            continue
        node.pop(key, None)
        if excluded and limit in node:
            node[key] = node.pop(limit)


def _read_tuples(node: Node) -> None:
    """Before draft 2020-12, prefixItems was a list of `items`, and `items` was additionalItems."""
    if isinstance(node.get("items"), list):
        node["prefixItems"] = node.pop("items")
        if "additionalItems" in node:
            node["items"] = node["additionalItems"]
    node.pop("additionalItems", None)


def _read_draft_3(node: Node) -> None:
    properties = node.get("properties")
    if isinstance(node.get("required"), bool):  # it speaks of the property that this is
        del node["required"]
    if isinstance(properties, dict):
        needed = [name for name, schema in properties.items() if isinstance(schema, dict) and schema.get("required") is True]
        node["required"] = list(dict.fromkeys([*node.get("required", []), *needed]))
    if "divisibleBy" in node:
        node["multipleOf"] = node.pop("divisibleBy")
    if "extends" in node:
        extended = node.pop("extends")
        node["allOf"] = extended if isinstance(extended, list) else [extended]
    depends = node.get("dependencies")
    if isinstance(depends, dict):
        node["dependencies"] = {name: [other] if isinstance(other, str) else other for name, other in depends.items()}
    _read_types(node)


def _read_types(node: Node) -> None:
    """Types of draft 3: any, and schemas among them."""
    kinds: Any = node.get("type")
    listed = kinds if isinstance(kinds, list) else [kinds]
    if "any" in listed:
        del node["type"]
    elif any(isinstance(kind, dict) for kind in listed):
        del node["type"]
        node["anyOf"] = [kind if isinstance(kind, dict) else {"type": kind} for kind in listed]
