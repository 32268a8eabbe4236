"""Tools and reasoning in chats, from the body to the chunks. What the model says is given; what it may say is checked by the
grammar engine."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx
import pytest

from sglang.srt.config import GrammarOptions
from sglang.srt.errors import GrammarError
from sglang.srt.messages import TokenizedReq
from sglang.srt.sampling_params import SamplingParams
from sglang.srt.scheduler.grammar.engines.llguidance_backend import LLGuidanceBackend
from sglang.srt.server.openai.prompts import parse_messages
from sglang.srt.server.openai.tools import call_id, plan_tools
from sglang.srt.server.parsers.pieces import CallArguments, CallBegin, Text
from sglang.srt.server.parsers.tool_calls import FORMATS, create_parser
from sglang.srt.server.tokenization.chat_template import ChatTemplate
from sglang.srt.server.tokenization.tokenizer import Tokenizer
from tests.server.conftest import MakeStand, Stand
from tests.server.http_tools import client_of, events_of

UNIT = {"$defs": {"U": {"enum": ["C", "F"]}}}
WEATHER = {"city": {"type": "string"}, "unit": {"$ref": "#/$defs/U"}}
TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Weather of a city",
            "parameters": {"type": "object", "properties": WEATHER, "required": ["city", "unit"], **UNIT},
        },
    },
    {"type": "function", "function": {"name": "now"}},
]
NAMED = {"type": "function", "function": {"name": "now"}}
HELLO = [{"role": "user", "content": "The quick brown fox"}]
CALL = '{"name": "get_weather", "arguments": {"city": "Paris", "unit": "C"}}'
ARGUMENTS = '{"city": "Paris", "unit": "C"}'


@pytest.fixture
def stand(make_stand: MakeStand) -> Stand:
    return make_stand(info={"context_len": 2048})


def says(stand: Stand, text: str) -> None:
    """Lets the scheduler answer with `text`."""
    tokenizer = stand.manager.need_tokenizer()
    ids = [*tokenizer.encode(text, add_special_tokens=False), min(tokenizer.vocabulary.eos_token_ids)]
    stand.scheduler.next_of = lambda req, i: ids[i]


async def chat(stand: Stand, **body: Any) -> httpx.Response:
    async with client_of(stand) as client:
        return await client.post("/v1/chat/completions", json={"messages": HELLO, **body})


def received(stand: Stand) -> TokenizedReq:
    request = stand.scheduler.received[-1]
    assert isinstance(request, TokenizedReq)
    return request


def prompt_of(stand: Stand) -> str:
    return stand.manager.need_tokenizer().decode(received(stand).input_ids, skip_special_tokens=False)


async def test_a_call_is_separated_from_content(stand: Stand) -> None:
    says(stand, f"Let me look. {CALL}")
    choice = (await chat(stand, tools=TOOLS)).json()["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] == "Let me look."
    (call,) = choice["message"]["tool_calls"]
    assert (call["type"], call["index"], call["function"]) == ("function", 0, {"name": "get_weather", "arguments": ARGUMENTS})
    assert call["id"].startswith("call_")
    assert len(call["id"]) == 29


async def test_content_is_null_when_there_are_only_calls(stand: Stand) -> None:
    says(stand, f"[{CALL}, {CALL}]")
    message = (await chat(stand, tools=TOOLS)).json()["choices"][0]["message"]
    assert message["content"] is None
    assert [call["index"] for call in message["tool_calls"]] == [0, 1]
    assert len({call["id"] for call in message["tool_calls"]}) == 2


async def test_an_answer_of_nothing_is_an_empty_text(stand: Stand) -> None:
    says(stand, "")
    for tools in (None, TOOLS):
        message = (await chat(stand, tools=tools)).json()["choices"][0]["message"]
        assert (message["content"], message["tool_calls"]) == ("", None)


async def test_calls_are_streamed_name_first_then_arguments(stand: Stand) -> None:
    says(stand, f"Well. [{CALL}, {CALL}]")
    response = await chat(stand, tools=TOOLS, stream=True)
    choices = [json.loads(event)["choices"][0] for event in events_of(response.text)[:-1]]
    deltas = [choice["delta"] for choice in choices]
    assert deltas[0] == {"role": "assistant", "content": "", "reasoning_content": None, "tool_calls": None}
    assert "".join(d.get("content", "") for d in deltas) == "Well."
    for index in (0, 1):
        mine = [call for d in deltas for call in d["tool_calls"] or () if call["index"] == index]
        assert mine[0]["function"] == {"name": "get_weather", "arguments": ""}
        assert mine[0]["id"].startswith("call_")
        assert all("id" not in call and "name" not in call["function"] for call in mine[1:])
        assert len(mine) > 3, "arguments come as they are generated"
        assert "".join(call["function"]["arguments"] for call in mine) == ARGUMENTS
    assert [c["finish_reason"] for c in choices if c["finish_reason"]] == ["tool_calls"]


async def test_a_call_cut_by_length_says_length(stand: Stand) -> None:
    says(stand, CALL)
    choice = (await chat(stand, tools=TOOLS, max_tokens=20)).json()["choices"][0]
    assert choice["finish_reason"] == "length"
    assert ARGUMENTS.startswith(choice["message"]["tool_calls"][0]["function"]["arguments"])


async def test_only_one_call_where_parallel_calls_are_off(stand: Stand) -> None:
    says(stand, f"[{CALL}, {CALL}]")
    message = (await chat(stand, tools=TOOLS, parallel_tool_calls=False)).json()["choices"][0]["message"]
    assert len(message["tool_calls"]) == 1


async def test_the_model_is_told_of_its_tools_in_the_system_message(stand: Stand) -> None:
    says(stand, "x")
    await chat(stand, tools=TOOLS, messages=[{"role": "system", "content": "Be kind."}, *HELLO])
    prompt = prompt_of(stand)
    assert prompt.startswith("<|im_start|>system\nBe kind.\n\nYou can call functions.")
    assert '"name": "get_weather"' in prompt
    await chat(stand, tools=TOOLS, tool_choice=NAMED)
    assert "get_weather" not in prompt_of(stand), "a named function is the only one shown"
    await chat(stand, tools=TOOLS, tool_choice="none")
    assert "functions" not in prompt_of(stand)


async def test_earlier_calls_and_results_are_in_the_prompt(stand: Stand) -> None:
    says(stand, "x")
    call = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": ARGUMENTS}}
    turns = [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "18"},
    ]
    response = await chat(stand, messages=[*HELLO, *turns], tools=TOOLS)
    assert response.status_code == 200
    assert f"<|im_start|>assistant\n{CALL}<|im_end|>\n<|im_start|>user\nResult of get_weather:\n18<|im_end|>" in prompt_of(
        stand
    )


@pytest.mark.parametrize("arguments", ["", "{", "[1]", '"Paris"', "null", "Paris", '{"city": "Par'])
def test_arguments_of_earlier_calls_that_are_no_object_stay_as_they_were_written(tokenizer: Tokenizer, arguments: str) -> None:
    """Such as a call that was cut."""
    call = {"id": "c", "type": "function", "function": {"name": "get_weather", "arguments": arguments}}
    messages = [*HELLO, {"role": "assistant", "content": None, "tool_calls": [call]}]
    (_, parsed) = parse_messages(messages, tokenizer.chat_template())
    assert tokenizer.chat_template().forms.argument_objects
    assert parsed["tool_calls"][0]["function"]["arguments"] == (arguments or {})


@pytest.mark.parametrize(
    ("name", "pattern"), [("mistral", "[A-Za-z0-9]{9}"), ("qwen", "call_[0-9a-f]{24}"), ("", "call_[0-9a-f]{24}")]
)
def test_names_of_calls_are_what_templates_take(name: str, pattern: str) -> None:
    """Mistral's refuse all others."""
    assert re.fullmatch(pattern, call_id(name)) and call_id(name) != call_id(name)


