"""Adds bounds where a schema sets none, and expresses formats with keywords that engines follow.

    {"type": "integer"}   ->   at most 15 digits; as many as 64 bits hold, where the schema has such numbers
    {"type": "number"}    ->   at most 15 digits before the point and 6 after it, no exponent
    {"format": "uri"}     ->   a pattern, for lengths that people write (schema/formats.py)

Unconstrained values are expanded before (schema/open_values.py). A small model may never end a number or an address of unbounded
length. Where the schema itself contains numbers of more digits, the bound is raised to these (schema/numbers.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sglang.srt.scheduler.grammar.schema.formats import FORMATS, format_pattern
from sglang.srt.scheduler.grammar.schema.keywords import LOWER, UPPER, Node, children
from sglang.srt.scheduler.grammar.schema.numbers import MAX_EXACT, MAX_WHOLE, is_whole
from sglang.srt.scheduler.grammar.schema.open_values import fill_open

LARGEST = 10**15 - 1
DECIMALS = 6
MANY_DECIMALS = 9
"""as many as the schema's own numbers can have (schema/numbers.py)"""
LARGE_STEP = 1000
"""of a multipleOf, above which an engine cannot join it with a step of that many decimals"""


def finish_schema(schema: Node, bounded: bool, plain: bool = False) -> None:
    """Changes a prepared schema, in place. Without `bounded`, digits and lengths are bounded by the schema alone. `plain`: for an
    engine that wants a single type beside limits, and knows no multipleOf."""
    for node in nodes_of(schema):
        _follow_format(node, bounded)
    if bounded:
        fill_open(schema, plain)
        _bound_digits(list(nodes_of(schema)), plain)


def _follow_format(node: Node, bounded: bool) -> None:
    name = node.pop("format", None)
    if name not in FORMATS:
        return
    pattern = format_pattern(name, bounded)
    if "pattern" in node:
        node["allOf"] = [*node.get("allOf", []), {"pattern": pattern}]
    else:
        node["pattern"] = pattern


def _bound_digits(nodes: list[Node], plain: bool) -> None:
    numbers = [number for node in nodes for number in _numbers(node)]
    most = max(map(abs, numbers), default=0)
    largest = MAX_EXACT if most >= LARGEST else LARGEST
    many = any(round(number, DECIMALS - 2) != number for number in numbers)
    steps = [node["multipleOf"] for node in nodes if "multipleOf" in node]
    fine = steps or any(node.keys() & {"exclusiveMinimum", "exclusiveMaximum"} for node in nodes)
    step = float(f"1e-{MANY_DECIMALS if many else DECIMALS}")
    can_step = not plain and not (many and fine) and max(steps, default=0) <= LARGE_STEP
    for node in nodes:
        kinds = _kinds(node)
        if node.keys() & {"enum", "const"} or (plain and len(kinds) > 1):
            continue
        if kinds & {"integer", "number"}:
            _limit(node, MAX_WHOLE if most > MAX_EXACT and is_whole(node) else largest)
            if can_step and "number" in kinds:
                node.setdefault("multipleOf", step)


def _limit(node: Node, largest: int) -> None:
    for keys, key, sign in ((LOWER, "minimum", -1), (UPPER, "maximum", 1)):
        if not node.keys() & set(keys):
            node[key] = sign * largest


def nodes_of(schema: Node) -> Iterator[Node]:
    """All schemas in one."""
    stack: list[Any] = [schema]
    while stack:
        node = stack.pop()
        if isinstance(node, dict):
            yield node
            stack.extend(child for _, child in children(node))


def _kinds(node: Node) -> set[str]:
    kinds = node.get("type", [])
    return {kinds} if isinstance(kinds, str) else set(kinds)


def _numbers(node: Node) -> Iterator[float]:
    """Numbers that a value may have to equal, or to lie between."""
    stack = [node.get("const"), *node.get("enum", []), *(node.get(key) for key in (*LOWER, *UPPER, "multipleOf"))]
    while stack:
        value = stack.pop()
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            yield value
        elif isinstance(value, (list, dict)):
            stack.extend(value.values() if isinstance(value, dict) else value)
