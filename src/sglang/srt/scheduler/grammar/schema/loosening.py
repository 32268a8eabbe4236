"""Leaves out of a schema what decoding cannot follow, and notes it: the whole answer is then checked against the original.

    prepare, compile --refused by a rule of ours--> without the smallest set of keywords of that schema object that suffices
                     --refused by the engine------> without all possible causes, then with as many of them as compile
                     otherwise refused

Only keywords that make a schema stricter are left out, so that every valid answer can still be generated. Dangling references, schemas
that are too large, and schemas that cannot be satisfied stay refused: no check would help.

A schema may consist of parts, such as the tools of a request, each marked as strict or not. Nothing is left out of a strict part; a part
that is not strict and cannot be followed at all becomes any object.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

from sglang.srt.errors import GrammarError
from sglang.srt.scheduler.grammar.schema.keywords import CONSTRAINING, LOWER, UPPER, Node
from sglang.srt.scheduler.grammar.schema.numbers import TOGETHER

Check = Callable[[Node, str], None]
"""(a schema object, its path): raises GrammarError for what cannot be followed"""
T = TypeVar("T")

MAX_DROPPED = 2000
MAX_BUILDS = 24
"""compilations that find out what an engine fails at"""
MAX_BUILT = 1 << 20
"""characters of schema in all of them"""
MAX_TOGETHER = 3
"""keywords of one schema object, of which all combinations are tried"""
ANY_OBJECT: Node = {"type": "object"}

BESIDE = {"if": ("then", "else"), "contains": ("minContains", "maxContains")}
"""keywords that say nothing without another one"""
SIBLINGS = "$ref"
"""stands for all keywords beside it"""
PATTERNS = "patternProperties"
"""of which each is left out by itself"""
REMEDIES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("cannot accept any value", ("dependentRequired", "dependencies")),
    ("min/maxProperties only supported", ("minProperties", "maxProperties")),
    ("circular references with sibling keys", (SIBLINGS,)),
    ("circular references with sibling keys", (PATTERNS,)),
    ("regex parse error", ("pattern",)),
    ("lookarounds", ("pattern",)),
    ("regex parse error", (PATTERNS,)),
    ("lookarounds", (PATTERNS,)),
    ("control characters", ("pattern",)),
    ("control characters", (PATTERNS,)),
    ("patternPropert", (PATTERNS,)),
    (TOGETHER, ("multipleOf",)),
)
"""what an engine complains of without saying where, and the keywords that may be to blame"""
_BLAMED = frozenset(key for _, keys in REMEDIES for key in keys)
_SAYS_MUCH = (
    ("type",),
    ("properties", "items", "prefixItems", "$ref", "enum", "const"),
    ("required", "anyOf", "oneOf", "allOf"),
    ("additionalProperties", PATTERNS, "pattern"),
    ("format", "minLength", "maxLength", "minItems", "maxItems", *LOWER, *UPPER),
)
"""keywords, those first that are left out last"""
_WEIGHTS = {key: len(_SAYS_MUCH) - i for i, keys in enumerate(_SAYS_MUCH) for key in keys}


class FollowedInPartError(GrammarError):
    """An engine takes `keyword`, and lets some answers through that are not valid."""

    def __init__(self, message: str, keyword: str) -> None:
        super().__init__(message, "json_schema")
        self.keyword = keyword


class Loose:
    """The omitted parts of one schema. `parts`: by path, whether what stands there must be followed as a whole. `left_out`:
    paths of keywords, or of parts, that an engine failed at. `met`: the keyword at each path that may be one of these.
    `dropped`: paths of what was left out."""

    def __init__(self, parts: Mapping[str, bool] | None = None, left_out: frozenset[str] = frozenset()) -> None:
        self._parts = parts or {}
        self._strict = tuple(path for path, is_strict in self._parts.items() if is_strict)
        self.left_out = left_out
        self.met: dict[str, str] = {}
        self.dropped: list[str] = []

    def is_strict(self, path: str) -> bool:
        """Whether nothing may be left out there."""
        return any(path == part or path.startswith(f"{part}/") for part in self._strict)

    def replaced(self, path: str) -> Node | None:
        """The replacement of a part that cannot be compiled; None for all others."""
        if path not in self._parts or path not in self.left_out:
            return None
        self.note(path)
        return dict(ANY_OBJECT)

    def leave_out(self, node: Node, path: str) -> None:
        """Takes out of `node` what an engine failed at."""
        if self.is_strict(path):
            return
        for key in sorted(_BLAMED & node.keys()):
            if key == PATTERNS and isinstance(node[key], dict):
                self._leave_patterns_out(node, path)
            elif self._meet(f"{path}/{key}", key):
                for name in sorted(node.keys() & CONSTRAINING - {SIBLINGS}) if key == SIBLINGS else (key,):
                    self._drop(node, name, path)

    def _leave_patterns_out(self, node: Node, path: str) -> None:
        patterns = node[PATTERNS]
        out = {pattern for pattern in patterns if self._meet(f"{path}/{PATTERNS}/{pattern}", PATTERNS)}
        for pattern in sorted(out):
            self.note(f"{path}/{PATTERNS}/{pattern}")
        if out:
            node[PATTERNS] = {pattern: schema for pattern, schema in patterns.items() if pattern not in out}
            node["additionalProperties"] = True  # to forbid names that the pattern allows would make the schema stricter

    def _meet(self, place: str, key: str) -> bool:
        self.met[place] = key
        return place in self.left_out

    def loosen(self, node: Node, path: str, follows: frozenset[str], check: Check) -> None:
        """Takes out of `node` the keywords that are not among those an engine `follows`, and the fewest others without which `check`
        does not refuse it."""
        if self.is_strict(path):
            return
        for key in [key for key in node if key in CONSTRAINING and key not in follows]:
            if key in node:
                self._drop(node, key, path)
        if _takes(check, node, path) or self._follow_in_part(node, path, check):
            return
        self._drop_values(node, path, check)
        if _takes(check, node, path):
            return
        for keys in _choices(node):
            if _takes(check, {key: value for key, value in node.items() if key not in keys}, path):
                for key in keys:
                    self._drop(node, key, path)
                return

    def _follow_in_part(self, node: Node, path: str, check: Check) -> bool:
        """Whether the engine keeps what it follows too loosely: it is checked besides."""
        try:
            check(dict(node), path)
        except FollowedInPartError as error:
            self.note(f"{path}/{error.keyword}")
            return True
        except GrammarError:
            pass
        return False

    def _drop_values(self, node: Node, path: str, check: Check) -> None:
        """Some of the listed values."""
        values = node.get("enum")
        if not isinstance(values, list):
            return
        fine = [_takes(check, {"enum": [value]}, path) for value in values]
        if any(fine):
            node["enum"] = [value for value, is_fine in zip(values, fine, strict=True) if is_fine]
            for i, is_fine in enumerate(fine):
                if not is_fine:
                    self.note(f"{path}/enum/{i}")

    def _drop(self, node: Node, key: str, path: str) -> None:
        if key not in node:  # it went with another one
            return
        del node[key]
        for other in BESIDE.get(key, ()):
            node.pop(other, None)
        self.note(f"{path}/{key}")

    def note(self, path: str) -> None:
        """Notes a keyword that is left to the check at the end. Raises GrammarError for too many of them: finding them takes
        time."""
        self.dropped.append(path)
        if len(self.dropped) > MAX_DROPPED:
            raise GrammarError(f"json_schema: more than {MAX_DROPPED} keywords cannot be followed", "json_schema")


def _choices(node: Node) -> Iterator[tuple[str, ...]]:
    """Keywords to leave out: few before many, those that say little before those that say much, and at last all."""
    keys = [key for key in node if key in CONSTRAINING]
    for num in range(1, min(MAX_TOGETHER, len(keys)) + 1):
        yield from sorted(itertools.combinations(keys, num), key=lambda some: sum(_WEIGHTS.get(key, 0) for key in some))
    yield tuple(keys)


def _takes(check: Check, node: Node, path: str) -> bool:
    try:
        check(dict(node), path)
    except GrammarError:
        return False
    return True


# --- what an engine fails at ------------------------------------------------------------------------------------------------


def compile_loosely(build: Callable[[Loose], T], size: int, parts: Mapping[str, bool] | None = None) -> T:
    """`build` with as little left out as will do. `size`: characters of the schema; large ones are built less often. Raises
    GrammarError, which names the part of `parts` that is at fault."""
    parts = parts or {}
    out: frozenset[str] = frozenset()
    most = min(MAX_BUILDS, MAX_BUILT // max(size, 1))
    while True:
        loose = Loose(parts, out)
        try:
            built = build(loose)
        except GrammarError as error:
            more = _suspects(str(error), loose, parts) - out
            if not more:
                raise _naming_part(error, build, parts, out) from error
            out |= more
        else:
            return _with_fewest(built, build, parts, out, most)


def _suspects(message: str, loose: Loose, parts: Mapping[str, bool]) -> frozenset[str]:
    """All that may be to blame for an engine's complaint."""
    for sign, keys in REMEDIES:
        found = frozenset(place for place, key in loose.met.items() if key in keys)
        if sign in message and not found <= loose.left_out:
            return found
    return frozenset(path for path, is_strict in parts.items() if not is_strict)


def _with_fewest(built: T, build: Callable[[Loose], T], parts: Mapping[str, bool], out: frozenset[str], most: int) -> T:
    """Puts back of what was left out, half by half, what the engine can follow after all."""
    if len(out) < 2:
        return built
    groups, num_builds = _halves(sorted(out)), 0
    while groups and num_builds < most:
        group, num_builds = groups.pop(), num_builds + 1
        try:
            built = build(Loose(parts, out.difference(group)))
        except GrammarError:
            groups += _halves(group)
        else:
            out = out.difference(group)
    return built


def _halves(group: list[str]) -> list[list[str]]:
    half = len(group) // 2
    return [group[half:], group[:half]] if half else []


def _naming_part(
    error: GrammarError, build: Callable[[Loose], T], parts: Mapping[str, bool], out: frozenset[str]
) -> GrammarError:
    """The same error with the path of the one part without which there would be none."""
    for path in [] if any(part in str(error) for part in parts) else list(parts)[:MAX_BUILDS]:
        try:
            build(Loose(parts, out | {path}))
        except GrammarError:
            continue
        kind, _, why = str(error).partition(": ")
        return GrammarError(f"{kind}: {path}: {why}", kind)
    return error