async def test_tools_go_to_a_template_that_knows_them(make_stand: MakeStand, tokenizer: Tokenizer) -> None:
    stand = make_stand(info={"context_len": 2048})
    template = (
        "{% if tools %}<tool_call>{% for t in tools %}{{ t | tojson }}{% endfor %}{% endif %}"
        "{% for m in messages %}{{ m.content }}{{ m.tool_calls }}{% endfor %}"
    )
    from sglang.srt.server.tokenization.chat_template import ChatTemplate

    kept = dict(tokenizer._templates)
    tokenizer._templates["default"] = ChatTemplate(template)
    try:
        says(stand, f"<tool_call>\n{CALL}\n</tool_call>")
        message = (await chat(stand, tools=TOOLS)).json()["choices"][0]["message"]
        assert [c["function"]["name"] for c in message["tool_calls"]] == ["get_weather"]
        assert prompt_of(stand).startswith('<tool_call>{"type": "function"')
    finally:
        tokenizer._templates.clear()
        tokenizer._templates.update(kept)


async def test_calls_stay_with_a_template_that_shows_them(make_stand: MakeStand, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though it shows no tools; and arguments are the text that it writes out, as the client has spelled it."""
    stand = make_stand(info={"context_len": 2048})
    template = ChatTemplate(
        "{% for m in messages %}{% if m.role == 'tool' %}<out>{{ m.content }}</out>{% else %}{{ m.role }}:{{ m.content }}"
        "{% for c in m.tool_calls %}<call>{{ c.function.name + ' ' + c.function.arguments }}</call>{% endfor %}{% endif %}"
        "{% endfor %}"
    )
    monkeypatch.setattr(stand.manager.need_tokenizer(), "chat_template", lambda with_tools=False: template)
    called = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city":"Rome"}'}}
    messages = [
        {"role": "user", "content": "Rome?"},
        {"role": "assistant", "content": None, "tool_calls": [called]},
        {"role": "tool", "tool_call_id": "c1", "content": "18"},
    ]
    response = await chat(stand, messages=messages, tools=TOOLS)
    assert response.status_code == 200
    prompt = prompt_of(stand)
    assert prompt.endswith('user:Rome?assistant:<call>get_weather {"city":"Rome"}</call><out>18</out>')
    assert prompt.startswith("system:You can call functions.")


@pytest.mark.parametrize(
    ("change", "param", "words"),
    [
        ({"tools": [{"type": "function"}]}, "tools", "function"),
        ({"tools": [{"type": "web_search"}]}, "tools", "not supported"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools", "letters"),
        ({"tools": [{"type": "function", "function": {"name": "a", "strict": "yes"}}]}, "tools", "strict"),
        ({"tools": [{"type": "function", "function": {"name": "a", "parameter": {}}}]}, "tools", "unknown key"),
        ({"tools": TOOLS + TOOLS}, "tools", "two tools"),
        ({"tools": "x"}, "tools", "list"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "nobody"}}}, "tool_choice", "'nobody'"),
        ({"tools": TOOLS, "tool_choice": "maybe"}, "tool_choice", "none, auto"),
        ({"tools": TOOLS, "tool_choice": {"type": "function"}}, "tool_choice", "without a name"),
        ({"tools": TOOLS, "tool_choice": "required", "regex": "a"}, "tool_choice", "regex"),
        ({"tools": TOOLS, "regex": "a"}, "tools", "tool_choice to none"),
    ],
)
async def test_errors_of_tools_name_the_fault(stand: Stand, change: dict[str, Any], param: str, words: str) -> None:
    response = await chat(stand, **change)
    assert response.status_code == 400
    error = response.json()["error"]
    assert words in error["message"]
    assert error["param"] == param


# --- constraints: what the grammar engine lets through ----------------------------------------------------------------------


def allows(tokenizer: Tokenizer, sampling: SamplingParams, text: str) -> bool:
    """Whether `text` may be a whole answer."""
    assert sampling.grammar is not None
    state = LLGuidanceBackend(tokenizer.vocabulary, GrammarOptions()).compile(*sampling.grammar)
    ids = [*tokenizer.encode_ordinary(text), min(tokenizer.vocabulary.eos_token_ids)]
    return all(state.accept(token_id) for token_id in ids)


def plan(choice: Any, parallel: bool | None = None, name: str = "generic", **sampling: Any) -> SamplingParams:
    return plan_tools(TOOLS, choice, parallel, name, SamplingParams(**sampling)).sampling


W = '{"name":"get_weather","arguments":{"city":"Paris","unit":"C"}}'
N = '{"name":"now","arguments":{}}'


@pytest.mark.parametrize(
    ("choice", "parallel", "right", "wrong"),
    [
        ("required", True, [f"[{W}]", f"[{W},{N}]"], ["hello", "[]", W, W.replace("C", "K")]),
        ("required", None, [W, N], [f"[{W}]"]),
        ("required", False, [W, N], [f"[{W}]", "hello", W.replace('"C"', "1")]),
        (NAMED, None, [N], [W, "hello"]),
    ],
)
def test_forced_calls_follow_their_schemas(
    tokenizer: Tokenizer, choice: Any, parallel: bool | None, right: list[str], wrong: list[str]
) -> None:
    sampling = plan(choice, parallel)
    assert all(allows(tokenizer, sampling, text) for text in right)
    assert not any(allows(tokenizer, sampling, text) for text in wrong)


def test_a_response_format_leaves_room_for_calls(tokenizer: Tokenizer) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"$ref": "#/$defs/X"}},
        "required": ["a"],
        "$defs": {"X": {"type": "integer"}},
    }
    sampling = plan("auto", json_schema=json.dumps(schema))
    assert allows(tokenizer, sampling, '{"a":1}')
    assert allows(tokenizer, sampling, f"[{W}]")
    assert not allows(tokenizer, sampling, '{"a":"x"}')
    assert not allows(tokenizer, sampling, "hello")


STRICT = [{**tool, "function": {**tool["function"], "strict": True}} for tool in TOOLS]


@pytest.mark.parametrize("name", [name for name, entry in FORMATS.items() if not entry.tag.keywords])
def test_strict_tools_are_free_text_and_right_calls(tokenizer: Tokenizer, name: str) -> None:
    tag = FORMATS[name].tag
    sampling = plan_tools(STRICT, "auto", None, name, SamplingParams()).sampling
    begin, end = tag.begin.replace("NAME", "get_weather"), tag.end
    assert allows(tokenizer, sampling, "Just text, no call.")
    assert allows(tokenizer, sampling, f'So: {begin}{{"city":"Paris","unit":"C"}}{end}')
    assert not allows(tokenizer, sampling, f'So: {begin}{{"city":1}}{end}')


@pytest.mark.parametrize("name", [name for name, entry in FORMATS.items() if entry.tag.keywords])
def test_strict_tools_that_are_called_in_python(tokenizer: Tokenizer, name: str) -> None:
    tag, plan = FORMATS[name].tag, plan_tools(STRICT, "auto", None, name, SamplingParams())
    begin = tag.begin.replace("NAME", "get_weather")
    assert allows(tokenizer, plan.sampling, "Just text [1](a), no call.")
    for arguments in ('city="Paris", unit="C"', 'city="Paris",unit="C"'):
        text = f"So: {begin}{arguments}{tag.end}"
        assert allows(tokenizer, plan.sampling, text)
        parser = plan.new_parser()
        assert parser is not None
        begun, given = (parser.feed(text) + parser.finish())[-2:]
        assert isinstance(begun, CallBegin) and begun.name == "get_weather"
        assert isinstance(given, CallArguments) and json.loads(given.text)["city"] == "Paris"
    assert allows(tokenizer, plan.sampling, begin.replace("get_weather", "now") + tag.end)
    for arguments in ("city=1", 'city="Paris"', 'unit="C", city="Paris"', 'town="x"', '"Paris"', 'city="Paris", unit="K"', ""):
        assert not allows(tokenizer, plan.sampling, f"So: {begin}{arguments}{tag.end}"), arguments
    for other in ("[ get_weather(city=1)]", "[get_weather (city=1)]", "```tool_code\nprint(get_weather(city=1))\n```"):
        parser = plan.new_parser()
        assert parser is not None
        assert {type(piece) for piece in parser.feed(other) + parser.finish()} == {Text}, "what is not constrained is no call"


def test_optional_arguments_and_words_of_python(tokenizer: Tokenizer) -> None:
    properties = {"a": {"type": "boolean"}, "b": {"type": "array", "items": {"type": "integer"}}, "c": {"type": "null"}}
    function = {"name": "f", "strict": True, "parameters": {"type": "object", "properties": properties, "required": ["b"]}}
    sampling = plan_tools([{"type": "function", "function": function}], "auto", None, "pythonic", SamplingParams()).sampling
    for right in ("b=[1,2]", "a=True, b=[]", "b=[1], c=None", "a=False, b=[1], c=None"):
        assert allows(tokenizer, sampling, f"[f({right})]"), right
    for wrong in ("a=True", "a=true, b=[]", "b=[1], a=True", "b=[1],", ", b=[1]", "c=None"):
        assert not allows(tokenizer, sampling, f"[f({wrong})]"), wrong


def test_a_tool_that_is_not_strict_is_free_beside_one_that_is(tokenizer: Tokenizer) -> None:
    plan = plan_tools([STRICT[0], TOOLS[1]], "auto", None, "pythonic", SamplingParams())
    loose = TOOLS[1]["function"]["name"]
    assert allows(tokenizer, plan.sampling, f"[{loose}(anything=[1, 2])]")
    parser = plan.new_parser()
    assert parser is not None
    assert CallBegin(0, loose) in parser.feed(f"[{loose}(anything=[1, 2])]")


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_calls_in_plain_json_count_beside_strict_tools(name: str) -> None:
    plan = plan_tools([STRICT[0], TOOLS[1]], "auto", None, name, SamplingParams())
    strict, loose = (tool["function"]["name"] for tool in (STRICT[0], TOOLS[1]))
    for text, called in ((f'{{"name":"{loose}","arguments":{{}}}}', [loose]), (f'{{"name":"{strict}","arguments":{{}}}}', [])):
        for around in ("{}", "```json\n{}\n```"):
            parser = plan.new_parser()
            assert parser is not None
            pieces = [*parser.feed(around.replace("{}", text, 1)), *parser.finish()]
            assert [piece.name for piece in pieces if isinstance(piece, CallBegin)] == called
            if not called:
                assert "".join(p.text for p in pieces if isinstance(p, Text)) == around.replace("{}", text, 1)


def test_an_answer_of_a_response_format_that_holds_calls_is_none() -> None:
    """Only what is a call as a whole can be one; a constraint says that anything else is the format's."""
    sampling = SamplingParams(json_schema='{"type": "object"}')
    plan = plan_tools(TOOLS, "auto", None, "qwen", sampling)
    call = '{"name": "get_weather", "arguments": {}}'
    for text, count in (
        (call, 1),
        (f"[{call}, {call}]", 2),
        (f'{{"steps": [{call}]}}', 0),
        ('{"name": "get_weather", "x": 1}', 0),
    ):
        parser = plan.new_parser()
        assert parser is not None
        pieces = [piece for char in text for piece in parser.feed(char)] + parser.finish()
        assert sum(isinstance(piece, CallBegin) for piece in pieces) == count
        assert count or "".join(p.text for p in pieces if isinstance(p, Text)) == text


async def test_strict_is_refused_where_it_cannot_be_kept(make_stand: MakeStand, monkeypatch: pytest.MonkeyPatch) -> None:
    stand = make_stand(tool_call_parser="gemma")
    template = ChatTemplate("<start_function_call>{{ messages[0].content }}")
    monkeypatch.setattr(stand.manager.need_tokenizer(), "chat_template", lambda with_tools=False: template)
    response = await chat(stand, tools=STRICT)
    assert response.status_code == 400
    assert "strict" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"type": "object", "properties": {"from": {}}}, "'from'"),
        ({"type": "object", "properties": {"a-b": {}}}, "'a-b'"),
        ({"type": "object", "anyOf": [{}]}, "'anyOf'"),
        ({"type": "object", "properties": {}, "required": ["x"]}, "required"),
    ],
)
def test_schemas_that_are_no_keyword_arguments(tokenizer: Tokenizer, parameters: dict[str, Any], words: str) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters, "strict": True}}
    sampling = plan_tools([tool], "auto", None, "pythonic", SamplingParams()).sampling
    with pytest.raises(GrammarError, match=words):
        allows(tokenizer, sampling, "x")


