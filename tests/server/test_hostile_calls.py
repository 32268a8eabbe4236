"""Calls with whatever a string can hold, in every format and as published templates write them; and what is no call: descriptions of
tools, calls that cannot be read, and calls that are cut off."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang.srt.server.openai.answers import Answer
from sglang.srt.server.openai.prompts import parse_messages
from sglang.srt.server.parsers.tool_calls import FORMATS, create_free_parser, create_parser, format_of_template
from tests.server.test_kept_calls import CALL, CALL_END, CALLS, CALLS_END, SEP, called
from tests.server.test_parsers import read
from tests.server.test_published_templates import TEMPLATES, TOOL, tokenizer_with

TOOLS = {"a": ("x", "y"), "b": (), "get_weather": ("city", "unit")}
QUOTE = '<|"|>'
Called = tuple[str, dict[str, Any]]


def _json(call: Called, key: str = "arguments") -> str:
    return json.dumps({"name": call[0], key: call[1]}, ensure_ascii=False)


def _data(call: Called) -> str:
    return json.dumps(call[1], ensure_ascii=False)


def _keywords(call: Called) -> str:
    return f"{call[0]}({', '.join(f'{key}={value!r}' for key, value in call[1].items())})"


def _bare(value: object, quote: str) -> str:
    if isinstance(value, str):
        return quote + value + quote
    if isinstance(value, list):
        return f"[{','.join(_bare(item, quote) for item in value)}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{quote}{key}{quote}:{_bare(item, quote)}' for key, item in value.items())}}}"
    return json.dumps(value)


WAYS: dict[tuple[str, str], Callable[[list[Called]], str]] = {
    ("qwen", "marks"): lambda calls: "\n".join(f"<tool_call>\n{_json(c)}\n</tool_call>" for c in calls),
    ("mistral", "list"): lambda calls: f"[TOOL_CALLS] [{', '.join(map(_json, calls))}]",
    ("mistral", "names"): lambda calls: "".join(f"[TOOL_CALLS]{c[0]}[ARGS]{_data(c)}" for c in calls),
    ("llama3", "mark"): lambda calls: "<|python_tag|>" + "; ".join(_json(c, "parameters") for c in calls),
    ("llama3", "lines"): lambda calls: "\n".join(_json(c, "parameters") for c in calls),
    ("generic", "fence"): lambda calls: "```json\n[" + ",\n ".join(map(_json, calls)) + "]\n```",
    ("generic", "functions"): lambda calls: "\n".join(f'{{"type": "function", "function": {_json(c)}}}' for c in calls),
    ("generic", "text"): lambda calls: "\n".join(_json((c[0], {})).replace("{}", json.dumps(_data(c))) for c in calls),
    ("deepseek", "V3"): lambda calls: (
        CALLS + "\n".join(f"{CALL}function{SEP}{c[0]}\n```json\n{_data(c)}\n```{CALL_END}" for c in calls) + CALLS_END
    ),
    ("deepseek", "V3.1"): lambda calls: CALLS + "".join(f"{CALL}{c[0]}{SEP}{_data(c)}{CALL_END}" for c in calls) + CALLS_END,
    ("pythonic", "marks"): lambda calls: f"<|python_start|>[{', '.join(map(_keywords, calls))}]<|python_end|>",
    ("gemma", "lines"): lambda calls: "```tool_code\n" + "\n".join(map(_keywords, calls)) + "\n```",
    ("gemma", "function"): lambda calls: "".join(
        f"<start_function_call>call:{c[0]}{_bare(c[1], '<escape>')}<end_function_call>" for c in calls
    ),
    ("gemma", "4"): lambda calls: "".join(f"<|tool_call>call:{c[0]}{_bare(c[1], QUOTE)}<tool_call|>" for c in calls),
}
MARKS = sorted({mark for entry in FORMATS.values() for mark in entry.parser.markers} - {"<escape>", QUOTE})
HOSTILE = [
    *MARKS,
    *(
        "```",
        "```json\n",
        '"',
        "'",
        '"""',
        "'''",
        "\\",
        '\\"',
        "{",
        "}}",
        "[",
        "]]",
        "(",
        "))",
        ")]",
        "\n",
        "\t",
        " ",
        ", ",
        ";",
    ),
    *('{"name": "a", "arguments": {}}', "[b()]", "call:b{}", "é", "\U0001f600", "\u2028", "\x00", "<", "`", "#", "1e5", "null"),
]
TEXTS = st.lists(st.sampled_from(HOSTILE) | st.text(st.characters(exclude_categories=["Cs"]), max_size=3), max_size=5).map(
    "".join
)
LEAVES = TEXTS | st.booleans() | st.none() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False, allow_infinity=False)
KEYS = st.sampled_from(["k", "type", "name", "a b", "e.f", "properties", "arguments"])
VALUES = st.recursive(LEAVES, lambda v: st.lists(v, max_size=3) | st.dictionaries(KEYS, v, max_size=3), max_leaves=5)
ONE_CALL = st.builds(lambda x, y: ("a", {"x": x, "y": y}), LEAVES, VALUES) | st.just(("b", {}))
FIXED: list[Called] = [
    ("a", {"x": "it's \"}\n</tool_call>[TOOL_CALLS])]```", "y": [{"k": ["\\", None, True, -1.5e-7]}, "é\U0001f600"]}),
    ("b", {}),
]


