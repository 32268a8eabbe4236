"""A call that the limit, a stop string or the model itself cuts off is reported as finished by no API."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.server.conftest import MakeStand, Stand
from tests.server.http_tools import client_of
from tests.server.test_parsers import DEBRIS
from tests.server.test_tools import CALL, HELLO, TOOLS, says

WHOLE = f"<tool_call>\n{CALL}\n</tool_call>"
CHAT_TOOLS: dict[str, Any] = {"messages": HELLO, "tools": TOOLS}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
RESPONSES: dict[str, Any] = {"input": "x", "tools": [{"type": "function", "name": "get_weather", "parameters": SCHEMA}]}
MESSAGES: dict[str, Any] = {"messages": HELLO, "tools": [{"name": "get_weather", "input_schema": SCHEMA}]}
CUTS = [
    pytest.param(WHOLE, {"stop": ["Par"]}, "stop", id="stop string in a value"),
    pytest.param(WHOLE, {"stop": ['"arguments']}, "stop", id="stop string before the arguments"),
    pytest.param(WHOLE, {"stop": ['"unit"']}, "stop", id="stop string between two arguments"),
    pytest.param(WHOLE, {"limit": 50}, "length", id="limit"),
    pytest.param(WHOLE[: WHOLE.index('"unit"')], {}, "stop", id="end of text"),
    pytest.param(f'{WHOLE}\n<tool_call>\n{{"name": "get_weather", "arguments": {{', {}, "stop", id="the second of two"),
]


@pytest.fixture
def stand(make_stand: MakeStand) -> Stand:
    return make_stand(info={"context_len": 2048}, tool_call_parser="qwen")


async def post(stand: Stand, path: str, body: dict[str, Any]) -> Any:
    async with client_of(stand) as client:
        response = await client.post(path, json=body)
    assert response.status_code == 200, response.text
    if not body.get("stream"):
        return response.json()
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def asked(body: dict[str, Any], how: dict[str, Any], limit: str, stop: str) -> dict[str, Any]:
    more = {limit: how["limit"]} if "limit" in how else {}
    return {**body, **more, **({stop: how["stop"]} if "stop" in how else {})}


@pytest.mark.parametrize(("text", "how", "reason"), CUTS)
async def test_chat(stand: Stand, text: str, how: dict[str, Any], reason: str) -> None:
    says(stand, text)
    body = asked(CHAT_TOOLS, how, "max_tokens", "stop")
    (choice,) = (await post(stand, "/v1/chat/completions", body))["choices"]
    assert choice["finish_reason"] == reason
    last = choice["message"]["tool_calls"][-1]["function"]
    with pytest.raises(ValueError):
        json.loads(last["arguments"])
    events = await post(stand, "/v1/chat/completions", {**body, "stream": True})
    assert [c["finish_reason"] for e in events for c in e["choices"] if c["finish_reason"]] == [reason]


@pytest.mark.parametrize(("text", "how", "reason"), CUTS)
async def test_messages(stand: Stand, text: str, how: dict[str, Any], reason: str) -> None:
    says(stand, text)
    body = asked({**MESSAGES, "max_tokens": 500}, how, "max_tokens", "stop_sequences")
    reply = await post(stand, "/v1/messages", body)
    expected = "max_tokens" if reason == "length" else "stop_sequence" if "stop" in how else "end_turn"
    assert reply["stop_reason"] == expected
    inputs = [block["input"] for block in reply["content"] if block["type"] == "tool_use"]
    assert inputs == ([{"city": "Paris", "unit": "C"}] if text.startswith(WHOLE) and not how else [])
    events = await post(stand, "/v1/messages", {**body, "stream": True})
    assert [e["delta"]["stop_reason"] for e in events if e["type"] == "message_delta"] == [expected]


@pytest.mark.parametrize(("text", "how", "reason"), CUTS)
async def test_responses(stand: Stand, text: str, how: dict[str, Any], reason: str) -> None:
    says(stand, text)
    body = asked(RESPONSES, how, "max_output_tokens", "stop")
    reply = await post(stand, "/v1/responses", body)
    assert reply["status"] == "incomplete"
    assert reply["incomplete_details"] == {"reason": "max_output_tokens" if reason == "length" else "stop"}
    states = [item["status"] for item in reply["output"]]
    assert states == ["completed"] * (len(states) - 1) + ["incomplete"]
    events = await post(stand, "/v1/responses", {**body, "stream": True})
    assert [e["item"]["status"] for e in events if e["type"] == "response.output_item.done"] == states
    assert events[-1]["type"] == "response.incomplete"
    ended = sum(event["type"] == "response.function_call_arguments.done" for event in events)
    assert ended == states.count("completed"), "who runs a call as soon as its arguments are there runs none that was cut"


@pytest.mark.parametrize(
    ("text", "kind"), [("Some words that go on.", "message"), ("<think>Well, hm, let me see", "reasoning")]
)
async def test_items_of_a_response_that_the_limit_cuts_are_incomplete(make_stand: MakeStand, text: str, kind: str) -> None:
    stand = make_stand(reasoning_parser="qwen3")
    says(stand, text)
    reply = await post(stand, "/v1/responses", {"input": "x", "max_output_tokens": 12})
    (item,) = reply["output"]
    assert (item["type"], item["status"], reply["status"]) == (kind, "incomplete", "incomplete")
    says(stand, "<think>hm</think>Some words that go on and on")
    reply = await post(stand, "/v1/responses", {"input": "x", "max_output_tokens": 30})
    assert [item["status"] for item in reply["output"]] == ["completed", "incomplete"]


async def test_a_call_whose_arguments_have_ended_is_whole(stand: Stand) -> None:
    """A stop string may be what stands behind it, and small models leave the last bracket out."""
    for text, stop in ((WHOLE, ["</tool_call>"]), (WHOLE.partition("}}")[0] + "}", None)):
        says(stand, text)
        (choice,) = (await post(stand, "/v1/chat/completions", {**CHAT_TOOLS, "stop": stop}))["choices"]
        assert choice["finish_reason"] == "tool_calls"
        body = {**MESSAGES, "max_tokens": 500, "stop_sequences": stop}
        reply = await post(stand, "/v1/messages", body)
        assert (reply["stop_reason"], reply["content"][0]["input"]) == ("tool_use", {"city": "Paris", "unit": "C"})
        reply = await post(stand, "/v1/responses", {**RESPONSES, "stop": stop})
        assert (reply["status"], reply["output"][0]["status"]) == ("completed", "completed")


async def test_an_answer_that_the_limit_cuts_behind_a_whole_call_is_cut(stand: Stand) -> None:
    """More calls might have followed."""
    limit = len(stand.manager.need_tokenizer().encode(WHOLE, add_special_tokens=False)) + 1
    says(stand, f"{WHOLE} And so on and on.")
    body = {**CHAT_TOOLS, "max_tokens": limit}
    (choice,) = (await post(stand, "/v1/chat/completions", body))["choices"]
    assert choice["finish_reason"] == "length"
    assert json.loads(choice["message"]["tool_calls"][0]["function"]["arguments"]) == {"city": "Paris", "unit": "C"}
    assert joined(await post(stand, "/v1/chat/completions", {**body, "stream": True}))[2] == "length"
    reply = await post(stand, "/v1/messages", {**MESSAGES, "max_tokens": limit})
    assert (reply["stop_reason"], reply["content"][0]["input"]) == ("max_tokens", {"city": "Paris", "unit": "C"})
    reply = await post(stand, "/v1/responses", {**RESPONSES, "max_output_tokens": limit})
    assert (reply["status"], reply["output"][0]["status"]) == ("incomplete", "completed")


async def test_arguments_that_are_no_object_are_run_by_nobody(stand: Stand) -> None:
    says(stand, '<tool_call>\n{"name": "get_weather", "arguments": [1]}\n</tool_call>')
    reply = await post(stand, "/v1/messages", {**MESSAGES, "max_tokens": 500})
    text = '<tool_call>\n{"name": "get_weather", "arguments": [1]}\n</tool_call>'
    assert (reply["stop_reason"], reply["content"]) == ("end_turn", [{"type": "text", "text": text}])


async def test_a_call_in_plain_json_is_a_call(stand: Stand) -> None:
    says(stand, f"```json\n{CALL}\n```")
    (choice,) = (await post(stand, "/v1/chat/completions", CHAT_TOOLS))["choices"]
    assert (choice["finish_reason"], choice["message"]["content"]) == ("tool_calls", None)
    events = await post(stand, "/v1/chat/completions", {**CHAT_TOOLS, "stream": True})
    calls = [call for e in events for c in e["choices"] for call in c["delta"]["tool_calls"] or ()]
    assert json.loads("".join(call["function"]["arguments"] for call in calls)) == {"city": "Paris", "unit": "C"}
    strict = [{**tool, "function": {**tool["function"], "strict": True}} for tool in TOOLS]
    (choice,) = (await post(stand, "/v1/chat/completions", {**CHAT_TOOLS, "tools": strict}))["choices"]
    assert choice["message"]["tool_calls"] is None, "the schema holds calls to the model's own form"


F_TOOL = {"type": "object", "properties": {"x": {"type": "integer"}}}
CALLED = {"x": 1}


def joined(events: list[dict[str, Any]]) -> tuple[str, list[str], str]:
    """Content, arguments of each call, and the reason, from the chunks of a chat."""
    text, calls, reason = "", {}, ""
    for choice in (choice for event in events for choice in event["choices"]):
        text += choice["delta"].get("content") or ""
        for call in choice["delta"]["tool_calls"] or ():
            calls[call["index"]] = calls.get(call["index"], "") + call["function"]["arguments"]
        reason = choice["finish_reason"] or reason
    return text, list(calls.values()), reason


@pytest.mark.parametrize("name", sorted(DEBRIS))
async def test_a_stop_string_anywhere_in_a_call_of_every_format(make_stand: MakeStand, name: str) -> None:
    """Whoever runs calls, runs whole ones; streams and whole answers of all APIs say the same."""
    stand = make_stand(info={"context_len": 2048}, tool_call_parser=name)
    function = {"name": "f", "parameters": F_TOOL}
    of_chat = {"messages": HELLO, "tools": [{"type": "function", "function": function}]}
    of_responses = {"input": "x", "tools": [{"type": "function", **function}]}
    of_messages = {"messages": HELLO, "max_tokens": 500, "tools": [{"name": "f", "input_schema": F_TOOL}]}
    seen = set()
    for text in (written.replace("@", "") for written in DEBRIS[name]):
        says(stand, text)
        for at in (*range(1, len(text), max(len(text) // 5, 1)), None):
            stop = ["never"] if at is None else [text[at : at + 4]]
            (choice,) = (await post(stand, "/v1/chat/completions", {**of_chat, "stop": stop}))["choices"]
            calls = [call["function"]["arguments"] for call in choice["message"]["tool_calls"] or ()]
            runs = choice["finish_reason"] == "tool_calls"
            seen.add(runs)
            assert runs == (bool(calls) and all(map(is_whole, calls)))
            events = await post(stand, "/v1/chat/completions", {**of_chat, "stop": stop, "stream": True})
            assert joined(events) == (choice["message"]["content"] or "", calls, choice["finish_reason"])

            reply = await post(stand, "/v1/messages", {**of_messages, "stop_sequences": stop})
            inputs = [block["input"] for block in reply["content"] if block["type"] == "tool_use"]
            assert (inputs, reply["stop_reason"]) == (([CALLED], "tool_use") if runs else ([], "stop_sequence"))
            events = await post(stand, "/v1/messages", {**of_messages, "stop_sequences": stop, "stream": True})
            assert [e["delta"]["stop_reason"] for e in events if e["type"] == "message_delta"] == [reply["stop_reason"]]

            reply = await post(stand, "/v1/responses", {**of_responses, "stop": stop})
            states = [item["status"] for item in reply["output"] if item["type"] == "function_call"]
            assert states == (["completed"] if runs else ["incomplete"] * len(calls))
            assert reply["status"] == ("incomplete" if calls and not runs else "completed")
            events = await post(stand, "/v1/responses", {**of_responses, "stop": stop, "stream": True})
            assert sum(event["type"] == "response.function_call_arguments.done" for event in events) == runs
    assert seen == {True, False}


def is_whole(arguments: str) -> bool:
    try:
        return bool(json.loads(arguments) == CALLED)
    except ValueError:
        return False