def test_halves_of_pairs_in_python_strings_are_no_crash() -> None:
    for written, read in ((r"\ud83d\ude00", "\U0001f600"), (r"a\ud83d", "a\ufffd")):
        parser = create_parser("pythonic", ["f"])
        (_, given) = parser.feed(f'[f(x="{written}")]')
        assert isinstance(given, CallArguments) and json.loads(given.text) == {"x": read}


# --- reasoning ---------------------------------------------------------------------------------------------------------------


async def test_reasoning_is_separated_from_the_answer(make_stand: MakeStand) -> None:
    stand = make_stand(reasoning_parser="qwen3")
    says(stand, "<think>\nhm, well\n</think>\n\nYes.")
    message = (await chat(stand)).json()["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == ("hm, well", "Yes.")
    response = await chat(stand, stream=True)
    deltas = [json.loads(event)["choices"][0]["delta"] for event in events_of(response.text)[:-1]]
    assert "".join(d["reasoning_content"] or "" for d in deltas) == "hm, well"
    assert "".join(d.get("content", "") for d in deltas) == "Yes."
    assert sum(d["reasoning_content"] is not None for d in deltas) > 2
    response = await chat(stand, stream=True, stream_reasoning=False)
    deltas = [json.loads(event)["choices"][0]["delta"] for event in events_of(response.text)[:-1]]
    assert [d["reasoning_content"] for d in deltas if d["reasoning_content"] is not None] == ["hm, well"]
    message = (await chat(stand, separate_reasoning=False)).json()["choices"][0]["message"]
    assert message["content"] == "<think>\nhm, well\n</think>\n\nYes."
    assert message["reasoning_content"] is None


async def test_a_constraint_waits_for_the_end_of_reasoning(make_stand: MakeStand, tokenizer: Tokenizer) -> None:
    begin, end = "<|endoftext|>", "<|im_start|>"  # special tokens that stand for marks here
    stand = make_stand(reasoning_parser=f"{begin},{end}")
    says(stand, f'{begin}hm{end}{{"a":1}}')
    body = {"response_format": {"type": "json_object"}, "messages": [*HELLO, {"role": "assistant", "content": begin}]}
    reply = (await chat(stand, **body)).json()
    assert received(stand).grammar_after == (), "nothing opens reasoning here"
    stand = make_stand(reasoning_parser="deepseek-r1")
    says(stand, "x")
    await chat(stand, response_format={"type": "json_object"})
    assert received(stand).grammar_after == (), "no one token ends the reasoning of this vocabulary"
    assert received(stand).sampling.grammar is not None
    assert reply["choices"][0]["message"]["reasoning_content"] == "hm"


async def test_marks_that_are_special_tokens_are_seen(make_stand: MakeStand) -> None:
    stand = make_stand(reasoning_parser="<|endoftext|>,<|im_start|>")
    says(stand, "x")
    await chat(stand)
    assert received(stand).sampling.skip_special_tokens is False
    stand = make_stand()
    says(stand, "x")
    await chat(stand)
    assert received(stand).sampling.skip_special_tokens is True


@pytest.mark.parametrize("flag", ["tool_call_parser", "reasoning_parser"])
def test_unknown_parsers_keep_the_server_from_starting(make_stand: MakeStand, flag: str) -> None:
    from sglang.srt.errors import ConfigError

    with pytest.raises(ConfigError, match="there is no"):
        make_stand(**{flag: "klingon"})


# --- the parsers as endpoints -----------------------------------------------------------------------------------------------


async def test_parsing_endpoints(stand: Stand) -> None:
    async with client_of(stand) as client:
        text = f"Well.\n<tool_call>\n{CALL}\n</tool_call>"
        reply = await client.post("/parse_function_call", json={"text": text, "tools": TOOLS, "tool_call_parser": "qwen25"})
        call = {"tool_index": 0, "name": "get_weather", "parameters": ARGUMENTS}
        assert reply.json() == {"normal_text": "Well.", "calls": [call]}
        reply = await client.post("/separate_reasoning", json={"text": "hm</think>yes", "reasoning_parser": "deepseek-r1"})
        assert reply.json() == {"reasoning_text": "hm", "text": "yes"}
        for path, body in (
            ("/parse_function_call", {"text": "x", "tool_call_parser": "klingon"}),
            ("/parse_function_call", {"tools": TOOLS}),
            ("/separate_reasoning", {"text": 1}),
            ("/separate_reasoning", {"text": "x", "reasoning_parser": "klingon"}),
            ("/separate_reasoning", {"text": "x" * 300_000}),
        ):
            assert (await client.post(path, json=body)).status_code == 400


@pytest.mark.parametrize(
    ("name", "text", "reasoning"),
    [
        ("qwen3", "<think>hm, well</think>Yes.", "<think>hm, well</think>"),
        ("deepseek-r1", "hm, well</think>Yes.", "hm, well</think>"),
        ("deepseek-r1", "hm, well", "hm, well"),
        ("qwen3", "<b>Yes.", ""),
        ("kimi", "◁think▷hm◁/think▷Yes.", "◁think▷hm◁/think▷"),
    ],
)
async def test_reasoning_tokens_are_counted(make_stand: MakeStand, name: str, text: str, reasoning: str) -> None:
    stand = make_stand(info={"context_len": 2048}, reasoning_parser=name)
    says(stand, text)
    table = stand.manager.need_tokenizer().vocabulary.token_bytes
    ids, data, expected = stand.manager.need_tokenizer().encode(text), b"", 0
    for i in ids if reasoning else []:
        expected += len(data) < len(reasoning.encode())
        data += table[i]
    usage = (await chat(stand)).json()["usage"]
    # the token that ends the answer is part of the reasoning if nothing else ended them
    assert usage["completion_tokens_details"]["reasoning_tokens"] - expected in ((0, 1) if reasoning == text else (0,))
    twice = (await chat(stand, n=2)).json()["usage"]
    assert twice["completion_tokens_details"]["reasoning_tokens"] == 2 * usage["completion_tokens_details"]["reasoning_tokens"]
    response = await chat(stand, stream=True, stream_options={"include_usage": True})
    assert json.loads(events_of(response.text)[-2])["usage"]["completion_tokens_details"] == usage["completion_tokens_details"]
