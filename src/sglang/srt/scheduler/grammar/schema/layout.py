"""White space between the parts of JSON.

The default allows the layouts that models were trained on, in bounded length. Between two parts there is nothing, a blank, or one line
break and an indentation:

    {"a": [1, 2]}       {"a":[1,2]}       {
                                            "a": [
                                              1,
    at most 4 blanks, or a tab, for each level that the schema has

A small model that is forced to write compact JSON, which is rare in its training data, leaves lists empty.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from sglang.srt.errors import GrammarError

MAX_LEVELS = 8
"""of indentation, for schemas of unbounded depth"""
LEVEL_BLANKS = 4
FIELD = "constrained_json_whitespace_pattern"
_SPACE = r" \t\n\r"
_PART = re.compile(r"\\[tnrs]|\\x(?:20|09|0[aAdD])|\\u(?:0020|0009|000[aAdD])|[ \t\n\r\[\]()|?*+]|\{\d+(?:,\d*)?\}|\(\?:")
_CHOICES = ("anyOf", "oneOf")
_OTHERS = frozenset({*_CHOICES, "allOf", "$ref"})
_ALL = frozenset({"string", "number", "integer", "boolean", "null", "object", "array"})
MAX_STEPS = 20_000
"""of finding out how deep a schema is; beyond, it has no end"""


def num_levels(schema: Any) -> int:
    """Levels of objects and lists that a prepared schema has, at most MAX_LEVELS."""
    try:
        return _Levels(schema).of(schema)
    except RecursionError:  # too deep to say
        return MAX_LEVELS


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
                f"{FIELD}: {pattern[at:][:20]!r} is not white space of JSON (blank, \\t, \\n, \\r) with ? * + {{m,n}} | ( ) [ ] around it",
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
    """The depth of a schema's values: 0 for a number. Unlimited depth counts as MAX_LEVELS."""

    def __init__(self, root: Any) -> None:
        definitions = root.get("$defs", {}) if isinstance(root, dict) else {}
        self._targets: dict[str, Any] = {"#": root} | {f"#/$defs/{name}": target for name, target in definitions.items()}
        self._known: dict[frozenset[int], int] = {}
        self._made: dict[int, dict[str, Any]] = {}
        """parts of schemas, each made once: they are known by their identities"""
        self._num_steps = 0

    def of(self, *together: Any) -> int:
        """The depth of values that satisfy all these schemas."""
        parts = {id(part): part for node in together for part in self._parts(node, set())}
        if not all(isinstance(part, dict) for part in parts.values()):
            return 0  # false is among them
        key = frozenset(parts)
        if key not in self._known:
            self._num_steps += 1
            self._known[key] = MAX_LEVELS  # what it is while it leads to itself
            if self._num_steps < MAX_STEPS:
                self._known[key] = self._of_parts(list(parts.values()))
        return self._known[key]

    def _parts(self, node: Any, seen: set[str]) -> Iterator[Any]:
        """The schemas that hold together where `node` does, without references and allOf in them."""
        if node is True:
            return
        yield node
        if not isinstance(node, dict):
            return
        for part in node.get("allOf", ()):
            yield from self._parts(part, seen)
        ref = node.get("$ref")
        if isinstance(ref, str) and ref not in seen:
            seen.add(ref)
            yield from self._parts(self._targets.get(ref, True), seen)

    def _of_parts(self, parts: list[dict[str, Any]]) -> int:
        """The parts themselves bound the levels, and so does each choice together with them."""
        for part in parts:
            values = [part["const"]] if "const" in part else part.get("enum")
            if values is not None:
                return max(map(_levels_of_value, values), default=0)
        bounds = [self._of_objects_and_lists(parts)]
        plain = [self._plain(part) for part in parts]
        for branches in [part[key] for part in parts for key in _CHOICES if key in part]:
            bounds.append(max((self.of(branch, *plain) for branch in branches), default=0))
        return min(bounds)

    def _plain(self, part: dict[str, Any]) -> dict[str, Any]:
        """The schema without the keywords that hold other schemas of the same value."""
        if not part.keys() & _OTHERS:
            return part
        if id(part) not in self._made:
            self._made[id(part)] = {key: value for key, value in part.items() if key not in _OTHERS}
        return self._made[id(part)]

    def _of_objects_and_lists(self, parts: list[dict[str, Any]]) -> int:
        types = set.intersection(*(_types(part) for part in parts)) if parts else _ALL
        levels = [0]
        if "object" in types:
            levels.append(self._of_properties(parts))
        if "array" in types:
            levels.append(self._of_items(parts))
        return min(max(levels), MAX_LEVELS)

    def _of_properties(self, parts: list[dict[str, Any]]) -> int:
        names = {name for part in parts for name in part.get("properties", {})}
        inner = [self.of(*(schema for part in parts for schema in _of_name(part, name))) for name in names]
        for part in parts:
            inner += [self.of(schema) for schema in part.get("patternProperties", {}).values()]
        others = [part["additionalProperties"] for part in parts if "additionalProperties" in part]
        if False not in others:
            inner.append(self.of(*others))
        return 1 + max(inner, default=0)

    def _of_items(self, parts: list[dict[str, Any]]) -> int:
        inner = [self.of(schema) for part in parts for schema in part.get("prefixItems", ())]
        rest = [part["items"] for part in parts if "items" in part]
        if False not in rest:
            inner.append(self.of(*rest))
        return 1 + max(inner, default=0)


def _of_name(part: dict[str, Any], name: str) -> list[Any]:
    """The schemas that one schema has for the value of a property."""
    if name in part.get("properties", {}):
        return [part["properties"][name]]
    return [] if "patternProperties" in part or "additionalProperties" not in part else [part["additionalProperties"]]


def _types(node: dict[str, Any]) -> set[str]:
    named = node.get("type", _ALL)
    return {named} if isinstance(named, str) else set(named)


def _levels_of_value(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(_levels_of_value, inner), default=0)
