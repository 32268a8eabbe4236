"""Prepares a JSON schema for an engine: checked, expressed in the keywords that it follows, with closed objects.

- Every keyword that constrains must be one that the engine follows; any other is refused by its path. Nothing of that kind is
  dropped.
- The schema is rebuilt from checked parts: the target of a reference, wherever it is, becomes one of `$defs`, and unreferenced parts
  are left out. So an engine gets nothing unchecked.

      {"$ref": "#/x/0", "x": [{"type": "null", "note": 1}]}   ->   {"$ref": "#/$defs/0", "$defs": {"0": {"type": "null"}}}

- `oneOf` becomes `anyOf` of branches that exclude each other (schema/exclusive.py).
- Objects are closed (schema/closing.py).

Invariant of each step: a value that is valid afterwards is valid under the original schema.

Unknown keywords are annotations, as the specification says, unless one is close to a keyword that constrains (a misspelling).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from sglang.common.suggest import nearest
from sglang.srt.errors import GrammarError
from sglang.srt.scheduler.grammar.engines.base import ANY_JSON
from sglang.srt.scheduler.grammar.schema.closing import close_objects
from sglang.srt.scheduler.grammar.schema.drafts import read_draft
from sglang.srt.scheduler.grammar.schema.exclusive import make_exclusive
from sglang.srt.scheduler.grammar.schema.keywords import CONSTRAINING, Node, Place, check_shapes, replace_children
from sglang.srt.scheduler.grammar.schema.loosening import FollowedInPartError, Loose
from sglang.srt.scheduler.grammar.schema.numbers import check_numbers
from sglang.srt.scheduler.grammar.schema.refs import SchemaDocument, Scope
from sglang.srt.scheduler.grammar.schema.rewriting.reductions import Reductions
from sglang.srt.scheduler.grammar.schema.rewriting.rewrites import rewrite

MAX_DEPTH = 128
"""levels of schemas inside schemas"""
MAX_NODES = 50_000
"""schemas in one, those that references lead to counted once more"""

_HINTS = {
    "nullable": 'write {"type": [..., "null"]}',
    "uniqueItems": "leave it out and check the items",
    "not": "list what is allowed",
}
_WHITE = re.compile(r"(?:(?:\[(?:[ \t\n\r]|\\[ntr])+\]|[ \t\n\r]|\\[ntr])(?:[*+?]|\{\d+(?:,\d*)?\})?)*")
"""expressions of what JSON takes for white space"""

NodeCheck = Callable[[Node, str], None]
"""(schema object, its path): raises GrammarError for combinations that the engine does not follow"""


def prepare_schema(text: str, follows: frozenset[str], check: NodeCheck | None = None, loose: Loose | None = None) -> Node:
    """The schema that `text` is, for an engine that `follows` these keywords. With `loose`, what it does not follow is left out and
    noted there. Raises GrammarError with the path."""
    try:
        schema = {} if text == ANY_JSON else json.loads(text, parse_constant=_no_constant, object_pairs_hook=_no_doubles)
    except ValueError as error:
        raise GrammarError(f"json_schema: not valid JSON: {error}", "json_schema") from error
    except RecursionError as error:
        raise _too_deep() from error
    return prepare_value(schema, follows, check, loose)


def prepare_value(schema: Any, follows: frozenset[str], check: NodeCheck | None = None, loose: Loose | None = None) -> Node:
    """Like `prepare_schema`, for a schema that was read from JSON."""
    if schema is True:
        schema = {}
    if not isinstance(schema, dict):
        raise GrammarError("json_schema: a schema is a JSON object", "json_schema")
    try:
        preparation = _Preparation(schema, follows, check, loose)
        return close_objects(make_exclusive(preparation.run(), preparation.paths, loose))  # type: ignore[no-any-return]
    except RecursionError as error:
        raise _too_deep() from error


def _settings(chosen: Any) -> dict[str, Any]:
    """Reads a schema's own settings under "x-guidance": white space. Whatever else an engine knows there (to drop what it does
    not follow, to take oneOf for anyOf, other signs between items) lets invalid answers through."""
    settings = dict(chosen) if isinstance(chosen, dict) else {"": None}
    flexible, pattern = settings.pop("whitespace_flexible", True), settings.pop("whitespace_pattern", "")
    if settings or not isinstance(flexible, bool) or not isinstance(pattern, str) or not _WHITE.fullmatch(pattern):
        raise GrammarError(
            "json_schema: x-guidance knows whitespace_flexible (true or false) and whitespace_pattern (of blanks, \\t, \\n, \\r)",
            "json_schema",
        )
    return dict(chosen)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON value")


def _no_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """JSON does not say which of two equal keys counts, so neither may be dropped."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} occurs twice in one object")
    return found


