"""Conditions on properties whose values can be told apart: one branch for each case.

    {"properties": {"kind": {"enum": ["a", "b", "c"]}}, "required": ["kind"],
     "if": {"properties": {"kind": {"const": "a"}}}, "then": T, "else": E}
        -> {"properties": {"kind": {"enum": ["a", "b", "c"]}}, "required": ["kind"],
            "anyOf": [{"properties": {"kind": {"enum": ["a"]}}, "required": ["kind"], "allOf": [T]},
                      {"properties": {"kind": {"enum": ["b", "c"]}}, "required": ["kind"], "allOf": [E]}]}

So are conditions in allOf, however many, and dependentSchemas, which ask whether a property is there. One that stands in a branch of
another holds where both do:

    {"if": A, "then": T, "else": {"if": B, "then": U, "else": E}}
        -> {"if": A, "then": T}, {"if": not A and B, "then": U}, {"if": not A and not B, "then": E}

A property is absent, has one of the values that its schema lists, or, where that is any string, none of those that conditions name.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from sglang.srt.scheduler.grammar.schema.drafts import counts, read_draft
from sglang.srt.scheduler.grammar.schema.keywords import CONSTRAINING, Node

MAX_CASES = 200
MAX_BRANCHES = 64
MAX_COPIED = 20_000
"""characters of schemas that are written down more than once"""
MAX_NESTED = 16
"""conditions inside branches of conditions"""
_OF_CONDITIONS = frozenset({"if", "then", "else"})
_APART = frozenset({"$ref", "$dynamicRef", "$recursiveRef", "$schema", "$id", "id"})
"""what stands beside these may be read in another way, or not at all"""
_OTHER = "other"
Values = Callable[[Any], list[Any] | None]
"""a schema to all values that it allows; None where it does not list them"""
State = str | None
"""of a property: None is absent, else its value as JSON, or `_OTHER`"""
Case = dict[str, State]
Test = Callable[[Case], bool]


def split_conditions(node: Node, values: Values, draft: int) -> None:
    """Changes `node`, of a draft, where all its conditions can be decided so; else leaves it as it is."""
    properties = node.get("properties")
    if node.get("type") != "object" or not isinstance(properties, dict):
        return
    _split(node, list(_flat(node, draft)), _Reading(properties, values)) or _split(
        node, list(_conditions(node, draft)), _Reading(properties, values)
    )


def _split(node: Node, conditions: list[Node], reading: _Reading) -> bool:
    """Whether `node` was changed."""
    tests = [reading.test(condition["if"]) for condition in conditions]
    if not conditions or any(test is None for test in tests):
        return False
    states = reading.states(_names(node.get("required")))
    if states is None:
        return False
    known = [(test, condition) for test, condition in zip(tests, conditions, strict=True) if test is not None]
    branches = list(itertools.islice(_branches(states, known, reading), MAX_BRANCHES + 1))
    if len(branches) > MAX_BRANCHES or len(json.dumps(branches)) > MAX_COPIED:
        return False
    _put(node, branches)
    return True


def _conditions(node: Node, draft: int) -> Iterator[Node]:
    """All of one schema object, as if, then and else."""
    if "if" in node:
        yield node
    yield from (part for part in _list(node.get("allOf")) if _is_condition(part) and counts("if", draft))
    depends = node.get("dependentSchemas")
    for name, schema in depends.items() if isinstance(depends, dict) else ():
        yield {"if": {"required": [name]}, "then": schema}


def _flat(node: Node, draft: int, depth: int = 0) -> Iterator[Node]:
    """The same, with those that stand in their branches, each under all that leads there."""
    for condition in _conditions(node, draft):
        test: Any = condition["if"]
        inner: list[Node] = []
        branches: Node = {key: condition[key] for key in ("then", "else") if key in condition}
        for key, leads in (("then", test), ("else", {"not": test})):
            branch = branches.get(key)
            if not isinstance(branch, dict) or branch.keys() & _APART or depth > MAX_NESTED:
                continue
            within = list(_flat(read_draft(branch, draft), draft, depth + 1))
            if within:
                branches[key] = _without_conditions(branch)
            for other in within:
                inner += [
                    {"if": {"allOf": [leads, asked]}, "then": other[outcome]}
                    for outcome, asked in (("then", other["if"]), ("else", {"not": other["if"]}))
                    if outcome in other
                ]
        yield {"if": test, **branches}
        yield from inner


def _without_conditions(node: Node) -> Node:
    out = {key: value for key, value in node.items() if key not in (*_OF_CONDITIONS, "dependentSchemas", "allOf")}
    rest = [part for part in _list(node.get("allOf")) if not _is_condition(part)]
    return {**out, "allOf": rest} if rest else out


def _is_condition(part: Any) -> bool:
    return isinstance(part, dict) and "if" in part and part.keys() & CONSTRAINING <= _OF_CONDITIONS


def _put(node: Node, branches: list[Node]) -> None:
    kept = _without_conditions(node)
    node.clear()
    node.update(kept)
    rest = node.pop("allOf", [])
    if "anyOf" in node:
        rest.append({"anyOf": branches})
    else:
        node["anyOf"] = branches
    if rest:
        node["allOf"] = rest


def _branches(states: dict[str, list[State]], conditions: list[tuple[Test, Node]], reading: _Reading) -> Iterator[Node]:
    """One for each case; values of the last property that lead to the same go together."""
    *names, last = sorted(states, key=lambda name: len(states[name]))
    for some in itertools.product(*(states[name] for name in names)):
        groups: dict[tuple[bool, ...], list[State]] = {}
        for state in states[last]:
            case = {**dict(zip(names, some, strict=True)), last: state}
            outcome = tuple(test(case) for test, _ in conditions)
            groups.setdefault((state is None, state == _OTHER, *outcome), []).append(state)
        for (_, _, *outcomes), group in groups.items():
            follows = [
                condition.get("then" if holds else "else", True)
                for holds, (_, condition) in zip(outcomes, conditions, strict=True)
            ]
            if False not in follows:
                case_of = {**{name: [state] for name, state in zip(names, some, strict=True)}, last: group}
                yield reading.branch(case_of, [schema for schema in follows if schema not in (True, {})])


class _Reading:
    """Reads what conditions ask of properties. `_asked`: the values, as JSON, that conditions name of each."""

    def __init__(self, properties: Node, values: Values) -> None:
        self._properties = properties
        self._values = values
        self._asked: dict[str, set[str]] = {}

    def test(self, schema: Any) -> Test | None:
        """Whether a case satisfies the schema; None where cases do not say."""
        if isinstance(schema, bool):
            return lambda case: schema
        if not isinstance(schema, dict) or schema.get("type", "object") != "object":
            return None
        tests: list[Test | None] = []
        for key in schema.keys() & CONSTRAINING - {"type"}:
            tests += self._of_keyword(key, schema[key])
        known = [test for test in tests if test is not None]
        return (lambda case: all(test(case) for test in known)) if len(known) == len(tests) else None

    def _of_keyword(self, key: str, value: Any) -> list[Test | None]:
        if key == "required" and set(_names(value)) <= self._properties.keys():
            return [self._is_there(name) for name in _names(value)]
        if key == "properties" and isinstance(value, dict):
            return [self._has_value(name, schema) for name, schema in value.items()]
        if key == "not":
            inner = self.test(value)
            return [None if inner is None else lambda case: not inner(case)]
        if key in ("allOf", "anyOf") and isinstance(value, list):
            parts = [test for test in map(self.test, value) if test is not None]
            join = all if key == "allOf" else any
            return [(lambda case: join(test(case) for test in parts)) if len(parts) == len(value) else None]
        return [None]

    def _is_there(self, name: str) -> Test:
        self._asked.setdefault(name, set())
        return lambda case: case[name] is not None

    def _has_value(self, name: str, schema: Any) -> Test | None:
        if name not in self._properties:
            return None
        if schema in (True, {}):
            return lambda case: True
        is_not = isinstance(schema, dict) and schema.keys() & CONSTRAINING == {"not"}
        values = None if schema is False else self._values(schema["not"] if is_not else schema)
        if values is None:
            return None
        named = {in_json(value) for value in values}
        self._asked.setdefault(name, set()).update(named)
        return lambda case: case[name] is None or (case[name] in named) != is_not

    def states(self, required: list[str]) -> dict[str, list[State]] | None:
        """The possible states of each property that conditions depend on."""
        found: dict[str, list[State]] = {}
        for name, asked in self._asked.items():
            schema = self._properties[name]
            listed: list[State] | None
            if not asked:
                listed = [_OTHER]
            elif (values := self._values(schema)) is not None:
                listed = [in_json(value) for value in values]
            elif isinstance(schema, dict) and schema.get("type") == "string" and schema.keys() & CONSTRAINING == {"type"}:
                listed = [*sorted(text for text in asked if text.startswith('"')), _OTHER]
            else:
                return None
            found[name] = listed if name in required else [None, *listed]
        num_cases = 1
        for states in found.values():
            num_cases *= len(states)
        return found if found and num_cases <= MAX_CASES else None

    def branch(self, case: dict[str, list[State]], follows: list[Any]) -> Node:
        properties: Node = {}
        for name, states in case.items():
            values = [json.loads(state) for state in states if state not in (None, _OTHER)]
            words = [json.loads(text) for text in self._asked[name] if text.startswith('"')]
            if states == [None]:
                properties[name] = False
            elif values:
                properties[name] = {"enum": values}
            elif words:
                properties[name] = {"type": "string", "pattern": f"^{pattern_of_others(words)}$"}
        there = [name for name, states in case.items() if states != [None]]
        follows = [
            {"type": "object", **schema} if isinstance(schema, dict) and "if" in schema else schema for schema in follows
        ]
        return {"properties": properties, "required": there, **({"allOf": follows} if follows else {})}


def pattern_of_others(words: Iterable[str]) -> str:
    """An expression for all strings but these."""
    words = set(words)
    rest: dict[str, set[str]] = {}
    for word in words - {""}:
        rest.setdefault(word[0], set()).add(word[1:])
    ways = [] if "" in words else [""]
    ways += [f"[^{''.join(map(_in_class, sorted(rest)))}](?s:.*)" if rest else "(?s:.+)"]
    ways += [re.escape(letter) + pattern_of_others(ends) for letter, ends in sorted(rest.items())]
    return f"(?:{'|'.join(ways)})"


def _in_class(letter: str) -> str:
    return f"\\{letter}" if letter in "\\]^-[" else letter


def in_json(value: Any) -> str:
    """Equal for equal values of JSON."""
    return json.dumps(int(value) if isinstance(value, float) and value.is_integer() else value, sort_keys=True)


def _names(value: Any) -> list[str]:
    return [name for name in _list(value) if isinstance(name, str)]


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
