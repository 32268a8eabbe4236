"""JSON schemas, made ready for an engine: checked, said in the keywords it knows, with closed objects.

- Every keyword that constrains must be one that the engine follows; any other is refused by its path. Nothing of that kind is
  dropped.
- The schema is built anew out of parts that were checked: what a reference leads to, wherever it stands, becomes one of `$defs`, and
  what nothing leads to is left out. So an engine meets nothing unchecked.

      {"$ref": "#/x/0", "x": [{"type": "null", "note": 1}]}   ->   {"$ref": "#/$defs/0", "$defs": {"0": {"type": "null"}}}

- Objects are closed. JSON Schema lets every object have properties nobody mentioned, unless told otherwise, and a model that
  may invent properties does so without end. Output of the closed schema is valid under the schema as it was written. Where
  schemas are composed (allOf, or properties beside anyOf, $ref and the like), closing one part could contradict another: those
  stay as they are.

Keywords nobody knows are annotations, as the specification says, unless one is nearly a keyword that constrains.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterator
from typing import Any

from sglang.srt.errors import GrammarError
from sglang.srt.scheduler.grammar.base import ANY_JSON
from sglang.srt.scheduler.grammar.schema_loosening import Loose
from sglang.srt.scheduler.grammar.schema_numbers import check_numbers
from sglang.srt.scheduler.grammar.schema_one_of import Exclusion
from sglang.srt.scheduler.grammar.schema_reductions import Reductions
from sglang.srt.scheduler.grammar.schema_refs import Place, SchemaDocument
from sglang.srt.scheduler.grammar.schema_rewrites import rewrite

MAX_DEPTH = 128
"""levels of schemas inside schemas"""
MAX_NODES = 50_000
"""schemas in one, those that references lead to counted once more"""

CONSTRAINING = frozenset(
    [
        "type",
        "enum",
        "const",
        "properties",
        "required",
        "additionalProperties",
        "patternProperties",
        "propertyNames",
        "minProperties",
        "maxProperties",
        "dependentRequired",
        "dependentSchemas",
        "dependencies",
        "unevaluatedProperties",
        "items",
        "prefixItems",
        "additionalItems",
        "minItems",
        "maxItems",
        "uniqueItems",
        "contains",
        "minContains",
        "maxContains",
        "unevaluatedItems",
        "minLength",
        "maxLength",
        "pattern",
        "format",
        "minimum",
        "maximum",
        "exclusiveMinimum",
        "exclusiveMaximum",
        "multipleOf",
        "allOf",
        "anyOf",
        "oneOf",
        "not",
        "if",
        "then",
        "else",
        "$ref",
        "$dynamicRef",
        "$recursiveRef",
        "nullable",
        "divisibleBy",
        "disallow",
        "extends",
    ]
)
"""Keywords of any draft, and OpenAPI's `nullable`, that say what is valid."""

_HINTS = {
    "nullable": 'write {"type": [..., "null"]}',
    "uniqueItems": "leave it out and check the items",
    "not": "list what is allowed",
}
_OPEN = frozenset({"additionalProperties", "patternProperties", "unevaluatedProperties", "propertyNames", "minProperties"})
_COMPOSING = frozenset({"anyOf", "oneOf", "$ref", "$dynamicRef", "if", "then", "else", "dependentSchemas", "not"})
_IN_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_IN_MAPS = ("properties", "$defs", "definitions", "patternProperties", "dependentSchemas")
_DIRECT = (
    "items",
    "additionalProperties",
    "contains",
    "not",
    "if",
    "then",
    "else",
    "unevaluatedProperties",
    "unevaluatedItems",
    "propertyNames",
)

_SETTINGS = {
    "item_separator": str,
    "key_separator": str,
    "whitespace_flexible": bool,
    "whitespace_pattern": str,
    "coerce_one_of": bool,
}
"""what a schema may choose for itself under "x-guidance" """

Node = dict[str, Any]
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
    """As `prepare_schema`, of a schema that was read from JSON."""
    if schema is True:
        schema = {}
    if not isinstance(schema, dict):
        raise GrammarError("json_schema: a schema is a JSON object", "json_schema")
    try:
        return close_objects(_Preparation(schema, follows, check, loose).run())  # type: ignore[no-any-return]
    except RecursionError as error:
        raise _too_deep() from error


