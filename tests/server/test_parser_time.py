"""Parsers of answers take time in proportion to the answer, whatever a model was made to write and however it comes."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from sglang.common.reasoning import FORMATS as REASONING
from sglang.srt.server.openai.answers import Answer
from sglang.srt.server.openai.blocks import Blocks
from sglang.srt.server.parsers.pieces import CallArguments, Parser, Reasoning, Text
from sglang.srt.server.parsers.reasoning import ReasoningParser
from sglang.srt.server.parsers.tool_calls import FORMATS, create_parser

pytestmark = pytest.mark.attack

SIZE = 32_000
FACTOR = 4
MAX_RATIO = 3.0
"""of the time per character of a text FACTOR times as long; quadratic would be FACTOR"""

MAKERS: dict[str, Callable[[], Parser]] = {name: lambda name=name: create_parser(name, ["f"]) for name in FORMATS}  # type: ignore[misc]
MAKERS["reasoning"] = lambda: ReasoningParser(REASONING["generic"], inside=True)
MAKERS["no reasoning"] = lambda: ReasoningParser(REASONING["generic"], inside=False)

HEADS = {"gemma": "<|tool_call>call:f{a:", "pythonic": "[f(a=", "qwen": '<tool_call>{"name":"f","arguments":{"a":"'}
HEADS |= {
    "generic": '{"arguments":{"a":',
    "deepseek": "<｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n",
    "mistral": "[TOOL_CALLS]",
}
UNITS = [
    *(
        "[",
        "{",
        " ",
        '"',
        "\\",
        "(",
        "<",
        "a",
        ": ",
        '{"a":',
        '{"name":',
        '{"name":"f","arguments":{',
        "print(",
        "[print(",
        "[f(",
        "[g(",
    ),
    *(
        "call:f{",
        "call:g{",
        "<escape>",
        '<|"|>',
        "```",
        "<tool_call>",
        "[TOOL_CALLS]",
        "<think>",
        "</thin",
        "<|tool_call>call:f{a:[}]}",
    ),
]


def seconds(make: Callable[[], Parser], text: str, step: int) -> float:
    """Processor time of reading the text in pieces of `step` characters, gathered as a choice and as blocks."""
    parser, answer, blocks = make(), Answer("generic"), Blocks()
    began = time.thread_time()
    for at in range(0, len(text), step):
        for piece in parser.feed(text[at : at + step]):
            answer.add(piece)
            list(blocks.add(piece))
    for piece in parser.finish():
        answer.add(piece)
    answer.message()
    return time.thread_time() - began


@pytest.mark.parametrize("name", MAKERS)
def test_time_is_in_proportion_to_the_answer(name: str) -> None:
    for unit in UNITS:
        for head in {"", HEADS.get(name, "")}:
            short = head + unit * (SIZE // FACTOR // len(unit) // 4)
            long = head + unit * (SIZE // len(unit) // 4)
            for step in (4, len(long)):
                for _ in range(4):  # the best of some: others use the machine too
                    ratio = seconds(MAKERS[name], long, step) / FACTOR / max(seconds(MAKERS[name], short, step), 0.0005)
                    if ratio < MAX_RATIO:
                        break
                assert ratio < MAX_RATIO, (unit, head, step)


@pytest.mark.parametrize(
    ("name", "unit", "head"),
    [
        ("gemma", "x:1,", "<|tool_call>call:f{a:"),
        ("gemma", "[", "<|tool_call>call:g{"),
        ("pythonic", "1,", "[f(a="),
        ("pythonic", "print(", "["),
        ("generic", "[", ""),
        ("generic", " ", "x"),
        ("qwen", "a", '<tool_call>{"arguments":"'),
        ("qwen", "a", '<tool_call>{"name": "f", "arguments":"'),
        ("llama3", "a", '{"name": "f", "parameters": {"type": "'),
        ("mistral", "a", '[TOOL_CALLS]f[ARGS]{"x": "'),
        ("pythonic", "a", "[f(x='"),
        ("reasoning", " ", "a"),
        ("no reasoning", " ", ""),
    ],
)
def test_long_answers_that_come_letter_by_letter(name: str, unit: str, head: str) -> None:
    """Where whatever is gathered was copied for every piece, this took minutes."""
    assert seconds(MAKERS[name], head + unit * (400_000 // len(unit)), 4) < 30


@pytest.mark.parametrize("closer", ["[}]}", "{]}}", "[}}", "[[}]]}", "}", "]", "a:[}]}", "[,}]}", "[{]}]}"])
def test_brackets_that_do_not_match_end(closer: str) -> None:
    parser, text = create_parser("gemma", ["f"]), "<|tool_call>call:f{a:" + closer + "<tool_call|>"
    pieces = [*parser.feed(text), *parser.finish()]
    assert "".join(piece.text for piece in pieces if isinstance(piece, Text)) == text


@pytest.mark.parametrize("step", [1, 3, 1000])
def test_gemma_calls_are_read_however_they_are_cut(step: int) -> None:
    text = 'a <|tool_call>call:f{s:<|"|>x}]<escape><|"|>,n:{k:[1,true,<escape>y<escape>]}}<tool_call|><|tool_call>call:f{}<tool_call|> b'
    parser = create_parser("gemma", ["f"])
    pieces = [piece for at in range(0, len(text), step) for piece in parser.feed(text[at : at + step])] + parser.finish()
    assert [p.text for p in pieces if isinstance(p, CallArguments)] == [
        '{"s": "x}]<escape>", "n": {"k": [1, true, "y"]}}',
        "{}",
    ]
    assert "".join(p.text for p in pieces if isinstance(p, Text)) == "a  b"


@pytest.mark.parametrize("step", [1, 2, 5, 100])
def test_white_space_of_reasoning_is_kept_however_it_comes(step: int) -> None:
    text = "\n\n <think> \n a   b\n\n\n c  </think>\n\n answer  "
    parser = ReasoningParser(REASONING["generic"], inside=False)
    pieces = [piece for at in range(0, len(text), step) for piece in parser.feed(text[at : at + step])] + parser.finish()
    assert "".join(p.text for p in pieces if isinstance(p, Reasoning)) == "a   b\n\n\n c"
    assert "".join(p.text for p in pieces if isinstance(p, Text)) == "answer  "
