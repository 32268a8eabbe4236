"""Rewrites objects with a minimum number of properties, or with very many of them.

minProperties of a closed object becomes required names:

    {"properties": {"a": A, "b": B}, "additionalProperties": false, "minProperties": 1}
        -> {"properties": {"a": A, "b": B}, "additionalProperties": false, "anyOf": [{"required": ["a"]}, {"required": ["b"]}]}

An engine that enforces the order of properties has a state for each optional one. Beyond some number, names whose values have the same
schema become one pattern, in any order:

    {"properties": {"p0": N, "p1": N, ... "p1499": S}, "additionalProperties": false}
        -> {"patternProperties": {"^(p0|p1|...)$": N, "^(...|p1499)$": S}, "additionalProperties": false, "maxProperties": 1500}

A name may then occur twice; its last value, which counts, still follows its schema.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from typing import Any

from sglang.srt.scheduler.grammar.schema.keywords import IN_PLACE, Node

MAX_WAYS = 64
"""of choosing the required properties"""
MANY = 1000
MAX_KINDS = 64
"""of values: patterns are compared with each other"""


def name_counted(node: Node) -> None:
    """Changes a prepared schema of an object, in place."""
    listed, required, least = node.get("properties", {}), set(node.get("required", [])), node.get("minProperties", 0)
    if not least or node.get("additionalProperties") is not False or node.keys() & {"patternProperties", *IN_PLACE}:
        return
    free = [name for name, schema in listed.items() if name not in required and schema is not False]
    missing = max(least - len(required), 0)
    if missing > len(free) or math.comb(len(free), missing) > MAX_WAYS:
        return
    del node["minProperties"]
    if missing:
        node["anyOf"] = [{"required": list(some)} for some in itertools.combinations(free, missing)]


def group_names(node: Node) -> None:
    """Changes a schema of an object that has no other properties than those it lists, in place."""
    listed, required = node.get("properties", {}), set(node.get("required", []))
    optional = {name: schema for name, schema in listed.items() if name not in required}
    if len(optional) <= MANY or node.get("additionalProperties") is not False:
        return
    if node.keys() & (IN_PLACE | {"patternProperties", "minProperties"}):
        return
    kinds: dict[str, tuple[list[str], Any]] = {}
    for name, schema in optional.items():
        kinds.setdefault(json.dumps(schema, sort_keys=True), ([], schema))[0].append(name)
    if len(kinds) > MAX_KINDS:
        return
    node["properties"] = {name: schema for name, schema in listed.items() if name in required}
    node["patternProperties"] = {f"^({'|'.join(map(re.escape, names))})$": schema for names, schema in kinds.values()}
    node.setdefault("maxProperties", len(listed))
