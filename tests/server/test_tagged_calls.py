"""Calls between tags of their own (Qwen3-Coder, GLM-4.5, MiniMax M2), calls after a head (Kimi K2, Functionary), and lists behind a mark."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from sglang.srt.errors import UnsupportedError
from sglang.srt.sampling_params import SamplingParams
from sglang.srt.server.openai.prompts import ChatOptions, chat_options, render_chat
from sglang.srt.server.openai.tools import parameters_of, plan_tools
from sglang.srt.server.parsers.tool_calls import create_free_parser, format_of_template
from tests.server.conftest import MakeStand
from tests.server.http_tools import client_of
from tests.server.test_hostile_calls import FIXED, TEMPLATES, TOOLS, as_written, called, read
from tests.server.test_published_templates import TOOL, tokenizer_with
from tests.server.test_tools import HELLO, says

FORMAT_OF = {
    **dict.fromkeys(("GLM-4.5V", "GLM-4.6", "GLM-4.7-Flash"), "glm45"),
    **dict.fromkeys(("Qwen3-Coder", "Qwen3.5-4B", "StepFun3.5-Flash"), "qwen3_coder"),
    **dict.fromkeys(("Jamba", "Apriel-1.6-15b-Thinker-fixed", "MiniMax-M1", "NVIDIA-Nemotron-Nano-v2"), "generic"),
    "MiniMax-M2": "minimax_m2",
    "moonshotai-Kimi-K2": "kimi_k2",
    "meetkai-functionary-medium-v3.1": "functionary",
}
UNREAD = ("upstage-Solar-Open-100B", "CohereForAI-c4ai-command-r-plus-tool_use")
SCHEMAS = {
    "f": {
        "n": {"type": "integer"},
        "x": {"type": "number"},
        "s": {"type": "string"},
        "b": {"type": "boolean"},
        "o": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "l": {"type": "array"},
        "e": {"enum": ["1", "2"]},
        "any": {},
    },
    "g": {},
}
ARGUMENTS: list[tuple[str, str, Any]] = [
    ("n", "3", 3),
    ("n", "3.0", 3),
    ("n", "many", "many"),
    ("n", "1.5", 1.5),
    ("l", "3", 3),
    ("x", "-1.5e3", -1500.0),
    ("x", "1e999", "1e999"),
    ("s", "123", "123"),
    ("s", "true", "true"),
    ("s", ' "q" \n a < b </tool_call> ', ' "q" \n a < b </tool_call> '),
    ("s", "", ""),
    ("b", "True", True),
    ("b", "false", False),
    ("o", "null", None),
    ("o", "12", "12"),
    ("l", '[1, {"k": null}]', [1, {"k": None}]),
    ("e", "1", "1"),
    ("any", "12", 12),
    ("any", "twelve", "twelve"),
    ("unknown", "NaN", "NaN"),
]
WRITERS = {
    "qwen3_coder": lambda name, pairs: (
        f"<tool_call>\n<function={name}>\n"
        + "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in pairs)
        + "</function>\n</tool_call>"
    ),
    "glm45": lambda name, pairs: (
        f"<tool_call>{name}\n"
        + "".join(f"<arg_key>{key}</arg_key>\n<arg_value>{value}</arg_value>\n" for key, value in pairs)
        + "</tool_call>"
    ),
    "minimax_m2": lambda name, pairs: (
        f'<minimax:tool_call>\n<invoke name="{name}">\n'
        + "".join(f'<parameter name="{key}">{value}</parameter>\n' for key, value in pairs)
        + "</invoke>\n</minimax:tool_call>"
    ),
}
tagged = pytest.mark.parametrize("name", WRITERS)


@pytest.mark.parametrize("name", FORMAT_OF)
def test_what_a_template_writes_is_read(name: str) -> None:
    parser = format_of_template((TEMPLATES / f"{name}.jinja").read_text())
    assert parser == FORMAT_OF[name]
    text = as_written(name, FIXED)
    for places in ([], list(range(len(text)))):
        assert called(read(create_free_parser(parser, TOOLS), text, places)) == FIXED, text


@tagged
def test_arguments_have_the_types_of_their_schema(name: str) -> None:
    for key, value, expected in ARGUMENTS:
        answer = read(create_free_parser(name, SCHEMAS), WRITERS[name]("f", [(key, value)]))
        assert called(answer) == [("f", {key: expected})], (key, value)
        assert answer.calls[0].arguments == json.dumps({key: expected}), "3.0 is no integer to every reader"


@tagged
def test_what_is_valid_stays_beside_what_is_not(name: str) -> None:
    write = WRITERS[name]
    unknown, calls = write("nope", [("x", "1")]), [write("f", [("n", "1")]), write("g", [])]
    text = f"One. {calls[0]}\n{unknown}\n{calls[1]}\n Two."
    for places in ([], list(range(len(text)))):
        answer = read(create_free_parser(name, SCHEMAS), text, places)
        assert called(answer) == [("f", {"n": 1}), ("g", {})]
        assert answer.text.startswith("One.") and "nope" in answer.text and answer.text.endswith("\n Two.")


@tagged
def test_cut_calls_and_mere_marks_are_text(name: str) -> None:
    whole = f"Yes. {WRITERS[name]('f', [('n', '1'), ('s', 'a')])}"
    for end in range(len(whole)):
        answer = read(create_free_parser(name, SCHEMAS), whole[:end])
        assert answer.text == whole[:end] or called(answer) == [("f", {"n": 1, "s": "a"})]
    for text in (
        "Write <tool_call> and </tool_call> around it.",
        "<function=f> is C++",
        '<tool_call>\n{"name": 1}\n</tool_call>',
    ):
        assert read(create_free_parser(name, SCHEMAS), text).text == text


@pytest.mark.parametrize(
    "text",
    [
        "<function=f>\n<parameter=n>\n1\n</parameter>\n</function>",
        "<tool_call><function=f><parameter=n>1</parameter></tool_call>",
    ],
)
def test_qwen_coder_leaves_marks_out(text: str) -> None:
    answer = read(create_free_parser("qwen3_coder", SCHEMAS), text)
    assert (called(answer), answer.text) == ([("f", {"n": 1})], "")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("generic", '<TOOLCALL>[{"name": "a", "arguments": {}}, {"name": "b", "arguments": {}}]</TOOLCALL>'),
        ("generic", '<|tool_call|>[{"name": "a", "arguments": {}}, {"name": "b", "arguments": {}}]'),
        ("generic", 'functools[{"name": "a", "arguments": {}}, {"name": "b", "arguments": {}}]'),
        ("pythonic", "<|tool_call_start|>[a(), b()]<|tool_call_end|>"),
    ],
)
def test_no_mark_of_a_list_is_left(name: str, text: str) -> None:
    for places in ([], list(range(len(text)))):
        answer = read(create_free_parser(name, TOOLS), text, places)
        assert ([call.name for call in answer.calls], answer.text) == (["a", "b"], "")


def test_parameters_come_with_their_schemas() -> None:
    assert parameters_of([TOOL]) == {"get_weather": TOOL["function"]["parameters"]["properties"]}


def test_strict_tools_of_a_tagged_format_are_called_in_json() -> None:
    strict = [{**TOOL, "function": {**TOOL["function"], "strict": True}}]
    assert plan_tools(strict, "auto", None, "qwen3_coder", SamplingParams()).parser == "qwen"


@pytest.mark.parametrize("name", UNREAD)
def test_a_format_without_a_parser_is_none(name: str) -> None:
    assert format_of_template((TEMPLATES / f"{name}.jinja").read_text()) == "none"
    text = '<|tool_call:begin|>a<|tool_call:args|>{"x": 1}'
    answer = read(create_free_parser("none", TOOLS), text)
    assert (answer.calls, answer.text) == ([], text)
    strict = {**TOOL, "function": {**TOOL["function"], "strict": True}}
    with pytest.raises(UnsupportedError, match="cannot be constrained"):
        options = ChatOptions(tokenizer_with(name), "m", {}, 100_000, 100_000, tool_parser="none")
        render_chat({"messages": HELLO, "tools": [strict]}, options)


def test_the_log_says_that_calls_stay_text(
    make_stand: MakeStand, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stand = make_stand()
    monkeypatch.setattr(stand.manager, "need_tokenizer", lambda: tokenizer_with("upstage-Solar-Open-100B"))
    with caplog.at_level(logging.WARNING, "sglang.srt.server.openai.prompts"):
        assert chat_options(stand.manager, None).tool_parser == "none"
    assert "stay text" in caplog.text


async def test_a_chat_answer(make_stand: MakeStand) -> None:
    stand = make_stand(info={"context_len": 2048}, tool_call_parser="qwen3_coder")
    says(stand, "<tool_call>\n<function=get_weather>\n<parameter=city>\n12\n</parameter>\n</function>\n</tool_call>")
    async with client_of(stand) as client:
        body = {"messages": HELLO, "tools": [TOOL], "max_tokens": 300}
        (choice,) = (await client.post("/v1/chat/completions", json=body)).json()["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert json.loads(choice["message"]["tool_calls"][0]["function"]["arguments"]) == {"city": "12"}
