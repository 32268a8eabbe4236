"""vLLM's names of fields that have another name here. (Source: vLLM's documentation of its OpenAI-compatible server:
`structured_outputs`, and `guided_*` of its earlier releases.)"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from sglang.srt.errors import RequestError, UnsupportedError
from sglang.srt.server.fields import check_members

STRUCTURED = "structured_outputs"
_SPECIAL = re.compile(r"[\\.^$*+?{}\[\]|()/]")
_WHITE = "constrained_json_whitespace_pattern"

_STRUCTURED = {
    "json": "json_schema",
    "json_object": "json_schema",
    "regex": "regex",
    "choice": "regex",
    "grammar": "ebnf",
    "structural_tag": "structural_tag",
    "whitespace_pattern": _WHITE,
    "disable_any_whitespace": _WHITE,
}
"""member of `structured_outputs` -> our field"""
_HINTS = ("backend", "_backend", "_backend_was_auto", "disable_fallback")
_NOT_DONE = ("disable_additional_properties",)

ALIASES = {
    **{f"guided_{name}": ours for name, ours in _STRUCTURED.items() if name != "disable_any_whitespace"},
    "include_stop_str_in_output": "no_stop_trim",
    "request_id": "rid",
}
"""field of vLLM -> ours"""


def translate(body: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """The body in our names, and what its client calls those (ours -> its own). Raises RequestError if two fields contradict."""
    translated: dict[str, Any] = {}
    names: dict[str, str] = {}
    for name, ours, value in (*_plain(body), *_members(body.get(STRUCTURED))):
        if value is None and (ours != name or ours in translated):
            continue
        if translated.get(ours) not in (None, value):  # some say it in the names of two releases
            raise RequestError(f"{name} and {names.get(ours, ours)} say different things: give one of them", name)
        translated[ours] = value
        if ours != name:
            names[ours] = name
    return translated, names


def _plain(body: dict[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """(its name, our name, value) of each field besides `structured_outputs`."""
    for name, value in body.items():
        if name in ALIASES:
            yield name, ALIASES[name], _value(name.removeprefix("guided_"), value, name)
        elif name != STRUCTURED:
            yield name, name, value


def _members(outputs: Any) -> list[tuple[str, str, Any]]:
    """(its name, our name, value) of each member of `structured_outputs`."""
    if outputs is None:
        return []
    if not isinstance(outputs, dict):
        raise RequestError(f"{STRUCTURED} must be an object", STRUCTURED)
    check_members(outputs, (*_STRUCTURED, *_HINTS, *_NOT_DONE), STRUCTURED, STRUCTURED)
    for name in _NOT_DONE:
        if outputs.get(name):
            raise UnsupportedError(f"{STRUCTURED}.{name} is not supported: set additionalProperties in the schema", STRUCTURED)
    return [
        (f"{STRUCTURED}.{name}", ours, _value(name, outputs[name], f"{STRUCTURED}.{name}"))
        for name, ours in _STRUCTURED.items()
        if name in outputs
    ]


def _value(name: str, value: Any, where: str) -> Any:
    """A value as our field has it. Raises RequestError."""
    read = _VALUES.get(name)
    return read(value, where) if read is not None and value is not None else value


def _schema(value: Any, where: str) -> str:
    if isinstance(value, (dict, bool)):
        return json.dumps(value)
    if not isinstance(value, str):
        raise RequestError(f"{where} must be a JSON schema", where)
    return value


def _choice(value: Any, where: str) -> str:
    """One of the texts, as a regular expression."""
    if not isinstance(value, list) or not value or not all(isinstance(text, str) for text in value):
        raise RequestError(f"{where} must be a list of strings", where)
    return "|".join(_SPECIAL.sub(r"\\\g<0>", text) for text in value)


def _switch(then: str) -> Callable[[Any, str], str | None]:
    def read(value: Any, where: str) -> str | None:
        if not isinstance(value, bool):
            raise RequestError(f"{where} must be true or false", where)
        return then if value else None

    return read


_VALUES: dict[str, Callable[[Any, str], Any]] = {
    "json": _schema,
    "choice": _choice,
    "json_object": _switch('{"type": "object"}'),
    "disable_any_whitespace": _switch(""),
}
