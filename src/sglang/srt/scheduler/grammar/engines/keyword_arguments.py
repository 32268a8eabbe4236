"""Arguments of a call written as Python: name=value, name=value. From a JSON schema of an object to a Lark grammar.

Each property is one argument, in the schema's order; those that are not required may be left out. Values are JSON, which Python reads
as literals, but for True, False and None, which models write the Python way.

    {"properties": {"city": {"type": "string"}, "warm": {"type": "boolean"}}, "required": ["city"]}

    start: a0                     city="Rome"                  city="Rome", warm=True
    a0: "city=" v0 b1             a: no argument stands before     b: one does
    b1: "" | /, ?/ "warm=" v1
"""

from __future__ import annotations

import json
import keyword
from collections.abc import Callable
from typing import Any

from sglang.srt.errors import GrammarError

_KNOWN = frozenset({"type", "properties", "required", "additionalProperties", "$defs", "definitions", "title", "description"})
MAX_ARGUMENTS = 128
"""the engine follows a chain of optional ones by recursion, on a stack that has an end"""
_WORDS = {"boolean": '"True" | "False"', "null": '"None"'}
_SETTINGS = {"whitespace_flexible": False, "lenient": False}


Prepare = Callable[[dict[str, Any]], dict[str, Any]]
"""a schema of one value, checked (json_schema.py)"""


def keyword_grammar(schema: dict[str, Any], prepare: Prepare) -> str:
    """A Lark grammar as llguidance reads it. Raises GrammarError for an object that is more than a list of properties."""
    properties, required = schema.get("properties", {}), schema.get("required", [])
    for key in schema:
        if key not in _KNOWN:
            raise GrammarError(f"structural_tag: keyword arguments cannot follow {key[:100]!r} of a schema", "structural_tag")
    if not isinstance(properties, dict) or not isinstance(required, list) or not set(map(str, required)) <= properties.keys():
        raise GrammarError("structural_tag: keyword arguments need properties, and required ones among them", "structural_tag")
    if len(properties) > MAX_ARGUMENTS:
        raise GrammarError(f"structural_tag: more than {MAX_ARGUMENTS} keyword arguments cannot be followed", "structural_tag")
    definitions: dict[str, Any] = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    lines = ["start: a0"]
    for i, (name, value) in enumerate(properties.items()):
        if not name.isidentifier() or keyword.iskeyword(name):
            raise GrammarError(f"structural_tag: {name[:100]!r} is not a name of a keyword argument", "structural_tag")
        head, optional = json.dumps(f"{name}="), name not in required
        for rule, comma in (("a", ""), ("b", "/, ?/ ")):
            skip = f" | {rule}{i + 1}" if optional else ""
            lines.append(f"{rule}{i}: {comma}{head} v{i} b{i + 1}{skip}")
        lines.append(f"v{i}: {_value(value, definitions, prepare)}")
    lines += [f'{rule}{len(properties)}: ""' for rule in "ab"]
    return "\n".join(lines)


def _value(schema: Any, definitions: dict[str, Any], prepare: Prepare) -> str:
    if isinstance(schema, dict):
        if (word := _WORDS.get(str(schema.get("type")))) is not None and not schema.keys() & {"enum", "const"}:
            return word
        ready = prepare({**schema, **definitions})
        schema = {**ready, "x-guidance": {**ready.get("x-guidance", {}), **_SETTINGS}}
    elif not isinstance(schema, bool):
        raise GrammarError("structural_tag: a keyword argument's schema is an object, true or false", "structural_tag")
    return f"%json {json.dumps(schema)}"
