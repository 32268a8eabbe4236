"""Expresses `oneOf` as `anyOf` with branches that exclude each other.

A value that two branches allow is invalid. Overlaps are determined on the original schema, whose objects are open:

    A {"properties": {"name": N}, "required": ["name"]}
    B {"properties": {"name": N, "email": E}, "required": ["name", "email"]}     whatever B allows, A allows too

A branch that overlaps with another is narrowed if one property makes the difference: a property that the other requires is forbidden
(A: no "email"), or a property that distinguishes them is required ({"kind": {"const": "a"}}, as Pydantic writes it for a field with a
default). A branch that another contains is left out (B). Otherwise `oneOf` is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from sglang.srt.errors import GrammarError
from sglang.srt.scheduler.grammar.schema.keywords import IN_PLACE, KINDS, LOWER, UPPER, Node, kind_of, replace_children
from sglang.srt.scheduler.grammar.schema.loosening import Loose

MAX_BRANCHES = 100
"""each is compared with each"""
MAX_DEPTH = 12
"""of schemas within, to which a comparison goes"""
MAX_COMPARED = 80_000
"""pairs of schemas, or of a value and a schema, for all oneOf of a schema"""
_ALL_TYPES = frozenset({"null", "boolean", "integer", "fraction", "string", "array", "object"})
_SIZES = {"string": ("minLength", "maxLength"), "array": ("minItems", "maxItems"), "object": ("minProperties", "maxProperties")}
_EXPANDED = frozenset({"allOf", "$ref", "$defs", "x-guidance"})
"""what `_parts` looks through, or what says nothing of values"""
_CLOSES = frozenset({"additionalProperties", "patternProperties"})


def make_exclusive(schema: Node, paths: dict[str, str], loose: Loose | None = None) -> Node:
    """`schema` without oneOf. Its references lead to its `$defs`; `paths` says where each of them stood. With `loose`, branches that
    cannot be shown to exclude each other are left to a check; otherwise raises GrammarError."""
    return _Rewriting(schema, paths, loose).run()


class _Rewriting:
    """`_narrowed`: the names of definitions of which a branch is a part, by their text; `_unwritten`: the newest of these. A branch
    that refers to a definition goes on referring to one: definitions may lead back to themselves."""

    def __init__(self, schema: Node, paths: dict[str, str], loose: Loose | None) -> None:
        self._schema = schema
        self._loose = loose
        self._paths = paths
        self._compare = Comparison(schema)
        self._narrowed: dict[str, str] = {}
        self._unwritten: list[tuple[str, Node, str]] = []

    def run(self) -> Node:
        out: Node = self._node({key: value for key, value in self._schema.items() if key != "$defs"}, "#")
        definitions = {
            name: self._node(node, self._paths.get(name, "#")) for name, node in self._schema.get("$defs", {}).items()
        }
        while self._unwritten:
            name, node, path = self._unwritten.pop()  # it may have oneOf within
            definitions[name] = self._node(node, path)
        return {**out, "$defs": definitions} if definitions else out

    def _node(self, node: Any, path: str) -> Any:
        if not isinstance(node, dict):
            return node
        out = dict(node)
        if "oneOf" in node:
            around = {key: value for key, value in node.items() if key not in ("oneOf", "$defs", "x-guidance")}
            branches = self._exclusive_or_checked(node["oneOf"], around, f"{path}/oneOf")
            if "anyOf" in node:
                del out["oneOf"]
                out["allOf"] = [*node.get("allOf", []), {"anyOf": branches}]
            else:
                out = {("anyOf" if key == "oneOf" else key): (branches if key == "oneOf" else out[key]) for key in out}
        replace_children(out, lambda place, child: self._node(child, "/".join((path, *place))))
        return out

    def _exclusive_or_checked(self, branches: list[Any], around: Node, path: str) -> list[Any]:
        try:
            return self._branches(branches, around, path)
        except GrammarError:
            if self._loose is None or self._loose.is_strict(path):
                raise
            self._loose.note(path)
            return branches

    def _branches(self, branches: list[Any], around: Node, path: str) -> list[Any]:
        if len(branches) > MAX_BRANCHES:
            raise GrammarError(f"json_schema: more than {MAX_BRANCHES} branches at {path}", "json_schema")
        out = [self._branch(i, branches, around, path) for i in range(len(branches))]
        out = [branch for branch in out if branch is not None]
        if not out:
            raise GrammarError(f"json_schema: no value satisfies exactly one branch of {path}", "json_schema")
        return out

    def _branch(self, i: int, branches: list[Any], around: Node, path: str) -> Any:
        """The rest of a branch beside the others; None if nothing is left. `around`: other schemas of the value."""
        branch = narrow = branches[i]
        for j, other in enumerate(branches):
            if i == j:
                continue
            narrow = self._compare.narrow(narrow, other, around)
            if narrow is None and self._compare.implies({"allOf": [branch, around]}, other):
                return None
            if narrow is None:
                raise GrammarError(
                    f"json_schema: the keyword at {path} is not supported here: its branches {min(i, j)} and {max(i, j)} cannot be shown "
                    "to exclude each other; require a property in each of them whose values differ, or write anyOf",
                    "json_schema",
                )
        if narrow is branch or "$ref" not in branch:
            return narrow
        text = json.dumps(narrow)
        if text not in self._narrowed:
            self._narrowed[text] = f"{len(self._narrowed)}-narrow"
            self._unwritten.append((self._narrowed[text], narrow, path))
        return {"$ref": f"#/$defs/{self._narrowed[text]}"}


class Comparison:
    """Compares schemas that refer to the definitions of `root`. What it says is certain; it may fail to see what is so."""

    def __init__(self, root: Node) -> None:
        self._targets = {"#": root, **{f"#/$defs/{name}": node for name, node in root.get("$defs", {}).items()}}
        self._num_compared = 0

    def narrow(self, node: Any, other: Any, around: Node) -> Any:
        """A schema for values that satisfy `node` and not `other`, the most natural ones, where `around` is satisfied as well; None
        when none is seen."""
        beside = {"allOf": [other, around]} if around else other
        if self.disjoint(node, beside):
            return node
        own = self._target(node)
        if not isinstance(own, dict):
            return None
        if "properties" in own and "type" not in own:
            own = {"type": "object", **own}
        for candidate in (own, *self._with_difference(own, other, around)):
            if self.disjoint(candidate, beside):
                return candidate
        return None

    def _with_difference(self, own: Node, other: Any, around: Node) -> Iterator[Node]:
        """`own`, with one property more that is required, or forbidden."""
        listed, required = own.get("properties", {}), own.get("required", [])
        theirs = {name for part in self._parts(other) for name in part.get("properties", {})}
        for name in sorted(listed, key=lambda name: name not in theirs):
            if name not in required and listed[name] is not False:
                yield {**own, "required": [*required, name]}
        needed = {name for part in (own, *self._parts(around)) for name in part.get("required", [])}
        for name in dict.fromkeys(name for part in self._parts(other) for name in part.get("required", [])):
            if name in needed:
                continue
            if around or "properties" not in own or own.keys() & (IN_PLACE | _CLOSES):
                yield {**own, "properties": {**listed, name: False}}
            else:
                left = {key: value for key, value in listed.items() if key != name}
                yield {**own, "properties": left, "additionalProperties": False}

    # --- what two schemas share -----------------------------------------------------------------------------------------------

    def disjoint(self, a: Any, b: Any, depth: int = 0) -> bool:
        """Whether no value satisfies both."""
        self._count()
        ours, theirs = list(self._parts(a)), list(self._parts(b))
        if any(part is _NOTHING for part in ours + theirs):
            return True
        if depth > MAX_DEPTH or not ours or not theirs:
            return False
        for parts, other in ((ours, b), (theirs, a)):
            for part in parts:
                values = _values(part)
                if values is not None and all(self.rejects(other, value, depth + 1) for value in values):
                    return True
                for key in ("anyOf", "oneOf"):
                    if key in part and all(self.disjoint(branch, other, depth + 1) for branch in part[key]):
                        return True
        common = _types(ours) & _types(theirs)
        return all(self._disjoint_at(kind, ours, theirs, depth) for kind in common)

    def _disjoint_at(self, kind: str, ours: list[Node], theirs: list[Node], depth: int) -> bool:
        parts = ours + theirs
        if kind in ("integer", "fraction"):
            return _no_number(parts)
        if kind in _SIZES:
            least, most = _SIZES[kind]
            if max(part.get(least, 0) for part in parts) > min(part.get(most, 2**53) for part in parts):
                return True
        if kind != "object":
            return False
        names = dict.fromkeys(name for part in parts for name in part.get("required", []))
        return any(
            self.disjoint(_property(mine, name), _property(other, name), depth + 1)
            for name in names
            for mine in ours
            for other in theirs
        )

    def rejects(self, node: Any, value: Any, depth: int = 0) -> bool:
        """Whether `value` does not satisfy the schema."""
        self._count()
        if depth > MAX_DEPTH:
            return False
        for part in self._parts(node):
            allowed = _values(part)
            if part is _NOTHING or kind_of(value) not in _types([part]):
                return True
            if allowed is not None and not any(_same(value, one) for one in allowed):
                return True
            if kind_of(value) in ("integer", "fraction") and _no_number([part, {"minimum": value, "maximum": value}]):
                return True
            if isinstance(value, str) and not part.get("minLength", 0) <= len(value) <= part.get("maxLength", len(value)):
                return True
            if isinstance(value, dict):
                if any(name not in value for name in part.get("required", [])):
                    return True
                if any(self.rejects(_property(part, name), inner, depth + 1) for name, inner in value.items()):
                    return True
            for key in ("anyOf", "oneOf"):
                if key in part and all(self.rejects(branch, value, depth + 1) for branch in part[key]):
                    return True
        return False

    # --- what contains what ---------------------------------------------------------------------------------------------------

    def implies(self, a: Any, b: Any, depth: int = 0) -> bool:
        """Whether every value of `a` satisfies `b`."""
        return self._all_imply(list(self._parts(a)), b, depth)

    def _all_imply(self, ours: list[Node], b: Any, depth: int) -> bool:
        self._count()
        if depth > MAX_DEPTH:
            return False
        return any(part is _NOTHING for part in ours) or all(self._implies_part(ours, part, depth) for part in self._parts(b))

    def _implies_part(self, ours: list[Node], part: Node, depth: int) -> bool:
        required = {name for mine in ours for name in mine.get("required", [])}
        for key, value in part.items():
            if key in ("enum", "const"):
                done = any(_all_among(_values(mine), _values(part)) for mine in ours)
            elif key == "type":
                done = _types(ours) <= _types([part])
            elif key == "required":
                done = set(value) <= required
            elif key == "properties":
                done = all(
                    any(self.implies(_property(mine, name), schema, depth + 1) for mine in ours)
                    for name, schema in value.items()
                )
            elif key == "additionalProperties":
                done = any(self._implies_others(mine, part, depth) for mine in ours)
            elif key == "items":
                done = any(
                    _equal([mine.get("items"), mine.get("prefixItems")], [value, part.get("prefixItems")]) for mine in ours
                )
            elif key in (*UPPER, "maxLength", "maxItems", "maxProperties"):
                done = any(_number(mine.get(key)) and mine[key] <= value for mine in ours)
            elif key in (*LOWER, "minLength", "minItems", "minProperties"):
                done = any(_number(mine.get(key)) and mine[key] >= value for mine in ours)
            elif key == "anyOf":
                done = any(_equal(mine.get(key), value) for mine in ours) or any(
                    self._all_imply(ours, branch, depth + 1) for branch in value
                )
            else:
                done = key in _EXPANDED or any(key in mine and _equal(mine[key], value) for mine in ours)
            if not done:
                return False
        return True

    def _implies_others(self, mine: Node, part: Node, depth: int) -> bool:
        """Whether what `mine` allows of further properties, and of those that only it lists, is what `part` allows of them."""
        wanted, listed = part["additionalProperties"], part.get("properties", {})
        allowed = [schema for name, schema in mine.get("properties", {}).items() if name not in listed]
        allowed += [*mine.get("patternProperties", {}).values(), mine.get("additionalProperties", True)]
        return all(self.implies(schema, wanted, depth + 1) for schema in allowed)

    def _count(self) -> None:
        self._num_compared += 1
        if self._num_compared > MAX_COMPARED:
            raise GrammarError("json_schema: too many branches of oneOf to compare", "json_schema")

    # --- parts ----------------------------------------------------------------------------------------------------------------

    def _target(self, node: Any) -> Any:
        """The target of a node that is nothing but a reference."""
        for _ in range(MAX_DEPTH):
            if not isinstance(node, dict) or node.keys() != {"$ref"}:
                break
            node = self._targets.get(node["$ref"], node)
        if not isinstance(node, dict):
            return node
        return {key: value for key, value in node.items() if key not in ("$defs", "x-guidance")}

    def _parts(self, node: Any, seen: set[str] | None = None) -> Iterator[Node]:
        """The schemas that a value must satisfy all, to satisfy `node`; what references lead to among them, each once."""
        seen = set() if seen is None else seen
        if node is False:
            yield _NOTHING
        if not isinstance(node, dict):
            return
        yield node
        for child in node.get("allOf", []):
            yield from self._parts(child, seen)
        if "$ref" in node and node["$ref"] not in seen:
            seen.add(node["$ref"])
            yield from self._parts(self._targets.get(node["$ref"]), seen)


_NOTHING: Node = {"enum": []}


def _types(parts: list[Node]) -> frozenset[str]:
    found = _ALL_TYPES
    for part in parts:
        kinds = part.get("type")
        names = [kinds] if isinstance(kinds, str) else kinds
        if isinstance(names, list):
            found &= {kind for name in names for kind in KINDS.get(name, (name,))}
    return found


def _values(part: Node) -> list[Any] | None:
    """All that it allows, where it lists that."""
    return [part["const"]] if "const" in part else part.get("enum")


def _all_among(values: list[Any] | None, allowed: list[Any] | None) -> bool:
    return values is not None and allowed is not None and all(any(_same(value, one) for one in allowed) for value in values)


def _property(part: Node, name: str) -> Any:
    if name in part.get("properties", {}):
        return part["properties"][name]
    return True if "patternProperties" in part else part.get("additionalProperties", True)


def _no_number(parts: list[Node]) -> bool:
    """Whether limits leave no number."""
    lower = max((part[key], key) for part in [*parts, {"minimum": float("-inf")}] for key in LOWER if _number(part.get(key)))
    upper = min((part[key], key) for part in [*parts, {"maximum": float("inf")}] for key in UPPER if _number(part.get(key)))
    if lower[0] != upper[0]:
        return bool(lower[0] > upper[0])
    return any(part.get(key) == lower[0] and _number(part.get(key)) for part in parts for key in (LOWER[1], UPPER[1]))


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _same(a: Any, b: Any) -> bool:
    """Whether two values are equal as JSON: 1 is 1.0, and true is not 1."""
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    return kind_of(a) == kind_of(b) and bool(a == b)


def _equal(a: Any, b: Any) -> bool:
    """Whether two keywords have the same value."""
    return a is b or _same(a, b)
