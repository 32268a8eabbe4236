"""The formats of tool calls by name, and the format of each model family."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from sglang.srt.errors import ConfigError
from sglang.srt.server.parsers.call_parser import CallParser
from sglang.srt.server.parsers.formats.json_format import (
    LIST_MARKS,
    BareJsonCalls,
    DeepSeekCalls,
    FunctionTagCalls,
    GenericCalls,
    JsonCalls,
    KimiCalls,
    Llama3Calls,
    MistralCalls,
    QwenCalls,
)
from sglang.srt.server.parsers.formats.python_format import GemmaCalls, PythonicCalls
from sglang.srt.server.parsers.formats.tagged_format import GlmCalls, MiniMaxCalls, QwenCoderCalls
from sglang.srt.server.parsers.harmony import CHANNEL, HARMONY, HarmonyCalls
from sglang.srt.server.parsers.json_calls import BareCalls
from sglang.srt.server.parsers.pieces import Parser


@dataclass(frozen=True)
class Tag:
    """A format's call without its arguments; NAME stands for the name. `trigger` begins `begin`. The arguments are JSON, or
    with `keywords` written as Python's."""

    trigger: str
    begin: str
    end: str
    keywords: bool = False


@dataclass(frozen=True)
class CallFormat:
    """`how`: the words that tell a model without a tool template how to call. `signs`: what in a chat template gives the format
    away. `foreign`: signs of a way to write calls that `tag` is not. `constrained_as`: the format that has `tag`, if a constraint
    cannot follow this one."""

    parser: type[CallParser]
    how: str
    tag: Tag
    signs: tuple[str, ...] = ()
    foreign: tuple[str, ...] = ()
    constrained_as: str | None = None


_JSON = '{"name": "NAME", "arguments": {"PARAMETER": VALUE}}'

_QWEN_TAG = Tag("<tool_call>", '<tool_call>\n{"name": "NAME", "arguments": ', "}\n</tool_call>")
_JSON_TAG = Tag('{"name": "', '{"name": "NAME", "arguments": ', "}")
_UNREAD = ("<|tool_call:begin|>", "[TOOL_CALL_START]", '"tool_name"')  # Solar, YandexGPT, Command R
"""in chat templates: ways to write calls that nothing here reads"""
NONE = "none"

FORMATS: dict[str, CallFormat] = {
    "glm45": CallFormat(
        GlmCalls,
        "<tool_call>NAME\n<arg_key>PARAMETER</arg_key>\n<arg_value>VALUE</arg_value>\n</tool_call>",
        _QWEN_TAG,
        ("<arg_key>",),
        constrained_as="qwen",
    ),
    "qwen3_coder": CallFormat(
        QwenCoderCalls,
        "<tool_call>\n<function=NAME>\n<parameter=PARAMETER>\nVALUE\n</parameter>\n</function>\n</tool_call>",
        _QWEN_TAG,
        ("<parameter=",),
        constrained_as="qwen",
    ),
    "minimax_m2": CallFormat(
        MiniMaxCalls,
        '<minimax:tool_call>\n<invoke name="NAME">\n<parameter name="PARAMETER">VALUE</parameter>\n</invoke>\n</minimax:tool_call>',
        _JSON_TAG,
        ("<minimax:tool_call>",),
        ("<minimax:tool_call>",),
        constrained_as="generic",
    ),
    "kimi_k2": CallFormat(
        KimiCalls,
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.NAME:0<|tool_call_argument_begin|>"
        '{"PARAMETER": VALUE}<|tool_call_end|><|tool_calls_section_end|>',
        Tag(
            "<|tool_call_begin|>",
            "<|tool_call_begin|>functions.NAME:0<|tool_call_argument_begin|>",
            "<|tool_call_end|>",
        ),
        ("<|tool_calls_section_begin|>",),
    ),
    "functionary": CallFormat(
        FunctionTagCalls,
        '<function=NAME>{"PARAMETER": VALUE}</function>',
        Tag("<function=", "<function=NAME>", "</function>"),
        ("<function=",),
    ),
    HARMONY: CallFormat(
        HarmonyCalls,
        '<|channel|>commentary to=functions.NAME <|constrain|>json<|message|>{"PARAMETER": VALUE}<|call|>',
        _JSON_TAG,
        (CHANNEL,),
        (CHANNEL,),
        constrained_as="generic",
    ),
    NONE: CallFormat(CallParser, _JSON, _JSON_TAG, _UNREAD, _UNREAD, constrained_as="generic"),
    "qwen": CallFormat(
        QwenCalls,
        f"<tool_call>\n{_JSON}\n</tool_call>",
        _QWEN_TAG,
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
        PythonicCalls,
        '[NAME(PARAMETER="VALUE")]',
        Tag("[NAME(", "[NAME(", ")]", keywords=True),
        ("<|python_start|>", "<|tool_list_start|>"),
    ),
    "generic": CallFormat(GenericCalls, _JSON, _JSON_TAG, LIST_MARKS),
    "llama3": CallFormat(
        Llama3Calls,
        '{"name": "NAME", "parameters": {"PARAMETER": VALUE}}',
        Tag('{"name": "', '{"name": "NAME", "parameters": ', "}"),
        ("<|python_tag|>", "ipython"),
    ),
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
    "glm": "glm45",
    "glm47": "glm45",
    "seed_oss": "qwen3_coder",
    "lfm2": "pythonic",
    "minimax-m2": "minimax_m2",
    "gpt-oss": HARMONY,
    "gpt_oss": HARMONY,
    "json": "generic",
}


def call_format(name: str) -> CallFormat:
    """Raises ConfigError for a name that is none, with those that are."""
    found = FORMATS.get(ALIASES.get(name, name))
    if found is None:
        raise ConfigError(f"there is no tool call parser {name!r}; there are {', '.join(sorted({*FORMATS, *ALIASES}))}")
    return found


def format_name(name: str) -> str:
    """The name of the format that `name` may be an alias of."""
    return ALIASES.get(name, name)


def format_of_template(source: str) -> str:
    """The name of the format that a chat template speaks of: "none" if it is one that nothing here reads, "generic" if it speaks of
    none."""
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
    """The parser of an answer that a constraint makes a call, a list of calls, or other JSON."""
    return BareCalls(BareJsonCalls(tools, max_calls, wraps=False), CallParser(()))
