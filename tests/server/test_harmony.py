"""harmony, gpt-oss's format: its messages taken apart at every cut, its turns in the published template, on every route."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sglang.srt.checkpoint.resolve import ModelFiles
from sglang.srt.config import TextOptions
from sglang.srt.messages import TokenizedReq
from sglang.srt.server.openai.answers import Answer
from sglang.srt.server.openai.harmony_turns import harmony_turns
from sglang.srt.server.parsers.harmony import ANSWERING, MAX_HEADER, HarmonyCalls, HarmonyCounter, header_of
from sglang.srt.server.parsers.pieces import Piece, Reasoning, Text
from sglang.srt.server.parsers.tool_calls import create_free_parser, format_of_template
from sglang.srt.server.tokenization.tokenizer import Tokenizer, load_tokenizer
from sglang.srt.vocabulary import ends_reasoning
from tests.server.conftest import MakeStand, Stand
from tests.server.echo_scheduler import EchoScheduler
from tests.server.http_tools import client_of, events_of
from tests.server.models import train_byte_level
from tests.server.test_published_templates import TEMPLATES, TOOL, theirs

TOOLS = {"f": ("x",), "get_weather": ("city",)}
MARKS = ("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|constrain|>", "<|call|>", "<|return|>")
THINK = "<|channel|>analysis<|message|>Let me see: <|x|> é.<|end|>"
FINAL = "<|start|>assistant<|channel|>final<|message|>"
CALL = '<|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"x": "a }<|b\\n"}<|call|>'
Said = tuple[str, str, list[tuple[str, str, bool]]]


def said(parser: Any, pieces: list[str]) -> Said:
    answer = Answer("")
    for piece in pieces:
        for found in parser.feed(piece):
            answer.add(found)
    for found in parser.finish():
        answer.add(found)
    return answer.reasoning, answer.text, [(call.name, call.arguments, call.is_whole) for call in answer.calls]


X = ("f", '{"x": "a }<|b\\n"}', True)
CASES: list[tuple[str, Said]] = [
    (THINK + FINAL + "Hi <b> there.<|return|>", ("Let me see: <|x|> é.", "Hi <b> there.", [])),
    (THINK + CALL, ("Let me see: <|x|> é.", "", [X])),
    (
        '<|channel|>analysis<|message|>A<|end|><|start|>assistant to=functions.f<|channel|>commentary json<|message|>{"x": 1}',
        ("A", "", [("f", '{"x": 1}', True)]),
    ),
    (' to=functions.f<|channel|>commentary json<|message|>{"x": 1}<|call|>', ("", "", [("f", '{"x": 1}', True)])),
    ("<|channel|>commentary to=f<|message|>{}", ("", "", [("f", "{}", True)])),
    ('<|channel|>analysis to=functions.f code<|message|>{"x": 1}', ("", "", [("f", '{"x": 1}', True)])),
    (
        THINK + "<|start|>assistant<|channel|>commentary<|message|>I look.<|end|>" + CALL + FINAL + "Done.",
        ("Let me see: <|x|> é.", "I look.\n\nDone.", [X]),
    ),
    (THINK + "<|start|>assistant<|channel|>analysis<|message|>B<|end|>" + FINAL, ("Let me see: <|x|> é.\n\nB", "", [])),
    ("<|channel|>final <|constrain|>json<|message|>[1]<|return|>", ("", "[1]", [])),
    ("<|channel|>final<|message|>\n a <|channe \n", ("", "\n a <|channe \n", [])),
    ("<|channel|>analysis<|message|>cut of", ("cut of", "", [])),
    ("<|channel|>analysis<|message|>A<|channel|>final<|message|>B", ("A", "B", [])),
    ("<|channel|>analysis<|message|>A<|end|><|start|>assistant<|chan", ("A", "", [])),
    ("<|channel|>anal", ("", "", [])),
    ('<|channel|>commentary to=functions.f<|message|>{"x": 1', ("", "", [("f", '{"x": 1', False)])),
    ("<|channel|>commentary to=functions.f<|message|>", ("", "", [("f", "", False)])),
    ("<|channel|>commentary to=functions.f<|message|><|call|>", ("", "", [("f", "{}", True)])),
    ("<|channel|>commentary to=functions.f<|message|> null <|call|>", ("", "", [("f", "{}", True)])),
    ('<|channel|>commentary to=functions.f<|message|>"{\\"x\\": 1}"<|call|>', ("", "", [("f", '{"x": 1}', True)])),
    ("<|channel|>commentary to=functions.f<|message|>x = 1<|call|>", ("", "", [("f", "x = 1", False)])),
    ("<|channel|>commentary to=functions.f<|message|>{x: 1}<|call|>", ("", "", [("f", "{x: 1}", False)])),
    (
        "<|channel|>commentary to=functions.g <|constrain|>json<|message|>{}<|call|>",
        ("", "<|channel|>commentary to=functions.g <|constrain|>json<|message|>{}", []),
    ),
    ("Just text, to=functions.f and <|mes", ("", "Just text, to=functions.f and <|mes", [])),
    (" \n Hello", ("", " \n Hello", [])),
    ("to=" + "a" * 600, ("", "to=" + "a" * 600, [])),
    ("assistant", ("", "assistant", [])),
    (THINK + '{"a": 1}', ("Let me see: <|x|> é.", '{"a": 1}', [])),
    ("<|channel|>!!<|channel|><|channel|>", ("", "<|channel|>!!<|channel|>", [])),
    ("<|start|>user<|message|>Hi", ("", "<|start|>user<|message|>Hi", [])),
    ("<|end|><|return|>A<|end|><|end|>", ("", "A", [])),
    ("", ("", "", [])),
]


@pytest.mark.parametrize("place", range(len(CASES)))
def test_every_cut(place: int) -> None:
    text, expected = CASES[place]
    assert said(HarmonyCalls(TOOLS), [text]) == expected
    assert said(HarmonyCalls(TOOLS), list(text)) == expected
    for at in range(len(text)):
        assert said(HarmonyCalls(TOOLS), [text[:at], text[at:]]) == expected, at
    for size in (2, 3, 7, 11):
        assert said(HarmonyCalls(TOOLS), [text[i : i + size] for i in range(0, len(text), size)]) == expected


def test_calls_come_as_they_are_written() -> None:
    parser = HarmonyCalls(TOOLS)
    pieces = [piece for char in CALL for piece in parser.feed(char)]
    assert len(pieces) > 10


def test_no_more_calls_than_wanted() -> None:
    assert said(HarmonyCalls(TOOLS, 1), [CALL + CALL])[2] == [X]


@pytest.mark.parametrize("size", [MAX_HEADER - 1, MAX_HEADER, MAX_HEADER + 1])
def test_a_long_header_is_one_or_none_whatever_the_cuts(size: int) -> None:
    head = "<|channel|>commentary to="
    text = head + "a" * (size - len(head) - len("<|message|>")) + "<|message|>{}"
    assert said(HarmonyCalls(TOOLS), [text]) == said(HarmonyCalls(TOOLS), list(text)) == ("", text, [])


def test_what_the_prompt_has_of_the_header() -> None:
    assert header_of("a<|end|><|start|>assistant") == "assistant"
    assert header_of("<|start|>user<|message|>Hi<|end|>") == ""
    assert said(HarmonyCalls(TOOLS, header=ANSWERING), [" more<|return|>"]) == ("", " more", [])
    assert said(HarmonyCalls(TOOLS, header="assistant<|channel|>analysis<|message|>"), ["A<|end|>", FINAL, "B"]) == (
        "A",
        "B",
        [],
    )
    assert said(HarmonyCalls(TOOLS, header="assistant<|channel|>"), ["analysis<|message|>A"]) == ("A", "", [])
    assert said(HarmonyCalls(TOOLS, header="assistant"), ["s and more"]) == ("", "s and more", [])


@pytest.mark.parametrize("place", range(len(CASES)))
def test_raw_text_is_whole(place: int) -> None:
    text = CASES[place][0]
    assert said(HarmonyCalls((), is_raw=True), list(text)) == ("", text, [])


def test_reasoning_is_counted_with_its_marks(harmony: Tokenizer) -> None:
    table = harmony.vocabulary.token_bytes
    for text, thought in (
        (THINK + FINAL + "Hi", THINK),
        (FINAL + "Hi", ""),
        (THINK + "<|start|>assistant<|channel|>analysis<|message|>B<|end|>" + FINAL + "C", None),
    ):
        whole = thought if thought is not None else text[: text.index(FINAL)]
        counter = HarmonyCounter("assistant", table)
        for token in harmony.encode(text, add_special_tokens=False):
            counter.feed([token])
        assert counter.num_tokens == len(harmony.encode(whole, add_special_tokens=False))


def test_what_ends_reasoning_stands_behind_its_lead() -> None:
    end, message, channel, final = 1, 2, 3, 4
    after, lead = (end, message), (channel, final)
    assert not ends_reasoning([channel, 9, message], after, lead)
    assert not ends_reasoning([channel, final, message, 7, end], after, lead)
    assert ends_reasoning([channel, 9, message, 7, end, channel, final, message], after, lead)
    assert ends_reasoning([channel, final, 8, 8, message], after, lead)
    assert not ends_reasoning([channel, final], after, lead)
    assert not ends_reasoning([], after, ())
    assert ends_reasoning([9, end], after, ())


# --- messages ---------------------------------------------------------------------------------------------------------------


def call(name: str, id_: str | None = None) -> dict[str, Any]:
    return {"id": id_, "type": "function", "function": {"name": name, "arguments": {}}}


def result(id_: str | None, content: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": id_, "content": content}


def test_several_calls_become_turns() -> None:
    user = {"role": "user", "content": "u"}
    first = {"role": "assistant", "content": "", "thinking": "t", "reasoning_content": "t"}
    turns = harmony_turns(
        [user, {**first, "tool_calls": [call("f", "1"), call("g", "2")]}, result("2", "b"), result("1", "a"), user]
    )
    assert turns == [
        user,
        {**first, "tool_calls": [call("f", "1")]},
        result("1", "a"),
        {"role": "assistant", "content": "", "tool_calls": [call("g", "2")]},
        result("2", "b"),
        user,
    ]
    nameless = harmony_turns(
        [{**first, "tool_calls": [call("f"), call("g")]}, result(None, "a"), result(None, "b"), result(None, "c")]
    )
    assert [turn["content"] for turn in nameless] == ["", "a", "", "b", "c"]
    both = harmony_turns([{**first, "content": "I look.", "tool_calls": [call("f")]}])
    assert (both[0]["content"], both[0]["thinking"]) == ("", "t\n\nI look.")


# --- on the routes ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def harmony(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("gpt-oss")
    core = train_byte_level()
    core.add_special_tokens(list(MARKS))
    core.add_tokens(["analysis", "final", "commentary"])
    core.save(str(path / "tokenizer.json"))
    config = {
        "eos_token": "<|return|>",
        "chat_template": (TEMPLATES / "openai-gpt-oss-120b.jinja").read_text(),
    }
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    return load_tokenizer(TextOptions(str(path)), ModelFiles("folder", path, "test"))


@pytest.fixture
def stand(make_stand: MakeStand, harmony: Tokenizer) -> Stand:
    usual = make_stand(info={"context_len": 4096, "vocab_size": harmony.vocabulary.size})
    return Stand(harmony, usual.manager.info, usual.options, EchoScheduler(harmony.vocabulary, 1))


def says(stand: Stand, text: str) -> None:
    ids = stand.manager.need_tokenizer().encode(text, add_special_tokens=False)
    stand.scheduler.next_of = lambda req, i: ids[i]


def received(stand: Stand) -> TokenizedReq:
    request = stand.scheduler.received[-1]
    assert isinstance(request, TokenizedReq)
    return request


def prompt_of(stand: Stand) -> str:
    return stand.manager.need_tokenizer().decode(received(stand).input_ids, skip_special_tokens=False)


HELLO = [{"role": "user", "content": "What is the weather?"}]
CALLS = (
    "<|channel|>analysis<|message|>Paris.<|end|><|start|>assistant<|channel|>commentary to=functions.get_weather "
    '<|constrain|>json<|message|>{"city": "Paris"}<|call|>'
)
ANSWERS = f"<|channel|>analysis<|message|>Easy.<|end|>{FINAL}Sunny.<|return|>"


async def test_chat(stand: Stand) -> None:
    says(stand, CALLS)
    async with client_of(stand) as client:
        reply = (await client.post("/v1/chat/completions", json={"messages": HELLO, "tools": [TOOL]})).json()
    (choice,) = reply["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert (choice["message"]["content"], choice["message"]["reasoning_content"]) == (None, "Paris.")
    (made,) = choice["message"]["tool_calls"]
    assert made["function"] == {"name": "get_weather", "arguments": '{"city": "Paris"}'}
    encode = stand.manager.need_tokenizer().encode
    thought = encode("<|channel|>analysis<|message|>Paris.<|end|>", add_special_tokens=False)
    assert reply["usage"]["completion_tokens_details"]["reasoning_tokens"] == len(thought)


@pytest.mark.parametrize("text", [CALLS, ANSWERS])
async def test_a_stream_has_the_same_parts(stand: Stand, text: str) -> None:
    """One token at a time."""
    body = {"messages": HELLO, "tools": [TOOL]}
    says(stand, text)
    async with client_of(stand) as client:
        whole = (await client.post("/v1/chat/completions", json=body)).json()["choices"][0]
        streamed = await client.post("/v1/chat/completions", json={**body, "stream": True})
    chunks = [json.loads(event) for event in events_of(streamed.text) if event != "[DONE]"]
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks if chunk["choices"]]
    content = "".join(delta.get("content") or "" for delta in deltas)
    reasoning = "".join(delta.get("reasoning_content") or "" for delta in deltas)
    calls = "".join(more["function"]["arguments"] for delta in deltas for more in delta.get("tool_calls") or ())
    message = whole["message"]
    assert (content, reasoning) == (message["content"] or "", message["reasoning_content"])
    assert calls == "".join(made["function"]["arguments"] for made in message["tool_calls"] or ())
    assert chunks[-1]["choices"][0]["finish_reason"] == whole["finish_reason"]


async def test_without_tools(stand: Stand) -> None:
    says(stand, ANSWERS)
    async with client_of(stand) as client:
        message = (await client.post("/v1/chat/completions", json={"messages": HELLO})).json()["choices"][0]["message"]
        assert (message["content"], message["reasoning_content"]) == ("Sunny.", "Easy.")
        body = {"messages": HELLO, "separate_reasoning": False}
        message = (await client.post("/v1/chat/completions", json=body)).json()["choices"][0]["message"]
    assert message["content"] == ANSWERS.removesuffix("<|return|>")


async def test_responses_and_messages(stand: Stand) -> None:
    tool = {"type": "function", **TOOL["function"]}
    says(stand, CALLS)
    async with client_of(stand) as client:
        body = {"input": "What is the weather?", "tools": [tool], "reasoning": {"effort": "high"}}
        output = (await client.post("/v1/responses", json=body)).json()["output"]
        assert [item["type"] for item in output] == ["reasoning", "function_call"]
        assert (output[1]["name"], json.loads(output[1]["arguments"])) == ("get_weather", {"city": "Paris"})
        assert "Reasoning: high" in prompt_of(stand)
        own = {"name": "get_weather", "input_schema": TOOL["function"]["parameters"]}
        body = {"messages": HELLO, "max_tokens": 900, "tools": [own], "thinking": {"type": "enabled", "budget_tokens": 1024}}
        reply = (await client.post("/v1/messages", json=body)).json()
        assert [block["type"] for block in reply["content"]] == ["thinking", "tool_use"]
        assert (reply["stop_reason"], reply["content"][1]["input"]) == ("tool_use", {"city": "Paris"})


async def test_effort_and_history_are_rendered_as_transformers_does(stand: Stand) -> None:
    history = [
        *HELLO,
        {"role": "assistant", "content": "", "reasoning_content": "Paris.", "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}}]},
        {"role": "tool", "tool_call_id": "c1", "content": "18 °C"},
    ]  # fmt: skip
    says(stand, ANSWERS)
    async with client_of(stand) as client:
        body = {"messages": history, "tools": [TOOL], "reasoning_effort": "low"}
        assert (await client.post("/v1/chat/completions", json=body)).status_code == 200
    told = [message | ({"thinking": "Paris."} if "tool_calls" in message else {}) for message in history]
    expected = theirs("openai-gpt-oss-120b", told, tools=[TOOL], reasoning_effort="low")
    assert prompt_of(stand) == expected
    assert "Reasoning: low" in expected
    assert "<|channel|>analysis<|message|>Paris.<|end|>" in expected


async def test_a_constraint_begins_with_the_answer(stand: Stand) -> None:
    says(stand, f"{THINK}{FINAL}" + '{"a": 1}<|return|>')
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}
    async with client_of(stand) as client:
        reply = (await client.post("/v1/chat/completions", json={"messages": HELLO, "response_format": form})).json()
    request, token_id = received(stand), stand.manager.need_tokenizer().token_id
    assert request.grammar_after == (token_id("<|end|>"), token_id("<|message|>"))
    assert request.grammar_lead == (token_id("<|channel|>"), token_id("final"))
    assert reply["choices"][0]["message"]["content"] == '{"a": 1}'


async def test_a_call_that_is_asked_for(stand: Stand) -> None:
    says(stand, f"{THINK}{FINAL}" + '{"name": "get_weather", "arguments": {"city": "Paris"}}<|return|>')
    async with client_of(stand) as client:
        body = {"messages": HELLO, "tools": [TOOL], "tool_choice": "required"}
        (choice,) = (await client.post("/v1/chat/completions", json=body)).json()["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["tool_calls"][0]["function"] == {"name": "get_weather", "arguments": '{"city": "Paris"}'}


async def test_a_text_is_continued(stand: Stand) -> None:
    says(stand, " and warm.<|return|>")
    async with client_of(stand) as client:
        body = {"messages": [*HELLO, {"role": "assistant", "content": "Sunny"}], "continue_final_message": True}
        message = (await client.post("/v1/chat/completions", json=body)).json()["choices"][0]["message"]
    assert prompt_of(stand).endswith(f"{FINAL}Sunny")
    assert (message["content"], message["reasoning_content"]) == (" and warm.", None)


def test_calls_end_the_text(harmony: Tokenizer) -> None:
    assert {harmony.token_id("<|return|>"), harmony.token_id("<|call|>")} <= harmony.vocabulary.eos_token_ids
    assert harmony.token_id("<|end|>") not in harmony.vocabulary.eos_token_ids


async def test_by_name(stand: Stand) -> None:
    assert format_of_template((TEMPLATES / "openai-gpt-oss-120b.jinja").read_text()) == "harmony"
    async with client_of(stand) as client:
        body = {"text": ANSWERS, "reasoning_parser": "gpt-oss"}
        assert (await client.post("/separate_reasoning", json=body)).json() == {"reasoning_text": "Easy.", "text": "Sunny."}
        body = {"text": CALLS, "tools": [TOOL], "tool_call_parser": "gpt-oss"}
        (made,) = (await client.post("/parse_function_call", json=body)).json()["calls"]
    assert made == {"tool_index": 0, "name": "get_weather", "parameters": '{"city": "Paris"}'}
    pieces: list[Piece] = create_free_parser("gpt-oss", TOOLS).feed(ANSWERS)
    assert [type(piece) for piece in pieces] == [Reasoning, Text]
