"""The formats of tool calls by name, and which one a model family speaks."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from sglang.srt.errors import ConfigError
from sglang.srt.server.parsers.bare import BareCalls
from sglang.srt.server.parsers.call_parser import CallParser
from sglang.srt.server.parsers.formats.json_format import (
    BareJsonCalls,
    DeepSeekCalls,
    GenericCalls,
    JsonCalls,
    Llama3Calls,
    MistralCalls,
    QwenCalls,
)
from sglang.srt.server.parsers.formats.python_format import GemmaCalls, PythonicCalls
from sglang.srt.server.parsers.pieces import Parser


@dataclass(frozen=True)
class Tag:
    """How a format writes a call when its arguments are left out; NAME stands for the name. `trigger` begins `begin`. The arguments
    are JSON, or with `keywords` written as Python's."""

    trigger: str
    begin: str
    end: str
    keywords: bool = False


@dataclass(frozen=True)
class CallFormat:
    """`how`: the words that tell a model without a tool template how to call. `signs`: what in a chat template gives the format
    away. `foreign`: signs of a way to write calls that `tag` is not."""

    parser: type[CallParser]
    how: str
    tag: Tag
    signs: tuple[str, ...] = ()
    foreign: tuple[str, ...] = ()


_JSON = '{"name": "NAME", "arguments": {"PARAMETER": VALUE}}'

FORMATS: dict[str, CallFormat] = {
    "qwen": CallFormat(
        QwenCalls,
        f"<tool_call>\n{_JSON}\n</tool_call>",
        Tag("<tool_call>", '<tool_call>\n{"name": "NAME", "arguments": ', "}\n</tool_call>"),
        ("<tool_call>",),
    ),
    "deepseek": CallFormat(
        DeepSeekCalls,
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>NAME\n```json\n"
        '{"PARAMETER": VALUE}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
        Tag(
            "<｜tool▁call▁begin｜>",
            "<｜tool▁call▁begin｜>function<｜tool▁sep｜>NAME\n```json\n",
            "\n```<｜tool▁call▁end｜>",
        ),
        ("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>"),
    ),
    "mistral": CallFormat(
        MistralCalls,
        f"[TOOL_CALLS] [{_JSON}]",
        Tag("[TOOL_CALLS]", '[TOOL_CALLS] [{"name": "NAME", "arguments": ', "}]"),
        ("[TOOL_CALLS]",),
    ),
    "gemma": CallFormat(
        GemmaCalls,
        '```tool_code\nNAME(PARAMETER="VALUE")\n```',
        Tag("```tool_code\nNAME(", "```tool_code\nNAME(", ")\n```", keywords=True),
        ("<start_function_call>", "<|tool_call>", "tool_code"),
        ("<start_function_call>", "<|tool_call>"),
    ),
    "pythonic": CallFormat(
        PythonicCalls, '[NAME(PARAMETER="VALUE")]', Tag("[NAME(", "[NAME(", ")]", keywords=True), ("<|python_start|>",)
    ),
    "llama3": CallFormat(
        Llama3Calls,
        '{"name": "NAME", "parameters": {"PARAMETER": VALUE}}',
        Tag('{"name": "', '{"name": "NAME", "parameters": ', "}"),
        ("<|python_tag|>", "ipython"),
    ),
    "generic": CallFormat(GenericCalls, _JSON, Tag('{"name": "', '{"name": "NAME", "arguments": ', "}")),
}
"""Looked through in this order when a template is to give its format away."""

ALIASES = {
    "hermes": "qwen",
    "qwen25": "qwen",
    "qwen3": "qwen",
    "deepseekv3": "deepseek",
    "deepseekv31": "deepseek",
    "llama": "llama3",
    "llama4": "pythonic",
    "gemma4": "gemma",
    "json": "generic",
}


def call_format(name: str) -> CallFormat:
    """Raises ConfigError for a name that is none, with those that are."""
    found = FORMATS.get(ALIASES.get(name, name))
    if found is None:
        raise ConfigError(f"there is no tool call parser {name!r}; there are {', '.join(sorted({*FORMATS, *ALIASES}))}")
    return found


def format_of_template(source: str) -> str:
    """The name of the format that a chat template speaks of, "generic" if none."""
    return next((name for name, entry in FORMATS.items() if any(sign in source for sign in entry.signs)), "generic")


def create_parser(name: str, tools: Collection[str], max_calls: int | None = None, exact: Collection[str] = ()) -> CallParser:
    """`tools` and `exact`: see CallParser. Raises ConfigError for a name that is none."""
    return call_format(name).parser(tools, max_calls, exact)


def create_free_parser(name: str, tools: Collection[str], max_calls: int | None = None, exact: Collection[str] = ()) -> Parser:
    """The same for an answer that may be anything: calls as plain JSON count as well, if there is nothing else, save for those of the
    tools `exact`, which a constraint holds to the model's own form."""
    own = create_parser(name, tools, max_calls, exact)
    if isinstance(own, BareJsonCalls):
        return own if own.bare or exact else BareJsonCalls(tools, max_calls)
    known = tools if isinstance(tools, Mapping) else dict.fromkeys(tools, ())
    free = {tool: parameters for tool, parameters in known.items() if tool not in exact}
    around = () if isinstance(own, JsonCalls) else own.markers
    return BareCalls(BareJsonCalls(free, max_calls, around=around), own) if free else own


def create_whole_parser(tools: Collection[str], max_calls: int | None = None) -> Parser:
    """For an answer that a constraint makes either a call, or a list of them, or JSON of another kind, whatever that holds."""
    return BareCalls(BareJsonCalls(tools, max_calls), CallParser(()))