def _settings(chosen: Any) -> dict[str, Any]:
    """`lenient`, which would drop what the engine does not know, is none of them."""
    if not isinstance(chosen, dict) or not all(isinstance(value, _SETTINGS.get(key, _Never)) for key, value in chosen.items()):
        raise GrammarError(f"json_schema: x-guidance knows {', '.join(_SETTINGS)}", "json_schema")
    return dict(chosen)


class _Never:
    """What no value is."""


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON value")


def _no_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """JSON does not say which of two equal keys counts, so neither may be dropped."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} stands twice in one object")
    return found


def _too_deep() -> GrammarError:
    return GrammarError(f"json_schema: nested deeper than {MAX_DEPTH} levels", "json_schema")


class Renamed(str):
    """A reference to a place in the new schema."""


class _Preparation:
    """Rewrites and checks schemas, from the outside to the inside."""

    def __init__(self, root: Node, follows: frozenset[str], check: NodeCheck | None, loose: Loose | None) -> None:
        self._root = root
        self._loose = loose
        self._document = SchemaDocument(root)
        self._exclusion = Exclusion(self._document)
        self._reductions = Reductions(self._exclusion, CONSTRAINING)
        self._follows = follows
        self._check = check
        self._names: dict[Place, str] = {(): "#"}
        self._targets: list[tuple[str, str, Any, str]] = []
        """what references lead to: the new name, the path, the schema, the base around it"""
        self._copies: dict[tuple[int, str], Renamed] = {}
        """schemas of objects with a property more that is required, by identity and property"""
        self._num_nodes = 0

    def run(self) -> Node:
        out: Node = self._node(self._root, "#", "", 0)
        definitions: Node = {}
        for name, path, target, base in self._targets:  # grows while it is read
            definitions[name] = self._node(target, path, base, 0)
        if definitions:
            out["$defs"] = definitions
        if isinstance(self._root.get("$schema"), str):
            out["$schema"] = self._root["$schema"]
        if "x-guidance" in self._root:
            out["x-guidance"] = _settings(self._root["x-guidance"])
        return out

    def _node(self, node: Any, path: str, base: str, depth: int) -> Any:
        if isinstance(node, bool):
            return node
        if not isinstance(node, dict):
            raise GrammarError(f"json_schema: {path} is no schema (an object, true or false)", "json_schema")
        self._num_nodes += 1
        if depth > MAX_DEPTH:
            raise _too_deep()
        if self._num_nodes > MAX_NODES:
            raise GrammarError(f"json_schema: more than {MAX_NODES} schemas in one", "json_schema")
        out, base = dict(node), self._document.base_of(node, base)
        if self._loose is not None:
            self._loose.drop_everywhere(out, path, CONSTRAINING)
        self._reductions.reduce(out, base)
        rewrite(out)
        self._choose_one(out, path, base)
        if self._loose is not None:
            self._loose.loosen(out, path, self._check_node, CONSTRAINING)
        self._check_node(out, path)
        if "$ref" in out:
            out["$ref"] = self._reference(out["$ref"], base, path)
        out = {key: value for key, value in out.items() if key in self._follows}
        self._run_children(out, path, base, depth + 1)
        return out

    def _choose_one(self, out: Node, path: str, base: str) -> None:
        """`oneOf` as `anyOf` where that is the same, or where what is left of it is checked afterwards."""
        schemas = out.get("oneOf")
        if not isinstance(schemas, list) or not schemas:
            return
        if not self._exclusion.all_exclusive(schemas, base):
            tag = self._exclusion.tag(schemas, base)
            if tag is not None:
                schemas = [self._with_required(schema, tag, path, base) for schema in schemas]
            elif self._loose is None:
                raise GrammarError(
                    f"json_schema: the keyword at {path}/oneOf is not supported here: its schemas are not seen to exclude each other; "
                    "require a property in each of them whose values differ, or write anyOf",
                    "json_schema",
                )
            else:
                self._loose.dropped.append(f"{path}/oneOf")
        del out["oneOf"]
        if "anyOf" in out:
            out["allOf"] = [*out.get("allOf", []), {"anyOf": schemas}]
        else:
            out["anyOf"] = schemas

    def _with_required(self, schema: Any, name: str, path: str, base: str) -> Node:
        """The schema of an object, or a reference to one, with one property more that is required."""
        found = self._exclusion.object_of(schema, base)
        assert found is not None, "it was found before"
        target, around = found
        key = (id(target), name)
        if key not in self._copies:
            self._copies[key] = Renamed(f"#/$defs/{len(self._targets)}")
            copy = {**target, "required": [*target.get("required", []), name]}
            self._targets.append((str(len(self._targets)), path, copy, around))
        return {"$ref": self._copies[key]}

    def _check_node(self, out: Node, path: str) -> None:
        check_numbers(out, path)
        for key in out:
            self._check_keyword(key, path)
        if self._check is not None:
            self._check(out, path)

    def _reference(self, ref: Any, base: str, path: str) -> str:
        """The same reference, to a place in the new schema."""
        if isinstance(ref, Renamed):
            return ref
        place, target, around = self._document.resolve(ref, base, path)
        if place not in self._names:
            name = str(len(self._targets))
            self._names[place] = f"#/$defs/{name}"
            self._targets.append((name, "/".join(("#", *place)), target, around))
        return self._names[place]

    def _run_children(self, out: Node, path: str, base: str, depth: int) -> None:
        for key in _IN_LISTS:
            if isinstance(out.get(key), list):
                out[key] = [self._node(child, f"{path}/{key}/{i}", base, depth) for i, child in enumerate(out[key])]
        for key in _IN_MAPS:
            if isinstance(out.get(key), dict):
                out[key] = {name: self._node(child, f"{path}/{key}/{name}", base, depth) for name, child in out[key].items()}
        for key in _DIRECT:
            if key in out:
                out[key] = self._node(out[key], f"{path}/{key}", base, depth)

    def _check_keyword(self, key: str, path: str) -> None:
        if key in self._follows:
            return
        if key in CONSTRAINING:
            hint = f"; {_HINTS[key]}" if key in _HINTS else ""
            raise GrammarError(f"json_schema: the keyword at {path}/{key} is not supported{hint}", "json_schema")
        if key.startswith("$dynamic") or key.startswith("$recursive"):
            raise GrammarError(f"json_schema: the keyword at {path}/{key} is not supported", "json_schema")
        if self._loose is not None or key.startswith("_"):  # an annotation, as the specification says
            return
        near = difflib.get_close_matches(key.lower(), _LOWER, n=1, cutoff=0.88)
        if near:
            raise GrammarError(
                f"json_schema: unknown keyword at {path}/{key}; did you mean {_LOWER[near[0]]!r}?", "json_schema"
            )


_LOWER = {key.lower(): key for key in CONSTRAINING if len(key) > 4}


# --- closing ----------------------------------------------------------------------------------------------------------------


def close_objects(schema: Any) -> Any:
    """A schema in which objects have the properties that it lists and no others. Raises RecursionError when nested too deep."""
    if any("allOf" in node or ("properties" in node and node.keys() & _COMPOSING) for node in _nodes(schema)):
        return schema
    return _closed(schema)


def _children(node: dict[str, Any]) -> Iterator[Any]:
    for key in _IN_LISTS:
        if isinstance(node.get(key), list):
            yield from node[key]
    for key in _IN_MAPS:
        if isinstance(node.get(key), dict):
            yield from node[key].values()
    for key in _DIRECT:
        if key in node:
            yield node[key]


def _nodes(schema: Any) -> Iterator[dict[str, Any]]:
    stack = [schema]
    while stack:
        node = stack.pop()
        if isinstance(node, dict):
            yield node
            stack.extend(_children(node))


def _closed(node: Any) -> Any:
    if not isinstance(node, dict):
        return node
    out = dict(node)
    for key in _IN_LISTS:
        if isinstance(node.get(key), list):
            out[key] = [_closed(child) for child in node[key]]
    for key in _IN_MAPS:
        if isinstance(node.get(key), dict):
            out[key] = {name: _closed(child) for name, child in node[key].items()}
    for key in _DIRECT:
        if key in node:
            out[key] = _closed(node[key])
    properties = node.get("properties")
    if isinstance(properties, dict) and not node.keys() & _OPEN and set(_names(node.get("required"))) <= properties.keys():
        out["additionalProperties"] = False
    return out


def _names(required: Any) -> list[str]:
    return [name for name in required if isinstance(name, str)] if isinstance(required, list) else []
