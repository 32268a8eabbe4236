"""Recursive references with sibling keywords: expanded once, as their own definitions.

An engine merges the target of a reference with its sibling keywords, which does not terminate for recursive ones:

    {"$defs": {"T": {"properties": {"next": {"$ref": "#/$defs/T", "required": ["next"]}}}}}
        -> {"$defs": {"T": {"properties": {"next": {"$ref": "#/$defs/0-joined"}}},
                      "0-joined": {"properties": {"next": {"$ref": "#/$defs/0-joined"}}, "required": ["next"]}}}

Each set of schemas that apply together makes one definition, so the expansion terminates: a schema has finitely many parts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from sglang.srt.errors import GrammarError
from sglang.srt.scheduler.grammar.schema.keywords import CONSTRAINING, Node, replace_children

MAX_JOINED = 500
"""definitions that are made"""
_SETTINGS = ("$defs", "x-guidance")
PATTERNS = "patternProperties"
_OF_PROPERTIES = ("properties", PATTERNS, "additionalProperties", "required")


def join_references(schema: Node) -> Node:
    """A prepared schema in which references stand alone. Raises GrammarError where there are too many combinations."""
    return _Joining(schema).run()


def without_definition(schema: Node, name: str) -> Node:
    """A prepared schema in which what refers to a definition is false."""

    def changed(node: Any) -> Any:
        if not isinstance(node, dict):
            return node
        if node.get("$ref") == f"#/$defs/{name}":
            return False
        out = dict(node)
        replace_children(out, lambda place, child: changed(child))
        return out

    definitions = {key: node for key, node in schema.get("$defs", {}).items() if key != name}
    return changed({**schema, "$defs": definitions})  # type: ignore[no-any-return]


class _Joining:
    """`_names`: of what was joined, by its text; `_unwritten`: the newest of these, each with the schemas that hold together."""

    def __init__(self, root: Node) -> None:
        self._root = root
        self._definitions: dict[str, Any] = root.get("$defs", {})
        self._targets = {"#": {key: value for key, value in root.items() if key not in _SETTINGS}}
        self._targets |= {f"#/$defs/{name}": node for name, node in self._definitions.items()}
        self._names: dict[str, str] = {}
        self._unwritten: list[tuple[str, list[Any]]] = []

    def run(self) -> Node:
        out = {key: self._root[key] for key in self._root if key in _SETTINGS} | self._node(self._targets["#"])
        definitions = {name: self._node(node) for name, node in self._definitions.items()}
        while self._unwritten:
            name, parts = self._unwritten.pop()
            definitions[name] = self._written(parts)
        return {**out, "$defs": definitions}

    def _node(self, node: Any) -> Any:
        if not isinstance(node, dict):
            return node
        if self._joins(node):
            return self._joined([node])
        if node.keys() & CONSTRAINING - {"anyOf"} and _chooses_reference(node):
            return self._spread(node, [])
        return self._with_inner(node)

    def _spread(self, node: Node, others: list[Any]) -> Node:
        """A choice whose every branch says what stands beside it."""
        rest = {key: value for key, value in node.items() if key != "anyOf"}
        beside = [*others, rest] if rest.keys() & CONSTRAINING else others
        return {"anyOf": [self._all([branch, *beside]) for branch in node["anyOf"]]}

    def _with_inner(self, node: Node) -> Node:
        out = dict(node)
        replace_children(out, lambda place, child: self._node(child))
        return out

    def _joins(self, node: Node) -> bool:
        """Whether a reference holds together with something else."""
        if "$ref" in node:
            return bool(node.keys() & CONSTRAINING - {"$ref"})
        parts = [part for part in node.get("allOf", []) if isinstance(part, dict)]
        return any("$ref" in part or self._joins(part) for part in parts)

    def _joined(self, nodes: list[Any]) -> Node:
        """A reference to all of them."""
        parts: dict[str, Any] = {}
        for node in nodes:
            parts |= {json.dumps(part, sort_keys=True): part for part in self._parts(node, set())}
        text = json.dumps(sorted(parts))
        if text not in self._names:
            if len(self._names) >= MAX_JOINED:
                raise GrammarError("json_schema: too many references with other keywords beside them", "json_schema")
            self._names[text] = f"{len(self._names)}-joined"
            self._unwritten.append((self._names[text], list(parts.values())))
        return {"$ref": f"#/$defs/{self._names[text]}"}

    def _parts(self, node: Any, seen: set[str]) -> Iterator[Any]:
        """The schemas without references and allOf that hold together where `node` does."""
        if not isinstance(node, dict):
            yield node
            return
        own = {key: value for key, value in node.items() if key not in ("$ref", "allOf")}
        if own.keys() & CONSTRAINING:
            yield own
        for part in node.get("allOf", []):
            yield from self._parts(part, seen)
        ref = node.get("$ref")
        if isinstance(ref, str) and ref not in seen:
            seen.add(ref)
            yield from self._parts(self._targets.get(ref, True), seen)

    # --- one definition ---------------------------------------------------------------------------------------------------------

    def _written(self, parts: list[Any]) -> Any:
        """All parts as one schema: properties are joined name by name, other keywords by the engine."""
        parts = [part for part in parts if part is not True]
        if False in parts:
            return False
        choice = next((part for part in parts if _chooses_reference(part)), None)
        if choice is not None:
            return self._spread(choice, [part for part in parts if part is not choice])
        if len(parts) < 2 or _patterns_meet(parts):
            return {"allOf": [self._with_inner(part) for part in parts]}
        out, others = self._about_properties(parts), []
        for part in parts:
            rest = self._with_inner({key: value for key, value in part.items() if key not in _OF_PROPERTIES})
            others.append({key: value for key, value in rest.items() if out.setdefault(key, value) != value})
        others = [other for other in others if other.keys() & CONSTRAINING]
        return {**out, "allOf": others} if others else out

    def _about_properties(self, parts: list[Node]) -> Node:
        listed = [pair for part in parts for pair in part.get("properties", {}).items()]
        names = dict.fromkeys(name for name, schema in sorted(listed, key=lambda pair: pair[1] is True))  # as they were written
        out: Node = {}
        if names:
            out["properties"] = {name: self._all([schema for part in parts for schema in _of(part, name)]) for name in names}
        for part in parts:
            if PATTERNS in part:
                out[PATTERNS] = {pattern: self._node(schema) for pattern, schema in part[PATTERNS].items()}
        if any("additionalProperties" in part for part in parts):
            out["additionalProperties"] = self._all([part.get("additionalProperties", True) for part in parts])
        required = dict.fromkeys(name for part in parts for name in part.get("required", []))
        return {**out, "required": list(required)} if required else out

    def _all(self, schemas: list[Any]) -> Any:
        """One schema for what satisfies all of these."""
        wanted = list({json.dumps(schema, sort_keys=True): schema for schema in schemas if schema not in (True, {})}.values())
        if False in wanted:
            return False
        if len(wanted) < 2:
            return self._node(wanted[0]) if wanted else True
        whole = {"allOf": wanted}
        return self._joined(wanted) if self._joins(whole) else self._with_inner(whole)


def _chooses_reference(node: Node) -> bool:
    return any(isinstance(branch, dict) and "$ref" in branch for branch in node.get("anyOf", ()))


def _patterns_meet(parts: list[Node]) -> bool:
    """Whether one schema has patterns of names, and another says something of names that it does not list."""
    some = [part for part in parts if part.keys() & {PATTERNS, "additionalProperties"}]
    return len(some) > 1 and any(PATTERNS in part for part in some)


def _of(part: Node, name: str) -> list[Any]:
    """The schemas that one schema has for a property."""
    found = [part["properties"][name]] if name in part.get("properties", {}) else []
    found += [schema for pattern, schema in part.get(PATTERNS, {}).items() if re.search(pattern, name)]
    return found or [part.get("additionalProperties", True)]