@settings(max_examples=150, deadline=None)
@given(
    way=st.sampled_from(sorted(WAYS)),
    calls=st.lists(ONE_CALL, min_size=1, max_size=3),
    cuts=st.lists(st.integers(0, 2000), max_size=40),
)
def test_every_call_is_read_as_it_was_meant(way: tuple[str, str], calls: list[Called], cuts: list[int]) -> None:
    text = WAYS[way](calls)
    for places in ([], cuts, list(range(len(text)))):
        answer = read(create_parser(way[0], TOOLS), text, places)
        assert (called(answer), answer.text) == (calls, "")
        assert all(call.is_whole for call in answer.calls)


@pytest.mark.parametrize("way", WAYS, ids=" ".join)
def test_every_cut_in_two_gives_the_same(way: tuple[str, str]) -> None:
    text = f"So:\n{WAYS[way](FIXED)}\nDone."
    whole = read(create_parser(way[0], TOOLS), text)
    assert (called(whole), whole.text) == (FIXED, "So:\n\nDone.")
    for at in range(len(text)):
        assert _told(read(create_parser(way[0], TOOLS), text, [at])) == _told(whole)


def _told(answer: Answer) -> tuple[object, ...]:
    return answer.text, [(call.name, call.arguments, call.is_whole) for call in answer.calls]


@pytest.mark.parametrize("way", WAYS, ids=" ".join)
def test_of_a_cut_answer_nothing_is_lost_and_only_whole_calls_are_run(way: tuple[str, str]) -> None:
    text = WAYS[way]([("b", {}), *FIXED])
    for end in range(len(text)):
        answer = read(create_parser(way[0], TOOLS), text[:end])
        whole = [call for call in answer.calls if call.is_whole]
        assert called_of(whole) == [("b", {}), *FIXED][: len(whole)]
        assert len(answer.calls) - len(whole) <= 1
        last = answer.calls[-1] if len(whole) < len(answer.calls) else None
        if last is not None:
            assert last is answer.calls[-1] and text[:end].rstrip().endswith(last.arguments.rstrip())
        elif answer.text:
            assert text[:end].rstrip().endswith(answer.text.rstrip()), "what was begun is text"


def called_of(calls: list[Any]) -> list[Called]:
    return [(call.name, json.loads(call.arguments)) for call in calls]


# --- as published templates write them ----------------------------------------------------------------------------------------

ONE_AT_A_TIME = {"meta-llama-Llama-3.1-8B-Instruct", "meta-llama-Llama-3.2-3B-Instruct"}
WRITE_CALLS = sorted(
    ONE_AT_A_TIME
    | {
        "Bielik-11B-v3.0-Instruct", "DeepSeek-V3", "EXAONE-4.0", "MiMo-VL",
        "Mistral-Small-3.2-24B-Instruct-2506", "NousResearch-Hermes-3-Llama-3.1-8B-tool_use", "Qwen-QwQ-32B",
        "Qwen-Qwen2.5-7B-Instruct", "Qwen-Qwen3-0.6B", "Qwen3-VL-Instruct", "deepseek-ai-DeepSeek-V3.1",
        "google-gemma-4-31B-it-interleaved", "ibm-granite-granite-4.0", "mistralai-Ministral-3-14B-Reasoning-2512",
        "mistralai-Mistral-Nemo-Instruct-2407", "unsloth-mistral-Devstral-Small-2507",
    }
)  # fmt: skip


