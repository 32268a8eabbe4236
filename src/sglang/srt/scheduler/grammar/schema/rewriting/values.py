"""Collects the values that a schema lists, through its references."""

from __future__ import annotations

import json
from typing import Any

from sglang.srt.errors import GrammarError
from sglang.srt.scheduler.grammar.schema.drafts import read_draft
from sglang.srt.scheduler.grammar.schema.keywords import CONSTRAINING, has_type
from sglang.srt.scheduler.grammar.schema.refs import SchemaDocument, Scope

MAX_STEPS = 12
"""of references one after the other"""
_KNOWN: dict[str, list[Any]] = {"boolean": [True, False], "null": [None]}


def named_values(document: SchemaDocument, schema: Any, scope: Scope) -> list[Any] | None:
    """All values of a schema, in its order, each once; None where it does not list them, or says more of them."""
    for _ in range(MAX_STEPS):
        if not isinstance(schema, dict):
            return None
        scope = document.scope_of(schema, scope)
        schema = read_draft(schema, scope.draft)
        said = schema.keys() & CONSTRAINING
        if said == {"type"} and isinstance(schema["type"], str):
            return _KNOWN.get(schema["type"])
        if said <= {"type", "enum", "const"}:
            return _listed(schema)
        if said != {"$ref"}:
            return None
        try:
            _, schema, scope = document.resolve(schema["$ref"], scope, "#")
        except GrammarError:  # resolving the reference raises it again
            return None
    return None


def _listed(schema: dict[str, Any]) -> list[Any] | None:
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    kinds = schema.get("type")
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if not isinstance(values, list) or {"enum", "const"} <= schema.keys():
        return None
    if isinstance(kinds, list):
        values = [value for value in values if has_type(value, [kind for kind in kinds if isinstance(kind, str)])]
    return list({_written(value): value for value in reversed(values)}.values())[::-1]


def _written(value: Any) -> str:
    """Equal for equal values of JSON: 1 and 1.0 are, 1 and true are not."""
    return json.dumps(_whole(value), sort_keys=True)


def _whole(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _whole(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_whole(part) for part in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
