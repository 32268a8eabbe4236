"""/parse_function_call and /separate_reasoning: the parsers of answers, for text that was generated elsewhere."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from sglang.srt.errors import ConfigError, RequestError
from sglang.srt.server.fields import Fields, as_text
from sglang.srt.server.http.bodies import read_object
from sglang.srt.server.http.wire import JsonResponse
from sglang.srt.server.openai.answers import Answer
from sglang.srt.server.openai.tools import parameters_of, parse_tools
from sglang.srt.server.openapi import native_shapes, openai_shapes, schemas
from sglang.srt.server.openapi.operation import NATIVE, documented
from sglang.srt.server.parsers.harmony import HarmonyCalls
from sglang.srt.server.parsers.pieces import Parser
from sglang.srt.server.parsers.reasoning import GPT_OSS, ReasoningParser, reasoning_format
from sglang.srt.server.parsers.tool_calls import create_free_parser
from sglang.srt.server.side_threads import run_in_thread

MAX_CHARS = 200_000
_PARSED = schemas.text("what a model said", maxLength=MAX_CHARS)
_CALL_FIELDS = Fields.of(
    {
        "text": _PARSED,
        "tools": schemas.list_of(openai_shapes.TOOL, "the functions that may be called"),
        "tool_call_parser": schemas.text("a format of tool calls; qwen if it is not said"),
    },
    required=("text",),
    name="ParseFunctionCallRequest",
)
_REASONING_FIELDS = Fields.of(
    {"text": _PARSED, "reasoning_parser": schemas.text("a format of reasoning, or BEGIN,END; generic if it is not said")},
    required=("text",),
    name="SeparateReasoningRequest",
)
_TOOLS = [
    {
        "type": "function",
        "function": {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}},
    }
]
SHORT_CHARS = 5000
"""longer texts are parsed on another thread"""


@documented(
    "Tool calls in a text",
    NATIVE,
    body=_CALL_FIELDS,
    reply=native_shapes.CALLS,
    examples=({"text": '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>', "tools": _TOOLS},),
)
async def parse_function_call(request: Request) -> Response:
    """{text, tools, tool_call_parser} -> {normal_text, calls: [{tool_index, name, parameters}]}"""
    body = await read_object(request, _CALL_FIELDS)
    name = _name(body, "tool_call_parser", "qwen")
    tools = parameters_of(parse_tools(body.get("tools")))
    try:
        parser = create_free_parser(name, tools)
    except ConfigError as error:
        raise RequestError(str(error), "tool_call_parser") from error
    answer = await _read(parser, _text(body))
    calls = [{"tool_index": i, "name": call.name, "parameters": call.arguments} for i, call in enumerate(answer.calls)]
    return JsonResponse({"normal_text": answer.text, "calls": calls})


@documented(
    "Reasoning and answer of a text",
    NATIVE,
    body=_REASONING_FIELDS,
    reply=native_shapes.REASONING,
    examples=({"text": "<think>Two and two.</think>Four."},),
)
async def separate_reasoning(request: Request) -> Response:
    """{text, reasoning_parser} -> {reasoning_text, text}"""
    body = await read_object(request, _REASONING_FIELDS)
    try:
        format_ = reasoning_format(_name(body, "reasoning_parser", "generic"))
    except ConfigError as error:
        raise RequestError(str(error), "reasoning_parser") from error
    parser = HarmonyCalls(()) if format_ is GPT_OSS else ReasoningParser(format_, inside=format_.always)
    answer = await _read(parser, _text(body))
    return JsonResponse({"reasoning_text": answer.reasoning, "text": answer.text})


async def _read(parser: Parser, text: str) -> Answer:
    def work() -> Answer:
        answer = Answer("")
        for piece in [*parser.feed(text), *parser.finish()]:
            answer.add(piece)
        return answer

    return await run_in_thread(work) if len(text) > SHORT_CHARS else work()


def _text(body: dict[str, Any]) -> str:
    text = as_text(body, "text")
    if text is None:
        raise RequestError("text is missing", "text")
    if len(text) > MAX_CHARS:
        raise RequestError(f"text has {len(text)} characters; at most {MAX_CHARS} are parsed", "text")
    return text


def _name(body: dict[str, Any], name: str, default: str) -> str:
    return as_text(body, name) or default
