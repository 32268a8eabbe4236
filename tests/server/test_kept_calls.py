"""A fault in one call loses no other call and no text, in every format; and answers that are a call in plain JSON."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang.srt.server.openai.answers import Answer
from sglang.srt.server.parsers.tool_calls import FORMATS, create_free_parser, create_parser
from tests.server.test_parsers import read

TOOLS = {"a": ("x", "y"), "b": (), "get_weather": ("city", "unit")}
CALLS, CALL = "<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>"
SEP, CALL_END, CALLS_END = "<｜tool▁sep｜>", "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>"


def _json(name: str, arguments: str, key: str = "arguments") -> str:
    return f'{{"name": "{name}", "{key}": {{{arguments}}}}}'


def _keywords(name: str) -> str:
    return f"{name}(x={{'k': [1, 2]}})"


_ARGUMENTS = '"x": {"k": [1, 2]}'
WAYS: dict[tuple[str, str], Callable[[list[str]], str]] = {
    ("qwen", "marks"): lambda names: "\n".join(f"<tool_call>\n{_json(n, _ARGUMENTS)}\n</tool_call>" for n in names),
    ("qwen", "one mark"): lambda names: f"<tool_call>{', '.join(_json(n, _ARGUMENTS) for n in names)}</tool_call>",
    ("mistral", "list"): lambda names: f"[TOOL_CALLS] [{', '.join(_json(n, _ARGUMENTS) for n in names)}]",
    ("mistral", "names"): lambda names: "".join(f"[TOOL_CALLS]{n}[ARGS]{{{_ARGUMENTS}}}" for n in names),
    ("llama3", "semicolons"): lambda names: "<|python_tag|>" + "; ".join(_json(n, _ARGUMENTS, "parameters") for n in names),
    ("llama3", "lines"): lambda names: "\n".join(_json(n, _ARGUMENTS, "parameters") for n in names),
    ("generic", "list"): lambda names: f"[{', '.join(_json(n, _ARGUMENTS) for n in names)}]",
    ("generic", "fence"): lambda names: "```json\n[" + ",\n ".join(_json(n, _ARGUMENTS) for n in names) + "]\n```",
    ("deepseek", "V3"): lambda names: (
        CALLS + "\n".join(f"{CALL}function{SEP}{n}\n```json\n{{{_ARGUMENTS}}}\n```{CALL_END}" for n in names) + CALLS_END
    ),
    ("deepseek", "V3.1"): lambda names: CALLS + "".join(f"{CALL}{n}{SEP}{{{_ARGUMENTS}}}{CALL_END}" for n in names) + CALLS_END,
    ("pythonic", "list"): lambda names: f"[{', '.join(map(_keywords, names))}]",
    ("pythonic", "marks"): lambda names: f"<|python_start|>[{', '.join(map(_keywords, names))}]<|python_end|>",
    ("gemma", "lines"): lambda names: "```tool_code\n" + "\n".join(map(_keywords, names)) + "\n```",
    ("gemma", "prints"): lambda names: "```tool_code\n" + "\n".join(f"print({_keywords(n)})" for n in names) + "\n```",
    ("gemma", "function"): lambda names: "".join(
        f"<start_function_call>call:{n}{{x:{{k:[1,2]}}}}<end_function_call>" for n in names
    ),
    ("gemma", "4"): lambda names: "".join(f"<|tool_call>call:{n}{{x:{{k:[1,2]}}}}<tool_call|>" for n in names),
}


def called(answer: Answer) -> list[tuple[str, object]]:
    return [(call.name, json.loads(call.arguments)) for call in answer.calls]


@pytest.mark.parametrize("names", [["a", "nope", "b"], ["nope", "a", "b"], ["a", "b", "nope"], ["nope", "a", "none", "b"]])
@pytest.mark.parametrize("way", WAYS, ids=" ".join)
def test_an_unknown_name_loses_no_call_beside_it(way: tuple[str, str], names: list[str]) -> None:
    for cuts in ([], list(range(400))):
        answer = read(create_parser(way[0], TOOLS), WAYS[way](names), cuts)
        assert called(answer) == [("a", {"x": {"k": [1, 2]}}), ("b", {"x": {"k": [1, 2]}})]
        assert all(call.is_whole for call in answer.calls)
        assert "nope" in answer.text, "what is no call is told as text"


@pytest.mark.parametrize("way", WAYS, ids=" ".join)
def test_text_around_calls_keeps_its_white_space(way: tuple[str, str]) -> None:
    calls = WAYS[way](["a", "b"])
    for before, after, content in (
        ("One.\n\n", "\n\nTwo.\n", "One.\n\n\n\nTwo."),
        ("One. ", " Two.", "One.  Two."),
        ("\n", "\nTwo.", "Two."),
        (" One.\n", "\n", " One."),
    ):
        answer = read(create_parser(way[0], TOOLS), before + calls + after)
        assert ([name for name, _ in called(answer)], answer.text) == (["a", "b"], content)


@settings(max_examples=60, deadline=None)
@given(
    way=st.sampled_from(sorted(WAYS)),
    texts=st.lists(st.text(alphabet="pq. \n", max_size=6), min_size=3, max_size=3),
    cuts=st.lists(st.integers(0, 400), max_size=40),
)
def test_content_is_the_answer_without_its_calls(way: tuple[str, str], texts: list[str], cuts: list[int]) -> None:
    first, second = WAYS[way](["a"]), WAYS[way](["b"])
    answer = read(create_parser(way[0], TOOLS), f"{texts[0]}{first}{texts[1]}{second}{texts[2]}", cuts)
    assert [name for name, _ in called(answer)] == ["a", "b"]
    if texts[1].strip():
        assert answer.text.strip() == "".join(texts).strip()
    else:  # white space between two calls belongs to them
        assert answer.text.strip() == (texts[0] + texts[2]).strip()


@pytest.mark.parametrize(
    ("source", "arguments"),
    [
        ("'Paris', 'C'", {"city": "Paris", "unit": "C"}),
        ("'Paris', unit='C'", {"city": "Paris", "unit": "C"}),
        ("[1, (2, 3)]", {"city": [1, [2, 3]]}),
        ("**{'city': 'Paris'}", {"city": "Paris"}),
        ("-1.5, None", {"city": -1.5, "unit": None}),
    ],
)
@pytest.mark.parametrize(("name", "around"), [("pythonic", "[{}]"), ("gemma", "```tool_code\n{}\n```")])
def test_values_without_a_name_are_those_of_the_first_parameters(
    name: str, around: str, source: str, arguments: object
) -> None:
    answer = read(create_parser(name, TOOLS), around.format(f"get_weather({source})"))
    assert called(answer) == [("get_weather", arguments)]


@pytest.mark.parametrize("source", ["'a', 'b', 'c'", "'a', city='b'", "*[1]", "**x", "city=a+1", "1 2"])
def test_a_call_with_arguments_that_python_would_refuse_is_text(source: str) -> None:
    for cuts in ([], list(range(100))):
        answer = read(create_parser("pythonic", TOOLS), f"[get_weather({source}), b()]", cuts)
        assert called(answer) == [("b", {})]
        assert f"get_weather({source})" in answer.text


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "qwen",
            f'<tool_call>\n{{"name": "a", "arguments": {{"x": [1}}\n</tool_call>\n<tool_call>{_json("b", "")}</tool_call>',
        ),
        ("qwen", f'<tool_call>\n{{"name": "a", "arguments": {{}}\n</tool_call>\n<tool_call>{_json("b", "")}</tool_call>'),
        (
            "qwen",
            f'<tool_call>{{"name": "a", "why": "x", "arguments": {{}}}}</tool_call><tool_call>{_json("b", "")}</tool_call>',
        ),
        (
            "qwen",
            f'<tool_call>{{"why": "x", "name": "a", "arguments": {{}}}}</tool_call><tool_call>{_json("b", "")}</tool_call>',
        ),
        ("mistral", f"[TOOL_CALLS] [{_json('a', '')}] and then [TOOL_CALLS] oops [TOOL_CALLS]b[ARGS]{{}}"),
        ("deepseek", f"{CALL}a{SEP}{{[1{CALL_END}{CALL}b{SEP}{{}}{CALL_END}"),
        ("generic", f'{{"name": "Bob" is one. {_json("a", "")} {_json("b", "")}'),
        ("llama3", f'{{"name": "Bob", "friend": {_json("a", "")}}} {_json("a", "")} {_json("b", "")}'),
    ],
)
def test_a_broken_call_ends_before_the_next(name: str, text: str) -> None:
    answer = read(create_parser(name, TOOLS), text)
    assert [call.name for call in answer.calls] == ["a", "b"]
    assert answer.calls[1].is_whole and json.loads(answer.calls[1].arguments) == {}


A, B = _json("a", '"x": 1'), _json("b", "")
LISTS = {
    ("qwen", "list"): ("<tool_call>[{}]</tool_call>", ", "),
    ("qwen", "marks"): ("<tool_call>{}</tool_call>", "</tool_call>\n<tool_call>"),
    ("mistral", "list"): ("[TOOL_CALLS] [{}]", ", "),
    ("generic", "fence"): ("```json\n[{}]\n```", ",\n"),
    ("generic", "lines"): ("{}", "\n"),
    ("llama3", "semicolons"): ("<|python_tag|>{}", "; "),
}
OTHERS = [
    *("", "1", "1.5", '"x"', "null", "true", "{}", "[]", '{"foo": 1}', '{"name": 3}', '{"name": ["a"]}', '{"arguments": {}}'),
    *("{'name': 'nope'}", '{"name": "nope"}', '{"name": "nope", "arguments": {}', '{"name": "nope" "arguments": {}}'),
    '{"name": "nope", "arguments": {"q": "a]b}"}}',
    '{"type": "function", "function": {"name": "nope", "arguments": {}}}',
]


@pytest.mark.parametrize("way", LISTS, ids=" ".join)
def test_what_is_no_call_costs_none_of_those_beside_it(way: tuple[str, str]) -> None:
    around, comma = LISTS[way]
    for other in OTHERS:
        text = around.replace("{}", comma.join([A, other, B]))
        for cuts in ([], list(range(200))):
            answer = read(create_parser(way[0], TOOLS), text, cuts)
            assert called(answer) == [("a", {"x": 1}), ("b", {})], other
            assert other.strip("[]").rstrip("}") in answer.text, "and it is told"


@pytest.mark.parametrize(
    "other", ["1", "'x'", "None", "nope()", "nope (1)", "x=1", "a.b.c", "f'x'", "lambda: 0", "nope(x='it(s')"]
)
@pytest.mark.parametrize(("name", "around", "comma"), [("pythonic", "[{}]", ", "), ("gemma", "```tool_code\n{}\n```", "\n")])
def test_what_is_no_call_in_python(name: str, around: str, comma: str, other: str) -> None:
    answer = read(create_parser(name, TOOLS), around.format(comma.join(["a(x=1)", other, "b()"])))
    assert called(answer) == [("a", {"x": 1}), ("b", {})]
    assert other in answer.text


@pytest.mark.parametrize("text", ["{} Done. [x](y), {{1}}", "{}: it is [1, 2], or 3"])
@pytest.mark.parametrize("way", WAYS, ids=" ".join)
def test_text_after_a_list_is_text(way: tuple[str, str], text: str) -> None:
    answer = read(create_parser(way[0], TOOLS), text.format(WAYS[way](["a"])))
    assert answer.text == text.format("").strip()


@pytest.mark.parametrize("way", WAYS, ids=" ".join)
def test_a_call_is_whole_when_its_arguments_are(way: tuple[str, str]) -> None:
    text = WAYS[way](["a"])
    for end in range(len(text) + 1):
        for call in read(create_parser(way[0], TOOLS), text[:end]).calls:
            if call.is_whole:
                assert json.loads(call.arguments) == {"x": {"k": [1, 2]}}
            else:
                assert end < len(text.rstrip("`]>})\n")) + 3


# --- answers that are a call --------------------------------------------------------------------------------------------------

BARE = [
    _json("a", '"x": 1'),
    f"\n{_json('a', '')}\n",
    f"```json\n{_json('a', '')}\n```",
    f"```\n{_json('a', '', 'parameters')}\n```\n",
    f"[{_json('a', '')}]",
]


@pytest.mark.parametrize("name", sorted(FORMATS))
@pytest.mark.parametrize("text", BARE)
def test_a_call_in_plain_json_is_a_call_in_every_format(name: str, text: str) -> None:
    for cuts in ([], list(range(200))):
        answer = read(create_free_parser(name, TOOLS), text, cuts)
        assert ([call.name for call in answer.calls], answer.text) == (["a"], "")


def test_several_calls_in_plain_json() -> None:
    text = f"{_json('a', '')}\n{_json('b', '')}"
    assert [call.name for call in read(create_free_parser("qwen", TOOLS), text).calls] == ["a", "b"]


@pytest.mark.parametrize(
    "text",
    [
        f"So: {_json('a', '')}",
        f"{_json('a', '')} is how to call it.",
        f"```json\n{_json('a', '')}\n```\nis how to call it.",
        _json("nobody", ""),
        f"[{_json('a', '')}, {_json('nobody', '')}]",
        '{"answer": 1}',
        f'{{"call": {_json("a", "")}}}',
        _json("a", "")[:-2],
        _json("a", '"x": "cut')[:-2],
        "[1, 2]",
        "```python\nprint(1)\n```",
        "",
        " \n",
    ],
)
@pytest.mark.parametrize("name", ["qwen", "deepseek", "mistral"])
def test_other_json_stays_as_it_is(name: str, text: str) -> None:
    for cuts in ([], list(range(200))):
        answer = read(create_free_parser(name, TOOLS), text, cuts)
        assert (answer.calls, answer.text) == ([], text)


@pytest.mark.parametrize("name", ["generic", "llama3"])
def test_json_that_is_no_call_is_not_held_back(name: str) -> None:
    parser = create_parser(name, TOOLS)
    pieces = parser.feed('{"answer": "It is ')
    assert "".join(getattr(piece, "text", "") for piece in pieces) == '{"answer": "It is'


def test_the_models_own_form_counts_beside_it() -> None:
    text = f"<tool_call>\n{_json('a', '')}\n</tool_call>"
    assert [call.name for call in read(create_free_parser("qwen", TOOLS), text).calls] == ["a"]
    parser = create_free_parser("qwen", TOOLS)
    assert parser.feed("Hello") and parser.feed(" there"), "text is not held back"


@pytest.mark.parametrize("name", ["qwen", "mistral", "generic", "llama3"])
@pytest.mark.parametrize(
    "text",
    [
        '[{"name": "a", "description": "Does a."}, {"name": "b", "description": "Does b."}]',
        '{"name": "a", "description": "Does a.", "parameters": {"type": "object", "properties": {}}}',
        '```json\n{"name": "a", "age": 3}\n```',
    ],
)
def test_what_describes_a_tool_does_not_call_it(name: str, text: str) -> None:
    for cuts in ([], list(range(200))):
        answer = read(create_free_parser(name, TOOLS), text, cuts)
        assert (answer.calls, answer.text) == ([], text)


@pytest.mark.parametrize("name", ["qwen", "generic", "llama3"])
def test_a_name_alone_is_a_call(name: str) -> None:
    assert called(read(create_free_parser(name, TOOLS), '{"name": "b"}')) == [("b", {})]


def test_arguments_by_two_names_are_the_first() -> None:
    text = '<tool_call>{"name": "a", "arguments": {"x": 1}, "parameters": {"x": 2}}</tool_call>'
    for cuts in ([], list(range(100))):
        answer = read(create_parser("qwen", TOOLS), text, cuts)
        assert (called(answer), answer.text) == ([("a", {"x": 1})], "")


@pytest.mark.parametrize("arguments", ['""', '"  "', "null", '"null"', "{}", '"{}"'])
def test_no_arguments_by_whatever_name(arguments: str) -> None:
    for text in (f'{{"name": "b", "arguments": {arguments}}}', f'{{"arguments": {arguments}, "name": "b"}}'):
        answer = read(create_free_parser("qwen", TOOLS), f"<tool_call>{text}</tool_call>")
        assert (called(answer), answer.text) == ([("b", {})], "")


def test_a_tool_may_have_the_name_that_deepseek_puts_before_names() -> None:
    for text in (f"{CALL}function{SEP}{{}}{CALL_END}", f"{CALL}function{SEP}function\n```json\n{{}}\n```{CALL_END}"):
        assert called(read(create_parser("deepseek", {"function": ()}), CALLS + text + CALLS_END)) == [("function", {})]


@pytest.mark.parametrize("key", ["type", "properties"])
def test_parameters_may_have_the_names_of_schemas_words(key: str) -> None:
    """Where the arguments come first, they are looked at as a whole."""
    arguments = {"type": "object", "n": 1} if key == "type" else {"properties": {"n": 1}}
    for tools, names in (({"make": (key, "n")}, ["make"]), ({"make": ("n",)}, [])):
        for text in (
            json.dumps({"arguments": arguments, "name": "make"}),
            json.dumps({"name": "make", "arguments": arguments}),
        ):
            answer = read(create_free_parser("generic", tools), text)
            assert ([call.name for call in answer.calls], answer.text) == (names, "" if names else text)


def test_numbers_that_json_has_not_are_none() -> None:
    for name, text in (
        ("pythonic", "[a(x=1e999)]"),
        ("generic", '{"arguments": {"x": NaN}, "name": "a"}'),
        ("qwen", '<tool_call>{"name": "a", "arguments": "{\\"x\\": Infinity}"}</tool_call>'),
    ):
        answer = read(create_parser(name, TOOLS), text)
        assert (answer.calls, answer.text) == ([], text)
    answer = read(create_parser("gemma", TOOLS), "<|tool_call>call:a{x:NaN,y:-1e999}<tool_call|>")
    assert called(answer) == [("a", {"x": "NaN", "y": "-1e999"})], "words may stand there without quotes"


@pytest.mark.parametrize("key", ["tool_calls", "tool_call", "function_calls", "function_call"])
@pytest.mark.parametrize("name", ["generic", "llama3", "qwen"])
def test_calls_in_an_object_of_calls(name: str, key: str) -> None:
    a, b = _json("a", '"x": 1'), '{"id": "1", "type": "function", "function": {"name": "b", "arguments": "{}"}}'
    for value, names in ((f"[{a}, {b}]", ["a", "b"]), (a, ["a"])):
        for text in (f'{{"{key}": {value}}}', f'```json\n{{\n "{key}" : {value}\n}}\n```'):
            for cuts in ([], list(range(len(text)))):
                answer = read(create_free_parser(name, TOOLS), text, cuts)
                assert ([call.name for call in answer.calls], answer.text) == (names, "")


@pytest.mark.parametrize(
    "text",
    [
        f'{{"steps": [{_json("a", "")}]}}',
        f'So: {{"call": {_json("a", "")}, "n": 1}}.',
        f'{{"tool_calls": "none", "last": {_json("a", "")}}}',
        f'{{"tool_calls": [1, {_json("a", "")}]}}',
        '{"tool_calls": []}',
        '{"tool_calls"',
        '{"tool_calls": ',
    ],
)
@pytest.mark.parametrize("name", ["generic", "llama3"])
def test_what_resembles_a_call_within_other_json_is_none(name: str, text: str) -> None:
    for cuts in ([], list(range(len(text)))):
        answer = read(create_free_parser(name, TOOLS), text, cuts)
        assert (answer.calls, answer.text) == ([], text)
    answer = read(create_free_parser(name, TOOLS), f'{{"plan": {{"b": [1]}}}}\n{_json("b", "")}')
    assert ([call.name for call in answer.calls], answer.text) == (["b"], '{"plan": {"b": [1]}}')
