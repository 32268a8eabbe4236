"""Checks that the value of each keyword has the type that JSON Schema requires."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sglang.srt.errors import GrammarError
from sglang.srt.scheduler.grammar.schema.keywords import HOLDING, LOWER, UPPER, Holds, Node


def check_shapes(node: Node, path: str) -> None:
    """Looks at the keywords of one schema, not at the schemas inside. Raises GrammarError."""
    for key, value in node.items():
        wanted, is_right = _SHAPES.get(key, _ANYTHING)
        if not is_right(value):
            raise GrammarError(f"json_schema: {path}/{key} must be {wanted}", "json_schema")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


Shape = tuple[str, Callable[[Any], bool]]
_ANYTHING: Shape = ("anything", lambda value: True)
_LIST: Shape = ("a list", lambda value: isinstance(value, list))
_MAP: Shape = ("an object", lambda value: isinstance(value, dict))
_TEXT: Shape = ("a string", lambda value: isinstance(value, str))
_SHAPES: dict[str, Shape] = {
    **{key: _LIST for key, holds in HOLDING.items() if holds is Holds.LIST},
    **{key: _MAP for key, holds in HOLDING.items() if holds is Holds.MAP},
    **dict.fromkeys((*LOWER, *UPPER), ("a number", _is_number)),
    "items": ("a schema; a list of them stands at prefixItems since draft 2020-12", lambda value: not isinstance(value, list)),
    "enum": _LIST,
    "required": ("a list of strings", _is_names),
    "type": ("a string or a list of strings", lambda value: isinstance(value, str) or _is_names(value)),
    "pattern": _TEXT,
    "format": _TEXT,
}
