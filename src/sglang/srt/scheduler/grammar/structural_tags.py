"""Parses structural tags: free text in which every trigger starts a structure.

{"structures": [{"begin", "schema", "end"}], "triggers": [...]}, possibly with the "type" of a response_format
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sglang.srt.errors import GrammarError

_KEYS = frozenset({"type", "structures", "triggers"})
_STRUCTURE_KEYS = frozenset({"begin", "schema", "end", "keywords"})


@dataclass(frozen=True)
class Structure:
    """`trigger` begins `begin`. `keywords`: what stands between `begin` and `end` are keyword arguments instead of JSON."""

    trigger: str
    begin: str
    schema: dict[str, Any]
    end: str
    keywords: bool


@dataclass(frozen=True)
class StructuralTag:
    structures: list[Structure]
    triggers: list[str]


def read_structural_tag(text: str) -> StructuralTag:
    """Raises ValueError for another form, and for keys that have no effect."""
    value = json.loads(text)
    if not isinstance(value, dict) or not isinstance(value.get("structures"), list) or not value["structures"]:
        raise ValueError("expected an object with a non-empty list 'structures' and a list 'triggers'")
    _check_keys(value, _KEYS, "a structural tag")
    triggers = value.get("triggers")
    if not isinstance(triggers, list) or not all(isinstance(t, str) and t for t in triggers):
        raise ValueError("'triggers' must be a list of strings")
    return StructuralTag([_structure(structure, triggers) for structure in value["structures"]], triggers)


def blame(text: str, error: GrammarError, compile_schema: Callable[[str], object]) -> GrammarError:
    """`error`, of tags that were refused, said of the first structure whose schema does not compile by itself either."""
    try:
        structures = read_structural_tag(text).structures
    except ValueError:
        return error
    for structure in structures:
        try:
            compile_schema(json.dumps(structure.schema))
        except GrammarError as own:
            why = str(own).removeprefix("json_schema: ")
            return GrammarError(f"structural_tag: the schema behind {structure.begin[:200]!r}: {why}", "structural_tag")
    return error


def _structure(structure: Any, triggers: list[str]) -> Structure:
    if not isinstance(structure, dict) or not isinstance(structure.get("begin"), str):
        raise ValueError("every structure needs a string 'begin'")
    _check_keys(structure, _STRUCTURE_KEYS, "a structure")
    begin, end, schema = structure["begin"], structure.get("end", ""), structure.get("schema", {})
    if not isinstance(end, str) or not isinstance(schema, dict):
        raise ValueError("a structure's 'end' is a string and its 'schema' an object")
    trigger = next((t for t in triggers if begin.startswith(t)), None)
    if trigger is None:
        raise ValueError(f"no trigger begins {begin!r}")
    return Structure(trigger, begin, schema, end, structure.get("keywords") is True)


def _check_keys(value: dict[str, Any], known: frozenset[str], what: str) -> None:
    for key in value:
        if key not in known:
            raise ValueError(f"{what} has the unknown key {key[:100]!r}")
