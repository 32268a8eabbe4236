"""Rewrites minProperties of a closed object as required names.

{"properties": {"a": A, "b": B}, "additionalProperties": false, "minProperties": 1}
    -> {"properties": {"a": A, "b": B}, "additionalProperties": false, "anyOf": [{"required": ["a"]}, {"required": ["b"]}]}
"""

from __future__ import annotations

import itertools
import math

from sglang.srt.scheduler.grammar.schema.keywords import IN_PLACE, Node

MAX_WAYS = 64
"""to choose properties of which some number must be there"""


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
