"""White space between the parts of JSON.

The default lets models write as they were trained to, and never without end. Between two parts there is nothing, a blank, or one line
break and an indentation:

    {"a": [1, 2]}       {"a":[1,2]}       {
                                            "a": [
                                              1,
    at most 4 blanks, or a tab, for each level that the schema has

A small model that has to write compact JSON, which it has hardly seen, leaves lists empty.
"""

from __future__ import annotations

import re
from typing import Any

from sglang.srt.errors import GrammarError

MAX_LEVELS = 8
"""of indentation, for schemas without an end of their own"""
LEVEL_BLANKS = 4
FIELD = "constrained_json_whitespace_pattern"
_SPACE = r" \t\n\r"
_PART = re.compile(r"\\[tnrs]|\\x(?:20|09|0[aAdD])|\\u(?:0020|0009|000[aAdD])|[ \t\n\r\[\]()|?*+]|\{\d+(?:,\d*)?\}|\(\?:")
_WITHIN = ("items", "additionalProperties", "unevaluatedProperties", "unevaluatedItems", "contains")
_MAPS_WITHIN = ("properties", "patternProperties")
_BESIDE = ("allOf", "anyOf", "oneOf")
_CLOSED_KEYS = frozenset({"type", "enum", "const", "$ref", *_BESIDE})
_FLAT = frozenset({"string", "number", "integer", "boolean", "null"})


def num_levels(schema: Any) -> int:
    """Levels of objects and lists that a prepared schema has, at most MAX_LEVELS."""
    return _Levels(schema).of(schema)


def default_whitespace(schema: Any) -> str:
    """The default for a prepared schema, as a regular expression."""
    levels = num_levels(schema)
    return rf" |\n(?: {{0,{LEVEL_BLANKS * levels}}}|\t{{0,{levels}}})" if levels else " "


def checked_whitespace(pattern: str) -> str:
    r"""The same expression, with `\s` for what is white space in JSON. Raises GrammarError if it could match anything else."""
    out, at, in_class = [], 0, False
    while at < len(pattern):
        found = _PART.match(pattern, at)
        if found is None:
            raise GrammarError(
                f"{FIELD}: {pattern[at:][:20]!r} is no white space of JSON (blank, \\t, \\n, \\r) with ? * + {{m,n}} | ( ) [ ] around it",
                FIELD,
            )
        part = found.group()
        if part == r"\s":
            part = _SPACE if in_class else f"[{_SPACE}]"
        in_class = part == "[" or (in_class and part != "]")
        out.append(part)
        at = found.end()
    try:
        re.compile("".join(out))
    except re.error as error:
        raise GrammarError(f"{FIELD}: {error}", FIELD) from error
    return "".join(out)


class _Levels:
    """How deep values of a schema may be: 0 for a number. What has no end counts as MAX_LEVELS."""

    def __init__(self, root: Any) -> None:
        definitions = root.get("$defs", {}) if isinstance(root, dict) else {}
        self._targets: dict[str, Any] = {"#": root} | {f"#/$defs/{name}": target for name, target in definitions.items()}
        self._known: dict[str, int] = {}

    def of(self, node: Any, within: int = 0) -> int:
        if within > MAX_LEVELS or not isinstance(node, dict):
            return 0 if node is False else MAX_LEVELS
        if _is_open(node):
            return MAX_LEVELS
        inner = [self.of(node[key], within + 1) for key in _WITHIN if key in node]
        inner += [self.of(child, within + 1) for key in _MAPS_WITHIN for child in node.get(key, {}).values()]
        inner += [self.of(child, within + 1) for child in node.get("prefixItems", ())]
        depths = [self.of(child, within) for key in _BESIDE for child in node.get(key, ())]
        if "$ref" in node:
            depths.append(self._of_target(node["$ref"]))
        if inner or _nests(node):
            depths.append(1 + max(inner, default=0))
        return min(max(depths, default=0), MAX_LEVELS)

    def _of_target(self, ref: str) -> int:
        if ref not in self._known:
            self._known[ref] = MAX_LEVELS  # what it is while it leads to itself
            self._known[ref] = self.of(self._targets.get(ref))
        return self._known[ref]


def _types(node: dict[str, Any]) -> set[str]:
    named = node.get("type", [])
    return {named} if isinstance(named, str) else set(named)


def _is_open(node: dict[str, Any]) -> bool:
    """Whether anything may stand somewhere in it."""
    if not node.keys() & _CLOSED_KEYS:
        return True
    types = _types(node)
    if "object" in types and "additionalProperties" not in node and not node.keys() & {"$ref", *_BESIDE}:
        return True
    return "array" in types and not node.keys() & {"items", "prefixItems", "$ref", *_BESIDE}


def _nests(node: dict[str, Any]) -> bool:
    values = [node["const"]] if "const" in node else node.get("enum", [])
    return bool(_types(node) - _FLAT) or any(isinstance(value, (dict, list)) for value in values)
