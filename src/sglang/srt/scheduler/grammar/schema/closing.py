"""Closes objects: they get the properties that a schema lists, and no others, where that is safe.

By default JSON Schema allows additional properties in every object, and a small model that may invent properties does not stop.
Output of the closed schema is valid under the original schema.

Several schemas may apply to one object, through allOf, anyOf and references. Each closed alone would forbid what the others require, so
they are closed together, with the names that any of them lists; in a choice, each branch with its own:

    {"allOf": [{"properties": {"a": A}}, {"properties": {"b": B}}]}
        -> the same, "properties": {"a": true, "b": true}, "additionalProperties": false
    {"properties": {"a": A}, "anyOf": [{"properties": {"b": B}}, {"properties": {"c": C}}]}
        -> in the first branch      "properties": {"b": B, "a": true}, "additionalProperties": false

The target of a reference then occurs twice, open for these and closed for others. Objects of a schema that sets additional properties
itself stay open.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from sglang.srt.scheduler.grammar.schema.keywords import IN_PLACE, Node, replace_children

_OPEN = frozenset({"additionalProperties", "patternProperties", "unevaluatedProperties", "propertyNames"})
_OF_OBJECTS = _OPEN | {"properties", "required", "minProperties", "maxProperties"}
_CHOICES = ("anyOf", "oneOf")
_TOGETHER = ("allOf", *_CHOICES)


def close_objects(schema: Any) -> Any:
    """A schema in which objects have the properties that it lists and no others. Its references lead to its `$defs`. Raises
    RecursionError when nested too deep."""
    return _Closing(schema).run() if isinstance(schema, dict) else schema


class _Closing:
    """`_opened`: the names of open definitions, by the reference to the closed one; `_unwritten`: the newest of these references."""

    def __init__(self, root: Node) -> None:
        self._root = {key: value for key, value in root.items() if key != "$defs"}
        self._definitions: dict[str, Any] = root.get("$defs", {})
        self._targets = {"#": self._root, **{f"#/$defs/{name}": node for name, node in self._definitions.items()}}
        self._opened: dict[str, str] = {}
        self._unwritten: list[str] = []

    def run(self) -> Node:
        out: Node = self._close(self._root)
        definitions = {name: self._close(node) for name, node in self._definitions.items()}
        while self._unwritten:
            ref = self._unwritten.pop()  # opening it may ask for others
            definitions[self._opened[ref]] = self._open(self._targets[ref])
        return {**out, "$defs": definitions} if definitions else out

    def _close(self, node: Any) -> Any:
        """A schema that speaks alone of its value."""
        if not isinstance(node, dict):
            return node
        speakers = [key for key in (*_TOGETHER, "$ref") if key in node]
        is_alone = len(speakers) == 1 and (speakers != ["allOf"] or len(_list(node["allOf"])) == 1)
        if is_alone and not node.keys() & _OF_OBJECTS:  # and so does what it refers to, or each branch
            return self._copy(node, self._close)
        can_close = _Together(node, self._targets).can_close
        if not speakers:
            out = self._copy(node, self._close)
            return {**out, "additionalProperties": False} if can_close else out
        out = self._open(node)
        return self._shut(out, frozenset()) if can_close else out

    def _open(self, node: Any) -> Any:
        """A schema that others speak beside."""
        if not isinstance(node, dict):
            return node
        out = self._copy(node, self._open)
        ref = out.get("$ref")
        if isinstance(ref, str) and isinstance(self._targets.get(ref), dict):
            if ref not in self._opened:
                self._opened[ref] = f"{ref.rpartition('/')[2].strip('#')}-open"
                self._unwritten.append(ref)
            out["$ref"] = f"#/$defs/{self._opened[ref]}"
            self._targets[out["$ref"]] = self._targets[ref]
        return out

    def _copy(self, node: Node, in_place: Callable[[Any], Any]) -> Node:
        """Other values' schemas are closed, those that speak of the same value go through `in_place`."""
        out = dict(node)
        replace_children(out, lambda place, child: (in_place if place[0] in _TOGETHER else self._close)(child))
        return out

    def _shut(self, node: Any, around: frozenset[str]) -> Any:
        """An open schema, for objects of the names that it lists and those `around` it."""
        if not isinstance(node, dict):
            return node
        parts = list(self._parts(node, set()))
        names = around.union(*map(_listed, parts))
        choices = [(part, key) for part in parts for key in _CHOICES if key in part]
        if len(choices) == 1 and choices[0][0] is node:
            key = choices[0][1]
            return {**node, key: [self._shut(branch, names) for branch in _list(node[key])]}
        listed = node.get("properties", {})
        names = names.union(*(_Together(branch, self._targets).names for part, key in choices for branch in _list(part[key])))
        others = {name: True for name in sorted(names) if name not in listed}
        return {**node, "properties": {**listed, **others}, "additionalProperties": False}

    def _parts(self, node: Any, seen: set[str]) -> Iterator[Node]:
        """Schemas that must all hold. `seen`: the references that led to some of them."""
        if not isinstance(node, dict):
            return
        yield node
        for child in _list(node.get("allOf")):
            yield from self._parts(child, seen)
        ref = node.get("$ref")
        if isinstance(ref, str) and ref not in seen:
            seen.add(ref)
            yield from self._parts(self._targets.get(ref), seen)


class _Together:
    """The names that all schemas of the same object as `node` list and require, together."""

    def __init__(self, node: Any, targets: dict[str, Any]) -> None:
        self.names: set[str] = set()
        self._required: set[str] = set()
        self._least = 0
        self._is_plain = True
        self._seen: set[str] = set()
        self._targets = targets
        self._add(node)

    @property
    def can_close(self) -> bool:
        """Whether the names that are listed suffice."""
        return bool(self.names) and self._is_plain and self._required <= self.names and self._least <= len(self.names)

    def _add(self, node: Any) -> None:
        if not isinstance(node, dict):
            return
        if node.keys() & (_OPEN | IN_PLACE - {"$ref", *_TOGETHER}):
            self._is_plain = False
        self.names.update(_listed(node))
        self._required.update(name for name in _list(node.get("required")) if isinstance(name, str))
        least = node.get("minProperties")
        self._least = max(self._least, least if isinstance(least, int) else 0)
        for key in _TOGETHER:
            for child in _list(node.get(key)):
                self._add(child)
        ref = node.get("$ref")
        if isinstance(ref, str) and ref not in self._seen:
            self._seen.add(ref)
            self._add(self._targets.get(ref))


def _listed(node: Node) -> list[str]:
    properties = node.get("properties")
    return list(properties) if isinstance(properties, dict) else []


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
