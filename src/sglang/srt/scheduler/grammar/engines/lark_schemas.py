"""JSON schemas in a Lark grammar: `%json {...}`.

Every embedded schema is replaced by its prepared form (json_schema.py), wherever it is in the text: an engine that parses a grammar
differently than we do still gets no unprepared schema.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from sglang.srt.errors import GrammarError

_SIGN = re.compile(r"%json\s*")


def prepare_lark(text: str, prepare: Callable[[Any], dict[str, Any]]) -> str:
    """The grammar with its schemas prepared. Raises GrammarError."""
    decoder = json.JSONDecoder(parse_constant=_no_constant)
    parts: list[str] = []
    at = 0
    while (found := _SIGN.search(text, at)) is not None:
        try:
            schema, end = decoder.raw_decode(text, found.end())
        except (ValueError, RecursionError) as error:
            raise GrammarError(f"ebnf: no JSON schema stands behind %json: {error}", "ebnf") from error
        try:
            ready = prepare(schema)
        except GrammarError as error:
            raise GrammarError(str(error).replace("json_schema:", "ebnf: %json:", 1), "ebnf") from error
        parts += [text[at : found.start()], "%json ", json.dumps(ready)]
        at = end
    return "".join([*parts, text[at:]])


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON value")
