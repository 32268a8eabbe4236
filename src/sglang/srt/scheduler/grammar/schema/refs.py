"""Resolves references of a JSON schema: JSON pointers, anchors and identifiers, within the schema.

    {"$ref": "#/a%20b/0/c~1d"}    a JSON pointer: percent encoding and ~0, ~1 are decoded, list indices begin at 0
    {"$ref": "#name"}             the schema with "$anchor": "name" in the same resource
    {"$ref": "other.json#..."}    the same in the part whose "$id" that is, relative to the "$id" around

References outside the schema are refused: nothing is fetched. Older drafts have other keywords for names (drafts.py).
"""

from __future__ import annotations

from typing import Any, NamedTuple
from urllib.parse import unquote, urljoin

from sglang.srt.errors import GrammarError
from sglang.srt.json_drafts import ANY, draft_of, identifier_key
from sglang.srt.scheduler.grammar.schema.drafts import counts
from sglang.srt.scheduler.grammar.schema.keywords import Place, children

ANCHORS = ("$anchor", "$dynamicAnchor")
_NAMING = frozenset({"$schema", "$id", "id"})


class Scope(NamedTuple):
    """The context of the schemas inside one: the identifier that references are relative to, and the draft (json_drafts.py)."""

    base: str = ""
    draft: int = ANY


class SchemaDocument:
    """A schema as it was written, with an index of its identifiers and anchors."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self._resources: dict[str, Place] = {"": ()}
        self._anchors: dict[tuple[str, str], Place] = {}
        self._dynamic: dict[str, list[str]] = {}
        """by name, the resources that have such an anchor"""
        self._index()

    def scope_of(self, node: Any, around: Scope) -> Scope:
        """The scope inside `node`, which stands in the scope `around`."""
        if not isinstance(node, dict) or not node.keys() & _NAMING:
            return around
        draft = draft_of(node, around.draft)
        named = node.get(identifier_key(draft))
        if not isinstance(named, str) or named.startswith("#") or (draft <= 7 and "$ref" in node):
            return Scope(around.base, draft)
        try:
            return Scope(urljoin(around.base, named.partition("#")[0]), draft)
        except ValueError:  # no address: nothing can refer to it
            return Scope(around.base, draft)

    def resolve(self, ref: Any, scope: Scope, path: str) -> tuple[Place, Any, Scope]:
        """Resolves a reference at `path`: its target's place, value and scope. Raises GrammarError."""
        if not isinstance(ref, str):
            raise _lost(ref, path)
        try:
            joined = scope.base + ref if ref.startswith("#") else urljoin(scope.base, ref)
            uri, _, fragment = joined.partition("#")
            name = unquote(fragment, errors="strict")
        except ValueError as error:
            raise _lost(ref, path) from error
        start = self._resources.get(uri)
        if name and not name.startswith("/"):
            place = self._anchors.get((uri, name))
        else:
            steps = tuple(step.replace("~1", "/").replace("~0", "~") for step in name.split("/")[1:])
            place = None if start is None else (*start, *steps)
        if place is None:
            raise _lost(ref, path)
        return (place, *self._look_up(place, ref, path))

    def make_static(self, node: Any, scope: Scope) -> None:
        """Turns `$dynamicRef` and `$recursiveRef` of a schema object into `$ref`, in place, where they lead to the same wherever they are
        met: the schema as a whole is the outermost one that may have such an anchor."""
        for key in ("$dynamicRef", "$recursiveRef"):
            ref = node.get(key)
            target = self._static_target(ref, scope) if isinstance(ref, str) and "$ref" not in node else None
            if target is not None:
                node["$ref"] = target
                del node[key]

    def _static_target(self, ref: str, scope: Scope) -> str | None:
        try:
            base, _, name = (scope.base + ref if ref.startswith("#") else urljoin(scope.base, ref)).partition("#")
        except ValueError:
            return None
        having = self._dynamic.get(name, [])
        if base not in having:  # a reference like any other
            return ref
        outermost = self.scope_of(self._root, Scope()).base
        if outermost not in having and having != [base]:
            return None
        base = outermost if outermost in having else base
        return f"{base}#{name}" if base or not scope.base else None

    def _look_up(self, place: Place, ref: str, path: str) -> tuple[Any, Scope]:
        node, scope = self._root, Scope()
        for step in place:
            scope = self.scope_of(node, scope)
            if isinstance(node, dict) and step in node:
                node = node[step]
            elif isinstance(node, list) and step.isascii() and step.isdigit() and len(step) < 7 and int(step) < len(node):
                node = node[int(step)]
            else:
                raise _lost(ref, path)
        return node, scope

    def _index(self) -> None:
        stack: list[tuple[Any, Place, Scope]] = [(self._root, (), Scope())]
        while stack:
            node, place, scope = stack.pop()
            if not isinstance(node, dict):
                continue
            base, draft = scope = self.scope_of(node, scope)
            if base not in self._resources:
                self._resources[base] = place
            for key in ANCHORS:
                if isinstance(node.get(key), str) and counts(key, draft):
                    self._anchors.setdefault((base, node[key]), place)
            if isinstance(node.get("$dynamicAnchor"), str) and counts("$dynamicAnchor", draft):
                self._dynamic.setdefault(node["$dynamicAnchor"], []).append(base)
            if node.get("$recursiveAnchor") is True and counts("$recursiveAnchor", draft):
                self._dynamic.setdefault("", []).append(base)
            named = node.get(identifier_key(draft))
            if isinstance(named, str) and named.startswith("#") and (draft <= 7 or draft == ANY):
                self._anchors.setdefault((base, named[1:]), place)
            stack += [(child, (*place, *steps), scope) for steps, child in children(node) if counts(steps[0], draft)]


def _lost(ref: Any, path: str) -> GrammarError:
    return GrammarError(
        f"json_schema: the reference {ref!r:.100} at {path}/$ref leads to nothing in this schema", "json_schema"
    )
