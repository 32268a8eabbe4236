"""Exact rewrites of keywords that type libraries produce to others that engines follow.

    {"propertyNames": {"$ref": "#/$defs/Colour"}}                        dict[Colour, X]: the names are listed
    {"items": {"$ref": "#/$defs/Colour"}, "uniqueItems": true}           set[Colour]: the lists, where there are few
    {"dependencies": {"card": ["address"]}}                              with card and address, or without card
    {"if": {"properties": {"kind": {"const": "a"}}}, "then": T}          a branch for each kind (conditions.py)
    {"enum": ["a", "b"], "not": {"const": "a"}}                          what is left (negations.py)

Unlike the rules of schema/rewriting/rewrites.py these look through references.
"""

from __future__ import annotations

import itertools
import math
from functools import partial
from typing import Any

from sglang.srt.scheduler.grammar.schema.formats import FORMATS
from sglang.srt.scheduler.grammar.schema.keywords import CONSTRAINING, Node
from sglang.srt.scheduler.grammar.schema.refs import SchemaDocument, Scope
from sglang.srt.scheduler.grammar.schema.rewriting.conditions import split_conditions
from sglang.srt.scheduler.grammar.schema.rewriting.negations import write_out_not
from sglang.srt.scheduler.grammar.schema.rewriting.values import named_values

MAX_LISTS = 400
"""that a set of values is written out as: those of five values"""
MAX_DEPENDENCIES = 3
"""properties that others depend on; each doubles the schemas"""
MAX_COPIED = 20_000
"""characters of a schema that is written down more than once"""
_ABOUT_LISTS = frozenset({"items", "uniqueItems", "minItems", "maxItems"})
_ABOUT_NAMES = frozenset({"minLength", "maxLength"})


class Reductions:
    """Reduces schema objects of one document."""

    def __init__(self, document: SchemaDocument) -> None:
        self._document = document

    def reduce(self, node: Node, scope: Scope) -> None:
        """Changes `node`, whose schemas are left as they are."""
        if str(node.get("format")) not in FORMATS:  # an annotation, as the specification says
            node.pop("format", None)
        self._name_properties(node, scope)
        self._write_out_sets(node, scope)
        _split_dependencies(node)
        values = partial(named_values, self._document, scope=scope)
        split_conditions(node, values, scope.draft)
        if "not" in node:
            write_out_not(node, values, scope.draft)
        if isinstance(node.get("dependentRequired"), dict):
            _write_out_dependencies(node)

    def _name_properties(self, node: Node, scope: Scope) -> None:
        names = node.get("propertyNames")
        if not isinstance(names, dict):
            return
        values = named_values(self._document, names, scope)
        if values is not None:
            node["propertyNames"] = {"enum": [name for name in values if isinstance(name, str)]}
        elif names.keys() & CONSTRAINING <= _ABOUT_NAMES | {"type"} and names.keys() & _ABOUT_NAMES:
            low, high = names.get("minLength", 0), names.get("maxLength", "")
            if type(low) is int and type(high) in (int, str):
                node["propertyNames"] = {"pattern": rf"^[\s\S]{{{low},{high}}}$"}

    def _write_out_sets(self, node: Node, scope: Scope) -> None:
        """Lists of distinct values, all of them, in any order."""
        if node.get("uniqueItems") is not True or node.get("type") != "array":
            return
        values = named_values(self._document, node.get("items"), scope) or _few_integers(node.get("items"))
        if values is None or not node.keys() & CONSTRAINING <= _ABOUT_LISTS | {"type"}:
            return
        low, high = node.get("minItems", 0), node.get("maxItems", len(values))
        if type(low) is not int or type(high) is not int:
            return
        lengths = range(low, min(high, len(values)) + 1)
        if not lengths or sum(math.perm(len(values), k) for k in lengths) > MAX_LISTS:
            return
        chosen = [list(some) for k in lengths for some in itertools.permutations(values, k)]
        for key in _ABOUT_LISTS:
            node.pop(key, None)
        node["enum"] = chosen


def _few_integers(schema: Any) -> list[Any] | None:
    """The integers between two limits that are close to each other."""
    if not isinstance(schema, dict) or not schema.keys() & CONSTRAINING <= {"type", "minimum", "maximum"}:
        return None
    low, high = schema.get("minimum"), schema.get("maximum")
    if schema.get("type") != "integer" or type(low) is not int or type(high) is not int or not 0 <= high - low < MAX_LISTS:
        return None
    return list(range(low, high + 1))


def _split_dependencies(node: Node) -> None:
    """Until draft 7, one keyword named both what is required and what is valid along with a property."""
    depends = node.get("dependencies")
    if not isinstance(depends, dict):
        return
    names = {name: others for name, others in depends.items() if isinstance(others, list)}
    schemas = {name: other for name, other in depends.items() if not isinstance(other, list) and other not in (True, {})}
    if names and "dependentRequired" not in node:
        node["dependentRequired"] = names
        names = {}
    if schemas and "dependentSchemas" not in node:
        node["dependentSchemas"] = schemas
        schemas = {}
    node["dependencies"] = {**names, **schemas}
    if not node["dependencies"]:
        del node["dependencies"]


def _write_out_dependencies(node: Node) -> None:
    """One schema for each way in which the properties that others depend on may be there, or not."""
    depends: dict[str, Any] = node["dependentRequired"]
    properties, required = node.get("properties"), node.get("required", [])
    if node.get("type") != "object" or not isinstance(properties, dict) or not isinstance(required, list):
        return
    if not all(isinstance(name, str) for name in required):
        return
    if node.keys() & {"anyOf", "oneOf", "allOf", "not", "if", "$ref", "dependentSchemas", "propertyNames"}:
        return
    free = [name for name, others in depends.items() if name not in required and others]
    known = all(
        isinstance(others, list) and all(isinstance(name, str) and name in properties for name in others)
        for others in depends.values()
    )
    if not known or not set(free) <= properties.keys() or len(free) > MAX_DEPENDENCIES or len(str(properties)) > MAX_COPIED:
        return
    ways = []
    for there in itertools.product((True, False), repeat=len(free)):
        absent = {name for name, is_there in zip(free, there, strict=True) if not is_there}
        needed = _needed([*required, *(name for name in free if name not in absent)], depends)
        if not absent & set(needed):
            listed = {name: False if name in absent else schema for name, schema in properties.items()}
            ways.append({**node, "properties": listed, "required": needed})
    for way in ways:
        del way["dependentRequired"]
    for key in [key for key in node if key not in ("$schema", "$id", "$defs", "definitions")]:
        del node[key]
    node["anyOf"] = ways


def _needed(names: list[str], depends: dict[str, Any]) -> list[str]:
    known = list(dict.fromkeys(names))
    for name in known:  # grows while it is read: dependents may have dependents
        known += [other for other in depends.get(name, []) if other not in known]
    return known
