"""Finds the draft of JSON Schema that a schema declares. Decoding and the check of an answer use the same draft."""

from __future__ import annotations

import re
from typing import Any

ANY = 9999
"""where none is declared: the newest, and what older ones had in its place"""
NEWEST = 2020
_URI = re.compile(r"https?://json-schema\.org/(?:draft-0([3-7])|draft/(2019-09|2020-12))/(?:hyper-)?schema#?")


def draft_of(schema: Any, around: int = ANY) -> int:
    """3, 4, 6, 7, 2019 or 2020, as `$schema` says; where it does not, what holds `around`. Draft 5 changed nothing about values."""
    declared = schema.get("$schema") if isinstance(schema, dict) else None
    found = _URI.fullmatch(declared) if isinstance(declared, str) else None
    if found is None:
        return around
    number = int(found[1] or found[2][:4])
    return 4 if number == 5 else number


def identifier_key(draft: int) -> str:
    """The keyword that names a schema."""
    return "id" if draft <= 4 else "$id"


def open_to_keywords(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema beside whose keywords others can be put: until draft 7 none counts beside a `$ref`, which therefore moves into an allOf."""
    draft = draft_of(schema)
    if draft > 7 or "$ref" not in schema:
        return schema
    rest = {key: value for key, value in schema.items() if key != "$ref"}
    return {**rest, "extends" if draft == 3 else "allOf": [{"$ref": schema["$ref"]}]}