def as_written(name: str, calls: list[Called]) -> str:
    """What the template of a model writes for an answer that calls."""
    tokenizer = tokenizer_with(name)
    entries = [
        {"id": f"abcdefgh{i}", "type": "function", "function": {"name": c[0], "arguments": _data(c)}}
        for i, c in enumerate(calls)
    ]
    answer = {"role": "assistant", "content": "", "tool_calls": entries}
    messages = parse_messages([{"role": "user", "content": "Question?"}, answer], tokenizer.chat_template(with_tools=True))
    told = tokenizer.render_chat(messages, tools=[TOOL], generation_prompt=False)
    return told[told.rindex("Question?") :]


@pytest.mark.parametrize("name", WRITE_CALLS)
def test_what_a_template_writes_is_read(name: str) -> None:
    calls = FIXED[:1] if name in ONE_AT_A_TIME else FIXED
    parser = format_of_template((TEMPLATES / f"{name}.jinja").read_text())
    text = as_written(name, calls)
    for places in ([], list(range(len(text)))):
        assert called(read(create_free_parser(parser, TOOLS), text, places)) == calls, text


# --- descriptions -------------------------------------------------------------------------------------------------------------

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
FUNCTION = {"name": "get_weather", "description": "The weather", "parameters": SCHEMA}
BARE_FUNCTION = {"name": "get_weather", "parameters": SCHEMA}
DESCRIPTIONS: list[Any] = [
    {"type": "function", "function": FUNCTION},
    {"type": "function", "function": BARE_FUNCTION},
    {"type": "function", "function": {"name": "a", "parameters": {"type": "object", "properties": {}}}},
    {"type": "function", "function": {"name": "a"}},
    {"function": BARE_FUNCTION, "type": "function"},
    [{"type": "function", "function": FUNCTION}, {"type": "function", "function": {**BARE_FUNCTION, "strict": True}}],
    [{"type": "function", **FUNCTION}, {"type": "function", **BARE_FUNCTION}],
    [FUNCTION, BARE_FUNCTION],
    BARE_FUNCTION,
    {"parameters": SCHEMA, "name": "get_weather"},
    {"name": "get_weather", "parameters": {"properties": {"city": {}}, "type": "object"}},
    {"name": "get_weather", "parameters": {"$schema": "x", **SCHEMA}},
    {"name": "get_weather", "parameters": {"city": {"type": "string"}, "unit": {"type": "string", "enum": ["C"]}}},
    {"name": "get_weather", "parameters": SCHEMA, "description": "The weather"},
    {"name": "get_weather", "input_schema": SCHEMA},
    {"tools": [{"type": "function", "function": BARE_FUNCTION}]},
    {"tools": [BARE_FUNCTION]},
]


@pytest.mark.parametrize("around", ["{}", "These are my tools:\n{}\nWhich?", "```json\n{}\n```", "<tools>\n{}\n</tools>"])
@pytest.mark.parametrize("name", sorted(FORMATS))
def test_what_describes_tools_is_text(name: str, around: str) -> None:
    for description in DESCRIPTIONS:
        for indent in (None, 2):
            text = around.replace("{}", json.dumps(description, indent=indent))
            for places in ([], list(range(len(text)))):
                answer = read(create_free_parser(name, TOOLS), text, places)
                assert (answer.calls, answer.text) == ([], text)


@pytest.mark.parametrize("name", ["generic", "llama3", "qwen"])
def test_arguments_that_look_like_a_schema_are_those_of_a_tool_with_such_parameters(name: str) -> None:
    tools = {"add_type": ("type", "properties"), "get_weather": ("city", "type")}
    for call in (
        ("add_type", {"type": "object", "properties": {"x": {}}}),
        ("get_weather", {"type": "object", "city": "Paris"}),
        ("get_weather", {"city": {"type": "capital"}}),
        ("get_weather", {"title": "x"}),
    ):
        for key in ("parameters", "arguments"):
            assert called(read(create_free_parser(name, tools), _json(call, key))) == [call]


