"""Old import path of sglang.lang.typed.grammar."""

from __future__ import annotations

from sglang.lang.typed.grammar import (
    Piece,
    capture,
    compile_grammar,
    concat,
    json_schema,
    literal,
    one_of,
    optional,
    parse_captures,
    regex,
    repeat,
)

__all__ = [
    "Piece",
    "capture",
    "compile_grammar",
    "concat",
    "json_schema",
    "literal",
    "one_of",
    "optional",
    "parse_captures",
    "regex",
    "repeat",
]