def _too_deep() -> GrammarError:
    return GrammarError(f"json_schema: nested deeper than {MAX_DEPTH} levels", "json_schema")


class _Preparation:
    """Rewrites and checks schemas, from the outside to the inside."""

    def __init__(self, root: Node, follows: frozenset[str], check: NodeCheck | None, loose: Loose | None) -> None:
        self._root = root
        self._loose = loose
        self._document = SchemaDocument(root)
        self._reductions = Reductions(self._document)
        self._follows = follows
        self._check = check
        self._names: dict[Place, str] = {(): "#"}
        self._targets: list[tuple[str, str, Any, Scope]] = []
        """what references lead to: the new name, the path, the schema, what holds around it"""
        self._num_nodes = 0

    @property
    def paths(self) -> dict[str, str]:
        """The original place of each of `$defs`."""
        return {name: path for name, path, _, _ in self._targets}

    def run(self) -> Node:
        out: Node = self._node(self._root, "#", Scope(), 0)
        definitions: Node = {}
        for name, path, target, scope in self._targets:  # grows while it is read
            definitions[name] = self._node(target, path, scope, 0)
        if definitions:
            out["$defs"] = definitions
        if "x-guidance" in self._root:
            out["x-guidance"] = _settings(self._root["x-guidance"])
        return out

    def _node(self, node: Any, path: str, scope: Scope, depth: int) -> Any:
        if isinstance(node, bool):
            return node
        if not isinstance(node, dict):
            raise GrammarError(f"json_schema: {path} is not a schema (an object, true or false)", "json_schema")
        self._num_nodes += 1
        if depth > MAX_DEPTH:
            raise _too_deep()
        if self._num_nodes > MAX_NODES:
            raise GrammarError(f"json_schema: more than {MAX_NODES} schemas in one", "json_schema")
        scope = self._document.scope_of(node, scope)
        out = read_draft(node, scope.draft)
        if self._loose is not None:
            out = self._loose.replaced(path) or out
            self._loose.leave_out(out, path)
        self._document.make_static(out, scope)
        self._reductions.reduce(out, scope)
        rewrite(out)
        check_shapes({key: value for key, value in out.items() if key in self._follows}, path)
        if self._loose is not None:
            self._loose.loosen(out, path, self._follows, self._check_node)
        try:
            self._check_node(out, path)
        except FollowedInPartError:
            if self._loose is None or self._loose.is_strict(path):
                raise
        if "$ref" in out:
            out["$ref"] = self._reference(out["$ref"], scope, path)
        out = {key: value for key, value in out.items() if key in self._follows}
        replace_children(out, lambda place, child: self._node(child, "/".join((path, *place)), scope, depth + 1))
        return out

    def _check_node(self, out: Node, path: str) -> None:
        check_numbers(out, path)
        for key in out:
            self._check_keyword(key, path)
        if self._check is not None:
            self._check(out, path)

    def _reference(self, ref: Any, scope: Scope, path: str) -> str:
        """The same reference, to a place in the new schema."""
        place, target, around = self._document.resolve(ref, scope, path)
        if place not in self._names:
            name = str(len(self._targets))
            self._names[place] = f"#/$defs/{name}"
            self._targets.append((name, "/".join(("#", *place)), target, around))
        return self._names[place]

    def _check_keyword(self, key: str, path: str) -> None:
        if key in self._follows:
            return
        if key in CONSTRAINING:
            hint = f"; {_HINTS[key]}" if key in _HINTS else ""
            raise GrammarError(f"json_schema: the keyword at {path}/{key} is not supported{hint}", "json_schema")
        is_loose = self._loose is not None and not self._loose.is_strict(path)
        if is_loose or key.startswith("_"):  # an annotation, as the specification says
            return
        near = None if len(key) > MAX_KEYWORD else nearest(key.lower(), _LOWER, cutoff=0.88)
        if near is not None:
            raise GrammarError(f"json_schema: unknown keyword at {path}/{key}; did you mean {_LOWER[near]!r}?", "json_schema")


_LOWER = {key.lower(): key for key in CONSTRAINING if len(key) > 4}
MAX_KEYWORD = 2 * max(map(len, _LOWER))
"""Longer names are nearly none of them; comparing takes time by their length."""
