"""Where references of a JSON schema lead: JSON pointers, anchors and identifiers, within the schema.

    {"$ref": "#/a%20b/0/c~1d"}    a place by its path: percent signs and ~0, ~1 are undone, lists are counted from 0
    {"$ref": "#name"}             the schema with "$anchor": "name" in the same resource
    {"$ref": "other.json#..."}    the same in the part whose "$id" that is, relative to the "$id" around

What lies outside of the schema is not fetched: such references are refused.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import unquote, urljoin

from sglang.srt.errors import GrammarError
from sglang.srt.scheduler.grammar.schema.keywords import Place, children

_OLD_DRAFT = re.compile(r"/draft-0[3-7]/")
"""in which nothing counts that stands beside a reference"""
ANCHORS = ("$anchor", "$dynamicAnchor")


class SchemaDocument:
    """A schema as it was written, with an index of its identifiers and anchors."""

    def __init__(self, root: Any) -> None:
        self._root = root
        draft = root.get("$schema") if isinstance(root, dict) else None
        self._refs_stand_alone = isinstance(draft, str) and _OLD_DRAFT.search(draft) is not None
        self._resources: dict[str, Place] = {"": ()}
        self._anchors: dict[tuple[str, str], Place] = {}
        self._index()

    def base_of(self, node: Any, base: str) -> str:
        """The identifier that references in `node` are relative to, which stands where `base` was."""
        named = node.get("$id") if isinstance(node, dict) else None
        if not isinstance(named, str) or named.startswith("#") or (self._refs_stand_alone and "$ref" in node):
            return base
        try:
            return urljoin(base, named.partition("#")[0])
        except ValueError:  # no address: nothing can refer to it
            return base

    def resolve(self, ref: Any, base: str, path: str) -> tuple[Place, Any, str]:
        """Where a reference at `path` leads: the place, what stands there, and the base around it. Raises GrammarError."""
        if not isinstance(ref, str):
            raise _lost(ref, path)
        try:
            joined = base + ref if ref.startswith("#") else urljoin(base, ref)
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

    def _look_up(self, place: Place, ref: str, path: str) -> tuple[Any, str]:
        node, base = self._root, ""
        for step in place:
            base = self.base_of(node, base)
            if isinstance(node, dict) and step in node:
                node = node[step]
            elif isinstance(node, list) and step.isascii() and step.isdigit() and len(step) < 7 and int(step) < len(node):
                node = node[int(step)]
            else:
                raise _lost(ref, path)
        return node, base

    def _index(self) -> None:
        stack: list[tuple[Any, Place, str]] = [(self._root, (), "")]
        while stack:
            node, place, base = stack.pop()
            if not isinstance(node, dict):
                continue
            base = self.base_of(node, base)
            if base not in self._resources:
                self._resources[base] = place
            for key in ANCHORS:
                if isinstance(node.get(key), str):
                    self._anchors.setdefault((base, node[key]), place)
            named = node.get("$id")
            if isinstance(named, str) and named.startswith("#"):  # drafts 6 and 7
                self._anchors.setdefault((base, named[1:]), place)
            stack += [(child, (*place, *steps), base) for steps, child in children(node)]


def _lost(ref: Any, path: str) -> GrammarError:
    return GrammarError(
        f"json_schema: the reference {ref!r:.100} at {path}/$ref leads to nothing in this schema", "json_schema"
    )
