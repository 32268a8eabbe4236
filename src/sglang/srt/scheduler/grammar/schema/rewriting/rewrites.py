"""Rewrites JSON Schema keywords to other keywords, so that engines need to support fewer of them.

Each rule takes one schema object and changes the copy that it is given. A rule rewrites a keyword exactly, or leaves it in place for
the engine to accept or refuse.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from sglang.srt.scheduler.grammar.regex.finite_patterns import matched_words
from sglang.srt.scheduler.grammar.regex.regions import regions
from sglang.srt.scheduler.grammar.schema.keywords import COUNTS, IN_PLACE, Node, has_type

MAX_PATTERNS = 4
"""of names, in one schema object"""
MAX_COPIED = 20_000
"""characters of the schemas that names of several patterns have to satisfy"""
Limit = Callable[[Any, Any], bool]
"""(a value, what stands at a keyword)"""


def rewrite(node: Node) -> None:
    """Applies all rules to `node`, whose subschemas are left alone."""
    for rule in _RULES:
        rule(node)


def _whole_counts(node: Node) -> None:
    for key in COUNTS:
        value = node.get(key)
        if isinstance(value, float) and value.is_integer():
            node[key] = int(value)


def _conditions_without_effect(node: Node) -> None:
    if "if" not in node:
        node.pop("then", None)
        node.pop("else", None)
    elif _says_nothing(node.get("then", True)) and _says_nothing(node.get("else", True)):
        for key in ("if", "then", "else"):
            node.pop(key, None)


def _contains_without_effect(node: Node) -> None:
    if "contains" not in node:
        node.pop("minContains", None)
        node.pop("maxContains", None)
    elif node.get("minContains") == 0 and "maxContains" not in node and "unevaluatedItems" not in node:
        del node["contains"], node["minContains"]


def _unique_without_effect(node: Node) -> None:
    most = node.get("maxItems")
    if node.get("uniqueItems") is False or (isinstance(most, int) and most <= 1):
        node.pop("uniqueItems", None)


def _unevaluated(node: Node) -> None:
    """Where nothing else speaks of the same value, what is not evaluated is what is additional."""
    for key, plain in (("unevaluatedProperties", "additionalProperties"), ("unevaluatedItems", "items")):
        if _says_nothing(node.get(key, False)):
            del node[key]
        elif key in node and not node.keys() & IN_PLACE and "contains" not in node:
            node.setdefault(plain, node.pop(key))
            node.pop(key, None)


def _property_names(node: Node) -> None:
    """A set of names, or an expression for them, where no property is listed."""
    names = node.get("propertyNames")
    if _says_nothing(names):
        del node["propertyNames"]
        return
    if not isinstance(names, dict) or node.keys() & {"properties", "patternProperties"}:
        return
    rest = node.get("additionalProperties", True)
    meant = {key: value for key, value in names.items() if (key, value) != ("type", "string")}
    if meant.keys() == {"const"}:
        meant = {"enum": [meant["const"]]}
    if meant.keys() == {"enum"} and isinstance(meant["enum"], list):
        node["properties"] = {name: rest for name in meant["enum"] if isinstance(name, str)}
    elif meant.keys() == {"pattern"}:
        node["patternProperties"] = {meant["pattern"]: rest}
    elif not meant:
        pass
    else:
        return
    del node["propertyNames"]
    if meant:
        node["additionalProperties"] = False


def _patterns_of_words(node: Node) -> None:
    """A pattern that matches a few names lists them."""
    patterns, listed = node.get("patternProperties"), node.get("properties", {})
    if not isinstance(patterns, dict) or not isinstance(listed, dict):
        return
    words = {pattern: found for pattern in patterns if (found := matched_words(pattern)) is not None}
    listed = dict(listed)
    for pattern, found in words.items():
        for name in found:
            listed[name] = {"allOf": [listed[name], patterns[pattern]]} if name in listed else patterns[pattern]
    if words:
        node["properties"] = listed
        node["patternProperties"] = {pattern: schema for pattern, schema in patterns.items() if pattern not in words}
    if not node["patternProperties"]:
        del node["patternProperties"]


def _patterns_apart(node: Node) -> None:
    """Patterns of which a name may match several, said by patterns of which it matches one."""
    patterns = node.get("patternProperties")
    if not isinstance(patterns, dict) or not 1 < len(patterns) <= MAX_PATTERNS:
        return
    found = regions(patterns)
    if found is None or all(len(which) == 1 for which in found):
        return
    schemas = list(patterns.values())
    apart = {pattern: _all_of([schemas[i] for i in sorted(which)]) for which, pattern in found.items()}
    if len(str(apart)) <= MAX_COPIED:
        node["patternProperties"] = apart


def _all_of(schemas: list[Any]) -> Any:
    distinct = [schema for i, schema in enumerate(schemas) if schema not in schemas[:i] and not _says_nothing(schema)]
    return {"allOf": distinct} if len(distinct) > 1 else distinct[0] if distinct else True


def _values_that_fit(node: Node) -> None:
    """Listed values are of the type beside them, and within the limits: then the limits say nothing more."""
    values = [node["const"]] if "const" in node else node.get("enum")
    if not isinstance(values, list):
        return
    kinds = node.get("type")
    names = [kinds] if isinstance(kinds, str) else kinds
    if isinstance(names, list) and all(isinstance(name, str) for name in names):
        values = [value for value in values if has_type(value, names)]
    limits = {key: node[key] for key in _LIMITS if _is_number(node.get(key))}
    for key, limit in limits.items():
        values = [value for value in values if _LIMITS[key](value, limit)]
        del node[key]
    if "const" not in node or not values:
        node.pop("const", None)
        node["enum"] = values


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _of_numbers(holds: Callable[[Any, Any], bool]) -> Limit:
    return lambda value, limit: not _is_number(value) or holds(value, limit)


def _of_sizes(kind: type[str] | type[list[Any]] | type[dict[str, Any]], holds: Callable[[Any, Any], bool]) -> Limit:
    return lambda value, limit: not isinstance(value, kind) or holds(len(value), limit)


_LIMITS: dict[str, Limit] = {
    "minimum": _of_numbers(operator.ge),
    "maximum": _of_numbers(operator.le),
    "exclusiveMinimum": _of_numbers(operator.gt),
    "exclusiveMaximum": _of_numbers(operator.lt),
    "minLength": _of_sizes(str, operator.ge),
    "maxLength": _of_sizes(str, operator.le),
    "minItems": _of_sizes(list, operator.ge),
    "maxItems": _of_sizes(list, operator.le),
    "minProperties": _of_sizes(dict, operator.ge),
    "maxProperties": _of_sizes(dict, operator.le),
}
"""whether a value keeps a limit"""


def _dependent_required(node: Node) -> None:
    """Requires the properties that depend on a required one."""
    depends, required = node.get("dependentRequired"), node.get("required", [])
    if not isinstance(depends, dict) or not isinstance(required, list):
        return
    if not all(isinstance(others, list) for others in depends.values()):
        return
    known = list(required)
    for name in known:  # grows while it is read: dependents may have dependents
        known += [other for other in depends.get(name, []) if other not in known]
    if all(name in known for name in depends) or all(not others for others in depends.values()):
        del node["dependentRequired"]
        if known:
            node["required"] = known


def _says_nothing(schema: Any) -> bool:
    return schema is True or schema == {}


_RULES: tuple[Callable[[Node], None], ...] = (
    _whole_counts,
    _conditions_without_effect,
    _contains_without_effect,
    _unique_without_effect,
    _unevaluated,
    _property_names,
    _patterns_of_words,
    _patterns_apart,
    _values_that_fit,
    _dependent_required,
)
