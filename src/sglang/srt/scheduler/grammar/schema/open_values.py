"""Expands unconstrained values, so that their nesting and length are bounded.

    {"type": "object"}   ->   {"type": "object", "patternProperties": {SHORT: {"$ref": "#/$defs/any8"}}, "additionalProperties": false}
    {"items": true}      ->   {"type": [...], "items": {"$ref": "#/$defs/any8"}, ...}
    "any8"                    every type; inside of objects and lists, "any7"
    "any0"                    neither objects nor lists

A small model that may write anything nests objects, lengthens names and extends numbers without end; after expansion they are bounded
like all others (schema/bounds.py). Only where a single schema applies to a value: engines merge schemas that apply together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from sglang.srt.scheduler.grammar.schema.keywords import CONSTRAINING, IN_PLACE, Node, Place, children

LEVELS = 8
"""of objects and lists inside a value of which nothing is said"""
NAME_LEN = 64
"""characters of the names in it"""
_NAME = f"^.{{0,{NAME_LEN}}}$"
_ANY = "any"
_REF = f"#/$defs/{_ANY}{LEVELS}"
_SCALARS = ("string", "number", "boolean", "null")
_INSIDE = {"object": "additionalProperties", "array": "items"}
_KINDS = (*_INSIDE, *_SCALARS)
_FIXED = IN_PLACE | {"enum", "const"}
_OF_NAMES = frozenset({"properties", "patternProperties", "required", "minProperties", "maxProperties"})


def fill_open(schema: Node, plain: bool) -> None:
    """Changes a prepared schema, in place. `plain`: for an engine that wants a single type beside other keywords, and knows no
    patterns of names."""
    definitions = schema.get("$defs", {})
    shared = _shared(schema, definitions)
    lone = [schema, *(node for name, node in definitions.items() if f"#/$defs/{name}" not in shared)]
    filled = [_fill(node, plain) for root in lone for node in _lone_nodes(root)]
    if any(filled):
        schema["$defs"] = {**definitions, **{f"{_ANY}{level}": _any_value(level, plain) for level in range(LEVELS + 1)}}


def _any_value(level: int, plain: bool) -> Node:
    """A schema of any value with so many levels inside."""
    if not level:
        return {"anyOf": [{"type": kind} for kind in _SCALARS]} if plain else {"type": list(_SCALARS)}
    inside = {"$ref": f"#/$defs/{_ANY}{level - 1}"}
    held = [_plain_value(kind, inside) for kind in _INSIDE]
    if not plain:
        held = [{"type": list(_INSIDE), "items": inside, **_named(inside)}]
    return {"anyOf": [{"$ref": f"#/$defs/{_ANY}0"}, *held]}


def _plain_value(kind: str, inside: Node) -> Node:
    key = _INSIDE.get(kind)
    return {"type": kind, key: inside} if key is not None else {"type": kind}


def _named(inside: Node) -> Node:
    """Properties of short names."""
    return {"patternProperties": {_NAME: inside}, "additionalProperties": False}


# --- which schemas speak alone ----------------------------------------------------------------------------------------------


def _shared(schema: Node, definitions: dict[str, Any]) -> set[str]:
    """References to what speaks of values that other schemas speak of, too."""
    found: set[str] = set()
    queue: list[tuple[Any, bool]] = [(node, True) for node in (schema, *definitions.values())]
    while queue:
        root, is_lone = queue.pop()
        for node, lone in _walk(root, is_lone):
            ref = node.get("$ref")
            if isinstance(ref, str) and ref not in found and not (lone and node.keys() & CONSTRAINING == {"$ref"}):
                found.add(ref)
                queue.append((definitions.get(ref.rpartition("/")[2]) if ref != "#" else schema, False))
    return found


def _lone_nodes(root: Any) -> Iterator[Node]:
    return (node for node, is_lone in _walk(root, True) if is_lone)


def _walk(root: Any, is_lone: bool) -> Iterator[tuple[Node, bool]]:
    """All schemas in one, and whether each speaks alone of its value, if `root` does."""
    stack = [(root, is_lone)]
    while stack:
        node, lone = stack.pop()
        if isinstance(node, dict):
            yield node, lone
            apart = _apart(node)
            stack.extend((child, lone and apart(place)) for place, child in children(node) if place[0] != "$defs")


def _apart(node: Node) -> Callable[[Place], bool]:
    """Whether the child at a place is the only one of `node` that speaks of its value."""
    if node.keys() & IN_PLACE:
        alone = node.keys() & CONSTRAINING == {"anyOf"}
        return lambda place: alone
    patterns = len(node.get("patternProperties", ()))
    meet = patterns > 1 or (patterns == 1 and "properties" in node)
    return lambda place: not (meet and place[0] in ("properties", "patternProperties"))


# --- one schema -------------------------------------------------------------------------------------------------------------


def _fill(node: Node, plain: bool) -> bool:
    """Whether it had something open."""
    says = node.keys() & CONSTRAINING
    if node.get("additionalProperties") is True:
        del node["additionalProperties"]
    if plain and not says:
        node["$ref"] = _REF
        return True
    if plain and says == {"type"} and isinstance(node["type"], list):
        node["anyOf"] = [_plain_value(kind, {"$ref": _REF}) for kind in node.pop("type")]
        return True
    found = _fill_children(node)
    if node.keys() & _FIXED or (plain and not isinstance(node.get("type"), str)):
        return found
    if "type" not in node:
        node["type"] = list(_KINDS)
    kinds = [node["type"]] if isinstance(node["type"], str) else node["type"]
    if "array" in kinds and "items" not in node:
        node["items"], found = {"$ref": _REF}, True
    if "object" in kinds and "additionalProperties" not in node:
        is_plain = plain or bool(node.keys() & _OF_NAMES)
        node.update({"additionalProperties": {"$ref": _REF}} if is_plain else _named({"$ref": _REF}))
        found = True
    return found


def _fill_children(node: Node) -> bool:
    """Puts a reference for each that is true."""
    found = False
    apart = _apart(node)
    for place, child in list(children(node)):
        if child is True and apart(place) and place[0] != "$defs":
            held: Any = node if len(place) == 1 else node[place[0]]
            held[int(place[-1]) if isinstance(held, list) else place[-1]] = {"$ref": _REF}
            found = True
    return found
