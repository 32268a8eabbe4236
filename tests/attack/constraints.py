"""Constraints that are hard on grammar engines: each may be refused or followed, and costs only its sender."""

from __future__ import annotations

import json
from typing import Any

HUGE = {"foo": {"type": "integer", "minimum": -1e19, "maximum": -1e19}, "$ref": "#/foo"}

SCHEMAS: dict[str, Any] = {
    "a number behind an unknown keyword": HUGE,
    "a number behind a pointer into a list": {"x": [{"type": "integer", "minimum": 1e19, "maximum": 1e19}], "$ref": "#/x/0"},
    "a number behind an escaped pointer": {"a/b": {"type": "integer", "minimum": -1e30}, "$ref": "#/a~1b"},
    "a number behind a percent sign": {"a b": {"type": "integer", "maximum": -1e19, "minimum": -1e19}, "$ref": "#/a%20b"},
    "a number behind two pointers": {"p": {"$ref": "#/q"}, "q": {"type": "integer", "maximum": 1e300}, "$ref": "#/p"},
    "common multiples": {"allOf": [{"type": "integer", "multipleOf": 999999937}, {"type": "integer", "multipleOf": 999999893}]},
    "common multiples of many": {"allOf": [{"type": "integer", "multipleOf": p} for p in (99991, 99989, 99971, 99961)]},
    "a fraction's multiples": {"type": "number", "multipleOf": 1e-300, "minimum": 0, "maximum": 1e300},
    "patterns of patterns": {"allOf": [{"type": "string", "pattern": f".*{c}.*"} for c in "abcdefghijklmnopqrst"]},
    "counted repetition": {"type": "string", "pattern": "((a{1,999}){1,999}){1,999}"},
    "many items": {"type": "array", "minItems": 10**9, "items": {"type": "string"}},
    "a long string": {"type": "string", "minLength": 10**9},
    "itself": {"$ref": "#"},
    "a circle": {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
    "a tree of itself": {
        "anyOf": [{"type": "array", "items": {"$ref": "#"}}, {"type": "object", "properties": {"a": {"$ref": "#"}}}]
    },
    "doubling": {
        "$defs": {f"d{i}": {"anyOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 8} for i in range(24)} | {"d24": {"const": 1}},
        "$ref": "#/$defs/d0",
    },
    "many names": {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(2000)}},
    "many words": {"enum": [f"{i:08d}" * 8 for i in range(2000)]},
}

REGEXES = {
    "nested stars": "(((((a*)*)*)*)*)*b",
    "counted": "(?:(?:(?:x{1,500}){1,500}){1,500}){1,500}",
    "wide alternatives": "|".join(f".*{c}.*{c}.*{c}" for c in "abcdefghijklmnopqrstuvwxyz"),
    "look back": r"(a|b)*a(a|b){64}",
    "deep": "(" * 3000 + "a" + ")" * 3000,
}


def constrained(**constraint: Any) -> dict[str, Any]:
    """The body of a /generate that follows a constraint."""
    return {"text": "x", "sampling_params": {"max_new_tokens": 8, "temperature": 0, **constraint}}


def _tool(schema: Any, strict: bool = True) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", "parameters": schema, "strict": strict}}


def routes_of(schema: Any) -> list[tuple[str, dict[str, Any]]]:
    """Every way by which a schema comes in: (path, body)."""
    messages = [{"role": "user", "content": "x"}]
    chat: dict[str, Any] = {"messages": messages, "max_tokens": 8, "temperature": 0}
    wrapped = {
        "type": "object",
        "properties": {"v": schema},
        "$defs": schema.get("$defs", {}),
        **{k: v for k, v in schema.items() if k in ("foo", "x", "p", "q", "a/b", "a b")},
    }
    tag = {"type": "structural_tag", "structures": [{"begin": "<f>", "schema": schema, "end": "</f>"}], "triggers": ["<f>"]}
    return [
        ("/generate", constrained(json_schema=json.dumps(schema))),
        ("/generate", constrained(ebnf="start: %json " + json.dumps(schema))),
        ("/generate", constrained(structural_tag=json.dumps(tag))),
        ("/v1/chat/completions", {**chat, "response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": schema, "strict": True}}}),
        ("/v1/chat/completions", {**chat, "response_format": tag}),
        ("/v1/chat/completions", {**chat, "tools": [_tool(wrapped)], "tool_choice": "auto"}),
        ("/v1/chat/completions", {**chat, "tools": [_tool(wrapped)], "tool_choice": "required"}),
        ("/v1/chat/completions", {**chat, "tools": [_tool(wrapped, False)], "tool_choice": {"type": "function", "function": {"name": "f"}}}),
        ("/v1/chat/completions", {**chat, "json_schema": json.dumps(schema)}),
        ("/v1/completions", {"prompt": "x", "max_tokens": 8, "response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}}),
        ("/v1/responses", {"input": "x", "max_output_tokens": 8, "store": False, "text": {"format": {"type": "json_schema", "name": "s", "schema": schema, "strict": True}}}),
        ("/v1/responses", {"input": "x", "max_output_tokens": 8, "store": False, "tool_choice": "required", "tools": [{"type": "function", "name": "f", "parameters": wrapped, "strict": True}]}),
        ("/v1/messages", {"messages": messages, "max_tokens": 8, "output_config": {"format": {"type": "json_schema", "schema": schema}}}),
        ("/v1/messages", {"messages": messages, "max_tokens": 8, "tool_choice": {"type": "any"}, "tools": [{"name": "f", "input_schema": wrapped, "strict": True}]}),
    ]  # fmt: skip


def routes_of_text(kind: str, text: str) -> list[tuple[str, dict[str, Any]]]:
    """Every way by which a `regex` or an `ebnf` comes in."""
    chat: dict[str, Any] = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 8, "temperature": 0}
    found = [
        ("/generate", constrained(**{kind: text})),
        ("/v1/chat/completions", {**chat, kind: text}),
        ("/v1/completions", {"prompt": "x", "max_tokens": 8, kind: text}),
    ]
    if kind == "regex":
        patterned = {"type": "object", "properties": {"a": {"type": "string", "pattern": text}}, "required": ["a"]}
        found += routes_of(patterned)[:5:2]
    return found


EBNFS = {
    "left recursion": 'root ::= root "a" | "a"',
    "nothing": 'root ::= root',
    "empty": "",
    "a circle": 'root ::= a\na ::= b\nb ::= a',
    "an unknown rule": 'root ::= nobody',
    "doubling": "\n".join(["root ::= r0", *(f"r{i} ::= r{i + 1} r{i + 1} r{i + 1} r{i + 1}" for i in range(24)), 'r24 ::= "a"']),
    "many alternatives": "root ::= " + " | ".join(f'"{i:08d}"' for i in range(5000)),
    "a long literal": 'root ::= "' + "a" * 100_000 + '"',
    "deep brackets": "root ::= " + "(" * 3000 + '"a"' + ")" * 3000,
    "nested stars": 'root ::= ((((("a"*)*)*)*)*)* "b"',
    "counted": 'root ::= (("a"{1,900}){1,900}){1,900}',
    "ambiguous": 'root ::= root root root | "a" | ""',
    "classes": "root ::= [" + "\\u0000-\\uffff" * 500 + "]*",
    "not closed": 'root ::= "a',
    "other bytes": 'root ::= "\x00\ud7ff\U0010ffff"',
    "lark: a circle": "start: a\na: b\nb: a",
    "lark: terminals of terminals": "start: A\n" + "\n".join(f"T{i}: T{i + 1} T{i + 1} T{i + 1}" for i in range(24)) + "\nT24: /a/\nA: T0",
    "lark: intersections": "start: X\nX: " + " & ".join(f"/.*{c}.*/" for c in "abcdefghijklmnopqrst"),
    "lark: complements": "start: X\nX: ~/(.*a){9}.*/ & ~/(.*b){9}.*/ & ~/(.*c){9}.*/",
    "lark: a number behind a keyword": "start: %json " + json.dumps(HUGE),
    "lark: a schema of schemas": "start: a b\na: %json " + json.dumps({"$ref": "#"}) + "\nb: %json " + json.dumps(HUGE),
    "lark: imports": "%import common.NUMBER\n%import ..secrets.X\nstart: NUMBER X",
    "lark: repeated": "start: /a/~1..100000000",
    "lark: a regex of the worst kind": "start: /" + "(.*x){40}" * 8 + "/",
}  # fmt: skip


STOP_REGEXES = ["(?s)[^~].*.*[0-9]{6}[a-z]{1}".replace("6", str(i % 9 + 4)) + f"(?#{i})" for i in range(64)]
"""each alone is slow, and none matches soon"""