@pytest.mark.parametrize("name", ["generic", "llama3"])
def test_arguments_of_plain_json_come_as_they_are_written(name: str) -> None:
    pieces = create_free_parser(name, TOOLS).feed('{"name": "get_weather", "parameters": {"city": "Par')
    assert "".join(getattr(piece, "text", "") for piece in pieces) == '{"city": "Par'


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("generic", '{"type": "function", "function": {"name": "a", "arguments": {"x": 1}}}'),
        ("llama3", '{"type": "function", "name": "a", "parameters": {"x": 1}}'),
        ("pythonic", '<|python_start|>{"name": "a", "parameters": {"x": 1}}<|python_end|>'),
        ("llama4", '<|python_start|>[{"name": "a", "parameters": {"x": 1}}]<|python_end|>'),
        ("qwen", '<tool_call>{"type": "function", "function": {"name": "a", "arguments": "{\\"x\\": 1}"}}</tool_call>'),
        ("qwen", '[{"id": "1", "type": "function", "function": {"arguments": {"x": 1}, "name": "a"}}]'),
    ],
)
def test_a_call_as_clients_see_it_is_one(name: str, text: str) -> None:
    for places in ([], list(range(len(text)))):
        answer = read(create_free_parser(name, TOOLS), text, places)
        assert (called(answer), answer.text) == ([("a", {"x": 1})], "")


# --- unreadable ---------------------------------------------------------------------------------------------------------------

UNREADABLE = [
    (
        "pythonic",
        "[{}, b()]",
        ["a(x=y)", "a(x=1 y=2)", "a(x: str)", "a(x='a' if y else 1)", "a(1, 2, 3)", "a(x={1})", "a(x=b'1')"],
    ),
    ("gemma", "```tool_code\n{}\nb()\n```", ["a(x=open('f'))", "print(a(x=y))", "a(x={**y})"]),
    ("gemma", "<|tool_call>{}<tool_call|><|tool_call>call:b{}<tool_call|>", ["call:a{x}", "call:a{x:}", "call:a{x:[1}]}"]),
    ("qwen", "<tool_call>{}</tool_call>\n<tool_call>{B}</tool_call>", ['{"name": "a", "arguments": "x"}']),
    ("generic", "[{}, {B}]", ['{"name": "a", "arguments": 3}', '{"arguments": ["x"], "name": "a"}']),
]


@pytest.mark.parametrize(("name", "around", "calls"), UNREADABLE)
def test_a_call_that_cannot_be_read_is_text_and_costs_no_other(name: str, around: str, calls: list[str]) -> None:
    for call in calls:
        text = around.replace("{B}", _json(("b", {}))).replace("{}", call, 1)
        for places in ([], list(range(len(text)))):
            answer = read(create_parser(name, TOOLS), text, places)
            assert called(answer) == [("b", {})], text
            assert call.removeprefix("print(").rstrip(")") in answer.text


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("qwen", '<tool_call>{"name": "a", "arguments": {"x": 1,,}}</tool_call>'),
        ("mistral", '[TOOL_CALLS]a[ARGS]{"x": }'),
        ("deepseek", f'{CALL}a{SEP}{{"x": NaN}}{CALL_END}'),
        ("generic", '{"name": "a", "arguments": {"x": yes}}'),
    ],
)
def test_arguments_that_turn_out_to_be_no_json_are_not_whole(name: str, text: str) -> None:
    for places in ([], list(range(len(text)))):
        (call,) = read(create_parser(name, TOOLS), text, places).calls
        assert not call.is_whole


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("qwen", '<tool_call>{"name": "a",\n "arguments": {\n"x": "one\ntwo\t\\n\r"\n}}</tool_call>'),
        ("qwen", '<tool_call>{"arguments": {"x": "one\ntwo\t\\n\r"}, "name": "a"}</tool_call>'),
        ("llama3", '{"name": "a", "parameters": {"x": "one\ntwo\t\\n\r"}}'),
        ("mistral", '[TOOL_CALLS]a[ARGS]{"x": "one\ntwo\t\\n\r"}'),
    ],
)
def test_line_breaks_in_strings_are_escaped(name: str, text: str) -> None:
    """Models write them as they are, and no reader of JSON takes them so."""
    for places in ([], list(range(len(text)))):
        answer = read(create_parser(name, TOOLS), text, places)
        assert called(answer) == [("a", {"x": "one\ntwo\t\n\r"})]
        assert answer.calls[0].is_whole


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("mistral", '[TOOL_CALLS]nobody[ARGS]{"x": "[TOOL_CALLS]a[ARGS]{}"}'),
        ("deepseek", f'{CALL}nobody{SEP}{{"x": "{CALL}a{SEP}{{}}"}}{CALL_END}'),
        ("qwen", '<tool_call>{"name": "nobody", "arguments": {"x": "<tool_call>{}"}}</tool_call>'),
    ],
)
def test_nothing_inside_of_an_unknown_call_is_one(name: str, text: str) -> None:
    answer = read(create_parser(name, TOOLS), text)
    assert answer.calls == [] and text.startswith(answer.text)
