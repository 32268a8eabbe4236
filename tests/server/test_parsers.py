"""Answers taken apart: every format, whole and in pieces of every size."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang.srt.errors import ConfigError
from sglang.srt.server.openai.answers import Answer
from sglang.srt.server.parsers.answer import AnswerParser
from sglang.srt.server.parsers.pieces import CallBegin, Parser, Reasoning
from sglang.srt.server.parsers.reasoning import ReasoningParser, opens_reasoning, reasoning_format, starts_inside
from sglang.srt.server.parsers.tool_calls import FORMATS, create_free_parser, create_parser, format_of_template

TOOLS = ["f", "g", "get_weather"]
DS = "<｜tool▁calls▁begin｜>"
ONE = [("f", '{"x": 1}')]
TWO = [("f", '{"x": 1}'), ("g", "{}")]


def read(parser: Parser, text: str, cuts: list[int] | None = None) -> Answer:
    answer = Answer("")
    places = [0, *sorted({c % (len(text) + 1) for c in cuts or []}), len(text)]
    for begin, end in zip(places, places[1:]):  # noqa: B905
        for piece in parser.feed(text[begin:end]):
            answer.add(piece)
    for piece in parser.finish():
        answer.add(piece)
    return answer


CASES = [
    (
        "qwen",
        'Let me see.\n<tool_call>\n{"name": "f", "arguments": {"x": "a}\\"b"}}\n</tool_call>\n<tool_call>\n'
        '{"name": "g", "arguments": {}}\n</tool_call>',
        "Let me see.",
        [("f", '{"x": "a}\\"b"}'), ("g", "{}")],
    ),
    ("qwen", '<tool_call>\n{"arguments": {"x": 1}, "name": "f"}\n</tool_call> bye', "bye", ONE),
    ("qwen", '<tool_call>{"name": "nobody", "arguments": {}}</tool_call> tail', None, []),
    ("qwen", 'no call < here <tool> {"name": "f"}', None, []),
    ("qwen", '<tool_call>\n{"name": "f", "arguments": {"x": 1', "", [("f", '{"x": 1')]),
    ("qwen", '<tool_call>\n{"name": "f"', "", [("f", "")]),
    ("qwen", '<tool_call>\n{"name": "', None, []),
    ("generic", '{"name": "f", "arguments": {"x": 1}}', "", ONE),
    ("generic", '```json\n[{"name": "f", "arguments": {"x": 1}}, {"name": "g", "arguments": null}]\n```\nDone.', "Done.", TWO),
    ("generic", 'Look: {"name": "Bob", "age": 3} and [1, 2] ```python\nx={}\n```', None, []),
    ("generic", '{"name": "f", "arguments": "{\\"x\\": 1}"}', "", ONE),
    ("generic", " [", None, []),
    ("llama3", '<|python_tag|>{"name": "f", "parameters": {"x": 1}}; {"name": "g", "parameters": {}}', "", TWO),
    ("llama3", '{"name": "f", "parameters": {"x": 1}}<|eom_id|>', "", ONE),
    (
        "mistral",
        'hi[TOOL_CALLS] [{"name": "f", "arguments": {"x": 1}}, {"name": "g", "arguments": {}, "id": "abcdefghi"}]',
        "hi",
        TWO,
    ),
    ("mistral", '[TOOL_CALLS]f[ARGS]{"x": 1}[TOOL_CALLS]g[CALL_ID]123456789[ARGS]{}', "", TWO),
    ("mistral", '[TOOL_CALLS]nobody[ARGS]{"x": 1} end', None, []),
    (
        "deepseek",
        f"ok{DS}<｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n" + '{"x": 1}\n```<｜tool▁call▁end｜>\n'
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>g\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        "ok",
        TWO,
    ),
    ("deepseek", DS + '<｜tool▁call▁begin｜>f<｜tool▁sep｜>{"x": 1}<｜tool▁call▁end｜><｜tool▁calls▁end｜>', "", ONE),
    (
        "pythonic",
        '[f(x=1, y="a)\\"b", z=[1, {"k": None}]), g()]',
        "",
        [("f", '{"x": 1, "y": "a)\\"b", "z": [1, {"k": null}]}'), ("g", "{}")],
    ),
    ("pythonic", "<|python_start|>[f(x=1)]<|python_end|>", "", ONE),
    ("pythonic", "[1, 2] is a list, f(x) too", None, []),
    ("gemma", 'Sure.\n```tool_code\nprint(f(x="a"))\n```', "Sure.", [("f", '{"x": "a"}')]),
    (
        "gemma",
        "<start_function_call>call:f{location:<escape>Lon}don<escape>,n:3}<end_function_call>",
        "",
        [("f", '{"location": "Lon}don", "n": 3}')],
    ),
    (
        "gemma",
        '<|tool_call>call:f{a:<|"|>x<|"|>,o:{k:[1,true,<|"|>q<|"|>]}}<tool_call|><|tool_call>call:g{}<tool_call|>',
        "",
        [("f", '{"a": "x", "o": {"k": [1, true, "q"]}}'), ("g", "{}")],
    ),
]


@pytest.mark.parametrize(("name", "text", "content", "calls"), CASES)
def test_every_format_is_read(name: str, text: str, content: str | None, calls: list[tuple[str, str]]) -> None:
    answer = read(create_parser(name, TOOLS), text)
    assert [(call.name, call.arguments) for call in answer.calls] == calls
    assert answer.text == (text if content is None else content)


@settings(max_examples=60, deadline=None)
@given(case=st.sampled_from(CASES), cuts=st.lists(st.integers(0, 400), max_size=60))
def test_cuts_change_nothing(case: tuple[str, str, str | None, list[tuple[str, str]]], cuts: list[int]) -> None:
    name, text, _, _ = case
    whole, cut = read(create_parser(name, TOOLS), text), read(create_parser(name, TOOLS), text, cuts)
    assert cut.text == whole.text
    assert [(c.name, c.arguments) for c in cut.calls] == [(c.name, c.arguments) for c in whole.calls]


@settings(max_examples=100, deadline=None)
@given(name=st.sampled_from(sorted(FORMATS)), text=st.text(alphabet="{}[]()\"'\\,:=<> \nfgx1`", max_size=80))
def test_text_that_holds_no_call_comes_out_as_it_is(name: str, text: str) -> None:
    answer = read(create_parser(name, TOOLS), text)
    if not answer.calls:
        assert answer.text == text


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [("One ", " two", "One  two"), ("One", "\n\ntwo", "One\n\ntwo"), ("One ", "two", "One two"), ("One\n", "\n", "One"), ("", " two", "two")],
)  # fmt: skip
def test_white_space_beside_calls_is_kept_where_text_is_on_both_sides(before: str, after: str, text: str) -> None:
    call = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    assert read(create_parser("qwen", TOOLS), before + call + after).text == text


@pytest.mark.parametrize(("others", "calls"), [([], ["f"]), (["g"], ["f", "g"])])
@pytest.mark.parametrize("end", ["", " And so on."])
def test_an_unknown_tool_among_calls_is_text_without_the_brackets_of_the_list(
    others: list[str], calls: list[str], end: str
) -> None:
    written = [json.dumps({"name": name, "arguments": {}}) for name in ("f", "nope", *others)]
    answer = read(create_parser("mistral", TOOLS), f"[TOOL_CALLS] [{', '.join(written)}]{end}")
    assert [call.name for call in answer.calls] == calls
    assert answer.text == written[1] + end


def test_the_name_comes_before_the_arguments_are_complete() -> None:
    parser = create_parser("qwen", TOOLS)
    pieces = parser.feed('<tool_call>\n{"name": "f", "arguments": {"city": "Par')
    assert pieces[0] == CallBegin(0, "f")
    assert "".join(getattr(piece, "text", "") for piece in pieces[1:]) == '{"city": "Par'


def test_calls_beyond_the_limit_are_left_out() -> None:
    answer = read(
        create_parser("generic", TOOLS, max_calls=1), '[{"name": "f", "arguments": {}}, {"name": "g", "arguments": {}}]'
    )
    assert [call.name for call in answer.calls] == ["f"]


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_hostile_answers_take_time_in_proportion(name: str) -> None:
    began = time.monotonic()
    for unit in ('{"arguments": ', "[", "f(", '<tool_call>{"name": "f"', "call:", "<", " "):
        read(create_parser(name, TOOLS), unit * (40_000 // len(unit)))
    assert time.monotonic() - began < 60


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ '<tool_call>' }} {{ tools }}", "qwen"),
        ("[AVAILABLE_TOOLS] [TOOL_CALLS]", "mistral"),
        ("Environment: ipython <|python_tag|>", "llama3"),
        ("<｜tool▁calls▁begin｜>", "deepseek"),
        ("<start_function_call>", "gemma"),
        ("{{ messages }}", "generic"),
    ],
)
def test_templates_give_their_format_away(template: str, expected: str) -> None:
    assert format_of_template(template) == expected


# --- reasoning ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "inside", "text", "reasoning", "rest"),
    [
        ("qwen3", False, "<think>\nhm\n</think>\n\nyes <think>", "hm", "yes <think>"),
        ("qwen3", False, "yes", "", "yes"),
        ("deepseek-r1", True, "hm\n</think>\n\n yes", "hm", "yes"),
        ("deepseek-r1", True, "<think>\nhm", "hm", ""),
        ("generic", False, "<reasoning>a</think></reasoning>b", "a</think>", "b"),
        ("kimi", False, "◁think▷a◁/think▷b", "a", "b"),
        ("<<,>>", False, "<<a>>b", "a", "b"),
    ],
)
def test_reasoning_is_told_from_answers(name: str, inside: bool, text: str, reasoning: str, rest: str) -> None:
    for step in (1, 2, 5, 100):
        answer = read(ReasoningParser(reasoning_format(name), inside), text, list(range(0, len(text), step)))
        assert (answer.reasoning, answer.text) == (reasoning, rest)


def test_the_prompt_says_whether_reasoning_has_begun() -> None:
    qwen, deepseek = reasoning_format("qwen3"), reasoning_format("deepseek-r1")
    assert starts_inside(qwen, "assistant\n<think>\n")
    assert not starts_inside(qwen, "assistant\n")
    assert opens_reasoning(qwen, "assistant\n")
    assert not opens_reasoning(qwen, "<think>\n\n</think>\n\n")
    assert starts_inside(deepseek, "<｜Assistant｜>")
    assert not starts_inside(deepseek, "<｜Assistant｜><think>\n\n</think>\n\n")


def test_calls_in_reasoning_are_reasoning() -> None:
    calls = create_parser("qwen", TOOLS)
    parser = AnswerParser(ReasoningParser(reasoning_format("qwen3"), False), calls)
    call = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    answer = read(parser, f"<think>maybe {call}</think>{call}")
    assert answer.reasoning == f"maybe {call}"
    assert len(answer.calls) == 1


def test_held_reasoning_comes_in_one_piece() -> None:
    parser = AnswerParser(ReasoningParser(reasoning_format("qwen3"), False), None, hold_reasoning=True)
    pieces = [piece for char in "<think>a b</think>c" for piece in parser.feed(char)] + parser.finish()
    assert [getattr(piece, "text", None) for piece in pieces] == ["a b", "c"]
    for text in ("<think>a b", "<think>a b\n</think>"):  # an answer that the limit cuts, or that is nothing but reasoning
        parser = AnswerParser(ReasoningParser(reasoning_format("qwen3"), False), None, hold_reasoning=True)
        assert [*(piece for char in text for piece in parser.feed(char)), *parser.finish()] == [Reasoning("a b")]


@pytest.mark.parametrize("make", [lambda: create_parser("klingon", TOOLS), lambda: reasoning_format("klingon")])
def test_unknown_names_are_errors_with_those_that_are(make: object) -> None:
    with pytest.raises(ConfigError, match="there are"):
        make()  # type: ignore[operator]


CALL = '{"name": "f", "arguments": {"x": 1}}'
DEBRIS: dict[str, tuple[str, ...]] = {
    "qwen": (f"<tool_call>\n{CALL}@\n</tool_call>", f"<tool_call>\n{CALL}\n@</tool_call>", f"<tool_call>{CALL}</tool_call>\n@"),
    "generic": (f"{CALL}@", f"```json\n{CALL}@\n```", f"```json\n{CALL}\n```@", f"[{CALL}@]", f"[{CALL}]@"),
    "llama3": ('<|python_tag|>{"name": "f", "parameters": {"x": 1}}@<|eom_id|>', f"{CALL}@"),
    "mistral": (f"[TOOL_CALLS] [{CALL}@]", f"[TOOL_CALLS] [{CALL}]@", '[TOOL_CALLS]f[ARGS]{"x": 1}@'),
    "deepseek": (
        f'{DS}<｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{{"x": 1}}@\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>@',
        f'{DS}<｜tool▁call▁begin｜>f<｜tool▁sep｜>{{"x": 1}}@<｜tool▁call▁end｜>',
    ),
    "kimi_k2": (
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>"
        '{"x": 1}@<|tool_call_end|>@<|tool_calls_section_end|>@',
    ),
    "functionary": ('<function=f>{"x": 1}@</function>@',),
    "qwen3_coder": (
        "<tool_call>\n<function=f>\n<parameter=x>\n1\n</parameter>@\n</function>@\n</tool_call>@",
        "<function=f>\n<parameter=x>1</parameter>\n</function>\n</tool_call>\n</tool_call>",
    ),
    "glm45": (
        "<tool_call>f\n<arg_key>x</arg_key>\n<arg_value>1</arg_value>@\n</tool_call>@",
        "<tool_call>f<arg_key>x</arg_key><arg_value>1</arg_value></tool_call></tool_call>\n",
    ),
    "minimax_m2": (
        '<minimax:tool_call>\n<invoke name="f">\n<parameter name="x">1</parameter>@\n</invoke>@\n</minimax:tool_call>@',
    ),
    "harmony": ('<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"x": 1}@<|call|>',),
    "pythonic": ("[f(x=1)@]", "[f(x=1)]@", "<|python_start|>[f(x=1)@]<|python_end|>@"),
    "gemma": ("```tool_code\nf(x=1)@\n```", "```tool_code\nf(x=1)\n```@"),
}


@pytest.mark.parametrize("brackets", ["}", "}}", "\n}", "]", "}]", "}\n}\n"])
@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in DEBRIS.items() for text in texts])
def test_brackets_too_many_are_no_content(name: str, text: str, brackets: str) -> None:
    """Small models close once more than they opened. What follows is content again, brackets and all."""
    assert DEBRIS.keys() == FORMATS.keys() - {"none"}
    said = text.replace("@", brackets)
    for tail in ("", "\n\nSo {a} [b]."):
        for cuts in ([], list(range(len(said + tail)))):
            for parser in (create_parser(name, {"f": {"x": {"type": "integer"}}}), create_free_parser(name, {"f": {"x": {}}})):
                answer = read(parser, said + tail, cuts)
                assert [(call.name, call.arguments) for call in answer.calls] == ONE
                assert answer.text.strip() == tail.strip()
