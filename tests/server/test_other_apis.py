"""/v1/responses, /v1/messages, /v1/score and /v1/rerank: with the vendors' own clients, against a scheduler that says what it is
told to."""

from __future__ import annotations

import asyncio
import importlib
import json
import math
import re
from collections.abc import AsyncIterator
from typing import Any

import anthropic
import httpx
import msgspec
import openai
import pytest

from sglang.srt.errors import NoSuchResponseError, RequestError
from sglang.srt.server.http import wire as responses
from sglang.srt.server.limits.json_limits import JsonScan
from sglang.srt.server.openai.responses import store as response_store
from sglang.srt.server.openai.responses.store import ResponseStore, history_of
from tests.server.conftest import MakeStand, Stand
from tests.server.echo_scheduler import logprob_of
from tests.server.http_tools import client_of
from tests.server.test_tools import ARGUMENTS, CALL, prompt_of, received, says

try:  # what the client is made of: httpx, and since its version 1 httpx2
    HTTPX: Any = importlib.import_module("httpx2")
except ModuleNotFoundError:
    HTTPX = httpx

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL = {"type": "function", "name": "get_weather", "parameters": SCHEMA}
CLAUDE_TOOL: Any = {"name": "get_weather", "description": "Weather", "input_schema": SCHEMA}
REASONING_TEXT = "<think>hm</think>Yes."


@pytest.fixture
def stand(make_stand: MakeStand) -> Stand:
    return make_stand(info={"context_len": 2048}, reasoning_parser="qwen3")


@pytest.fixture
async def client(stand: Stand) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url="http://localhost/v1", api_key="x", http_client=client_of(stand), max_retries=0
    ) as one:
        yield one


@pytest.fixture
async def claude(stand: Stand) -> AsyncIterator[anthropic.AsyncAnthropic]:
    transport = HTTPX.ASGITransport(app=stand.app, raise_app_exceptions=False)
    http = HTTPX.AsyncClient(transport=transport, base_url="http://localhost")
    async with anthropic.AsyncAnthropic(base_url="http://localhost", api_key="x", http_client=http, max_retries=0) as one:
        yield one


async def post(stand: Stand, path: str, **body: Any) -> httpx.Response:
    async with client_of(stand) as http:
        return await http.post(path, json=body)


# --- responses --------------------------------------------------------------------------------------------------------------


async def test_a_response_has_reasoning_and_a_message(stand: Stand, client: openai.AsyncOpenAI) -> None:
    says(stand, REASONING_TEXT)
    reply = await client.responses.create(model="m", input="The quick", instructions="Be kind.", metadata={"a": "b"})
    assert (reply.status, reply.output_text, reply.metadata) == ("completed", "Yes.", {"a": "b"})
    assert [item.type for item in reply.output] == ["reasoning", "message"]
    assert prompt_of(stand).startswith("<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nThe quick<|im_end|>")
    assert reply.usage is not None
    assert reply.usage.total_tokens == reply.usage.input_tokens + reply.usage.output_tokens
    says(stand, "A long answer to be cut")
    reply = await client.responses.create(model="m", input="The quick", max_output_tokens=2)
    assert reply.status == "incomplete"
    assert reply.incomplete_details is not None
    assert reply.incomplete_details.reason == "max_output_tokens"


async def test_a_responses_tools_and_history(stand: Stand, client: openai.AsyncOpenAI) -> None:
    says(stand, CALL)
    tools: Any = [TOOL]
    reply = await client.responses.create(model="m", input="x", tools=tools, tool_choice="required")
    (call,) = reply.output
    assert call.type == "function_call"
    assert (call.name, call.arguments) == ("get_weather", ARGUMENTS)
    assert received(stand).sampling.json_schema is not None
    history: Any = [
        {"role": "user", "content": [{"type": "input_text", "text": "weather?"}]},
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {"type": "function_call", "call_id": call.call_id, "name": call.name, "arguments": call.arguments},
        {"type": "function_call_output", "call_id": call.call_id, "output": "18 degrees"},
    ]
    await client.responses.create(
        model="m", input=history, tools=tools, tool_choice={"type": "function", "name": "get_weather"}
    )
    assert f"<|im_start|>assistant\n{CALL}<|im_end|>\n<|im_start|>user\nResult of get_weather:\n18 degrees" in prompt_of(stand)


async def test_a_streamed_response_makes_the_same_response(stand: Stand, client: openai.AsyncOpenAI) -> None:
    tools: Any = [TOOL]
    for text in (REASONING_TEXT, f"Let me look. {CALL}"):
        says(stand, text)
        whole = await client.responses.create(model="m", input="x", tools=tools)
        async with client.responses.stream(model="m", input="x", tools=tools) as stream:
            events = [event async for event in stream]
            final = await stream.get_final_response()
        kinds = [event.type for event in events]
        assert kinds[:2] == ["response.created", "response.in_progress"]
        assert kinds[-1] == "response.completed"
        assert [e.sequence_number for e in events] == list(range(len(events)))
        shown = [(item.type, getattr(item, "arguments", None), getattr(item, "content", None)) for item in final.output]
        expected = [(item.type, getattr(item, "arguments", None), getattr(item, "content", None)) for item in whole.output]
        assert json.dumps(shown, default=_plain) == json.dumps(expected, default=_plain)


async def test_a_stored_response_is_streamed_again(stand: Stand) -> None:
    """The same events, but that each text is one piece."""
    asks: list[tuple[str, dict[str, Any]]] = [
        (REASONING_TEXT, {}),
        (f"Let me look. {CALL}", {"tools": [TOOL]}),
        ("Yes, " * 20, {"max_output_tokens": 4}),
        ("Yes.", {"include": ["message.output_text.logprobs"], "top_logprobs": 2}),
        ("", {}),
    ]
    async with client_of(stand) as http:
        for text, more in asks:
            says(stand, text)
            live = _events((await http.post("/v1/responses", json={"input": "x", "stream": True, **more})).text)
            path = f"/v1/responses/{live[-1]['response']['id']}"
            reply = await http.get(path, params={"stream": "true"})
            again = _events(reply.text)
            assert reply.headers["content-type"].startswith("text/event-stream")
            assert [event["sequence_number"] for event in again] == list(range(len(again)))
            told, before = _merged(again), _merged(live)
            for one, other in zip(told, before, strict=True):  # the token that ended the answer comes late in a live stream
                if one["type"].endswith(".delta"):
                    logprobs = other.pop("logprobs", [])
                    assert one.pop("logprobs", [])[: len(logprobs)] == logprobs
            assert told == before
            assert again[-1]["response"] == (await http.get(path)).json() == (await http.get(f"{path}?stream=false")).json()
            rest = await http.get(path, params={"stream": "true", "starting_after": 1})
            assert _events(rest.text) == again[2:]
            wrong = ("stream=maybe", "starting_after=3", "stream=true&starting_after=x", "stream=true&starting_after=-1")
            for query in wrong:
                reply = await http.get(f"{path}?{query}")
                assert reply.status_code == 400 and reply.json()["error"]["param"] in ("stream", "starting_after"), query
        assert (await http.get("/v1/responses/none?stream=true")).status_code == 404


async def test_the_openai_client_retrieves_a_stream(stand: Stand, client: openai.AsyncOpenAI) -> None:
    says(stand, REASONING_TEXT)
    first = await client.responses.create(model="m", input="x")
    events = [event async for event in await client.responses.retrieve(first.id, stream=True)]
    assert events[-1].type == "response.completed" and events[-1].response == first
    text = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(text) == first.output_text


def _events(text: str) -> list[dict[str, Any]]:
    return [json.loads(event.partition("\ndata: ")[2]) for event in text.strip().split("\n\n")]


def _merged(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without numbers, and with deltas that follow each other as one."""
    merged: list[dict[str, Any]] = []
    for event in events:
        event = {name: value for name, value in event.items() if name != "sequence_number"}
        if merged and event["type"].endswith(".delta") and merged[-1]["type"] == event["type"]:
            merged[-1]["delta"] += event["delta"]
            merged[-1].get("logprobs", []).extend(event.get("logprobs", []))
        else:
            merged.append(event)
    return merged


def _plain(value: Any) -> Any:
    return value.model_dump(exclude={"parsed", "parsed_arguments"})


async def test_a_response_follows_a_stored_one(stand: Stand, client: openai.AsyncOpenAI) -> None:
    says(stand, REASONING_TEXT)
    first = await client.responses.create(model="m", input="The quick", instructions="Be kind.")
    assert first.store is True  # type: ignore[attr-defined]
    again = await client.responses.retrieve(first.id)
    assert again.output_text == "Yes." and again.usage == first.usage
    async with client.responses.stream(model="m", input="brown", previous_response_id=first.id) as stream:
        async for _ in stream:
            pass
        second = await stream.get_final_response()
    turns = "<|im_start|>user\nThe quick<|im_end|>\n<|im_start|>assistant\nYes.<|im_end|>\n<|im_start|>user\nbrown<|im_end|>"
    assert prompt_of(stand).startswith(turns), "no instructions of before, no reasoning"
    assert second.previous_response_id == first.id
    await client.responses.create(model="m", input="fox", previous_response_id=second.id)
    assert turns in prompt_of(stand) and prompt_of(stand).count("Yes.") == 2
    items = await client.responses.input_items.list(second.id)
    assert [item.type for item in items.data] == ["message"]
    await client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve(first.id)
    with pytest.raises(openai.BadRequestError, match="deleted"):
        await client.responses.create(model="m", input="x", previous_response_id=second.id)


async def test_listed_items_have_ids(stand: Stand, client: openai.AsyncOpenAI) -> None:
    """Their own, or new ones that stay; a request that follows reads the same."""
    says(stand, "Yes.")
    call = {"type": "function_call", "call_id": "c1", "name": "look", "arguments": "{}"}
    given: Any = [
        {"role": "user", "content": "The quick", "id": None},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "brown"}], "id": "msg_own"},
        {"type": "reasoning", "summary": []},
        call,
        {"type": "function_call_output", "call_id": "c1", "output": "a fox"},
    ]
    first = await client.responses.create(model="m", input=given)
    before = prompt_of(stand)
    items = (await client.responses.input_items.list(first.id)).data
    assert [item.type for item in items] == ["message", "message", "reasoning", "function_call", "function_call_output"]
    ids = [str(item.id) for item in items]
    assert ids[1] == "msg_own" and len(set(ids)) == 5 and all(re.fullmatch(r"[a-z]+_\w+", name) for name in ids)
    assert [item.id for item in (await client.responses.input_items.list(first.id)).data] == ids
    await client.responses.create(model="m", input="jumps", previous_response_id=first.id)
    assert prompt_of(stand).startswith(before.removesuffix("<|im_start|>assistant\n"))
    text = await client.responses.create(model="m", input="The quick")
    assert (await client.responses.input_items.list(text.id)).data[0].id.startswith("msg_")


async def test_anthropics_clients_list_the_model(
    stand: Stand, claude: anthropic.AsyncAnthropic, client: openai.AsyncOpenAI
) -> None:
    found = [model async for model in claude.models.list()]
    assert [(model.id, model.type, model.display_name) for model in found] == [("test-model", "model", "test-model")]
    page = await claude.models.list()
    assert (page.has_more, page.first_id, page.last_id) == (False, "test-model", "test-model")
    one = await claude.models.retrieve("default")
    assert one == found[0] and one.created_at.tzinfo is not None
    with pytest.raises(anthropic.NotFoundError, match="'other' does not exist here") as error:
        await claude.models.retrieve("other")
    assert error.value.body == {
        "type": "error",
        "error": {"type": "not_found_error", "message": error.value.body["error"]["message"]},
    }  # type: ignore[index]
    plain = await client.models.retrieve("test-model")
    assert plain.created == int(one.created_at.timestamp()) and not hasattr(plain, "display_name")


async def test_a_stored_call_gets_its_result(stand: Stand, client: openai.AsyncOpenAI) -> None:
    says(stand, CALL)
    tools: Any = [TOOL]
    first = await client.responses.create(model="m", input="weather?", tools=tools, tool_choice="required")
    (call,) = first.output
    assert call.type == "function_call"
    result: Any = [{"type": "function_call_output", "call_id": call.call_id, "output": "18 degrees"}]
    await client.responses.create(model="m", input=result, tools=tools, previous_response_id=first.id)
    assert f"<|im_start|>assistant\n{CALL}<|im_end|>\n<|im_start|>user\nResult of get_weather:\n18 degrees" in prompt_of(stand)


async def test_what_is_not_to_be_stored_is_not(stand: Stand, client: openai.AsyncOpenAI) -> None:
    says(stand, "Yes.")
    first = await client.responses.create(model="m", input="x", store=False)
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve(first.id)


async def test_a_stored_response_belongs_to_a_key(make_stand: MakeStand) -> None:
    stand = make_stand(api_keys=("one", "two"))
    says(stand, "Yes.")
    async with client_of(stand, authorization="Bearer one") as one, client_of(stand, authorization="Bearer two") as two:
        name = (await one.post("/v1/responses", json={"input": "x"})).json()["id"]
        assert (await one.get(f"/v1/responses/{name}")).status_code == 200
        for reply in (
            await two.get(f"/v1/responses/{name}"),
            await two.get(f"/v1/responses/{name}/input_items"),
            await two.delete(f"/v1/responses/{name}"),
        ):
            assert reply.status_code == 404 and reply.json()["error"]["type"] == "invalid_request_error"
        assert (await two.post("/v1/responses", json={"input": "x", "previous_response_id": name})).status_code == 400


async def test_what_is_stored_is_sent_in_pieces(stand: Stand) -> None:
    """So that many who ask for it and read nothing do not have a copy each."""
    says(stand, "Yes.")
    item = {"type": "reasoning", "summary": "r" * 2_000_000}
    async with client_of(stand) as http:
        reply = await http.post("/v1/responses", json={"input": [item, {"role": "user", "content": "x"}]})
        response = reply.json()
        path = f"/v1/responses/{response['id']}"
        assert (await http.get(path)).json() == response
        stored = (await http.get(f"{path}/input_items")).json()["data"][0]
        assert stored == {**item, "id": stored["id"]}
    sizes = []

    async def send(message: Any) -> None:
        sizes.append(len(message.get("body", b"")))

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    scope = {"type": "http", "method": "GET", "path": f"{path}/input_items", "headers": [(b"host", b"localhost")]}
    await stand.app({**scope, "http_version": "1.1", "query_string": b"", "raw_path": b""}, receive, send)
    assert sum(sizes) > 2_000_000 and max(sizes) < 200_000


def test_stored_responses_are_bounded() -> None:
    store = ResponseStore(max_responses=3, max_bytes=10_000)

    def put(name: str, previous: str | None = None, size: int = 10) -> None:
        store.put("", [{"content": "x" * size}], {"id": name, "previous_response_id": previous, "output": [{"id": name}]})

    for name, previous in (("a", None), ("b", "a"), ("c", None)):
        put(name, previous)
    assert history_of(store.chain("b", "")) == [{"content": "x" * 10}, {"id": "a"}, {"content": "x" * 10}, {"id": "b"}]
    put("d")
    assert store.get("a", "") and store.get("b", ""), "a conversation that goes on is kept"
    with pytest.raises(NoSuchResponseError):
        store.get("c", "")
    put("e", size=9_900)
    assert len(store) == 1 and store.num_bytes <= 10_000
    store.delete("e", "")
    assert (len(store), store.num_bytes) == (0, 0)


def test_a_small_request_reads_no_more_than_so_much_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each response it follows: input and output, and nothing of all that is said again; all together within one limit."""
    store, lengths = ResponseStore(), []

    def noting(data: bytes) -> Any:
        lengths.append(len(data))
        return msgspec.json.decode(data)

    monkeypatch.setattr(response_store, "decode", noting)
    echo = {"tools": ["x" * 500_000], "instructions": "y" * 500_000}
    for i in range(40):
        before = str(i - 1) if i else None
        store.put("", [f"in {i}"], {"id": str(i), "previous_response_id": before, "output": [{"id": f"out {i}"}], **echo})
    assert history_of(store.chain("39", "")) == [one for i in range(40) for one in (f"in {i}", {"id": f"out {i}"})]
    assert sum(lengths) < 2000
    long = "x" * (response_store.MAX_HISTORY_BYTES // 3)
    for i in range(4):
        before = f"long {i - 1}" if i else None
        store.put("", [long], {"id": f"long {i}", "previous_response_id": before, "output": [], "metadata": {}})
    assert history_of(store.chain("long 1", "")) == [long, long]
    lengths.clear()
    with pytest.raises(RequestError, match="read again") as caught:
        history_of(store.chain("long 3", ""))
    assert caught.value.param == "previous_response_id" and not lengths


def test_what_a_request_follows_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    store, counted = ResponseStore(), []
    read = JsonScan.read
    monkeypatch.setattr(JsonScan, "read", lambda scan, text: (counted.append(len(text)), read(scan, text))[1])
    for i in range(5):
        before = str(i - 1) if i else None
        store.put("", [[[]] * 60_000], {"id": str(i), "previous_response_id": before, "output": []})
    for _ in range(3):
        history_of(store.chain("2", ""))
    assert len(counted) == 2 * 3
    with pytest.raises(RequestError, match="values"):
        history_of(store.chain("4", ""))


async def test_formats_of_responses(stand: Stand, client: openai.AsyncOpenAI) -> None:
    says(stand, '{"city": "Paris"}')
    text: Any = {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA, "strict": True}}
    reply = await client.responses.create(model="m", input="x", text=text, reasoning={"summary": "auto"})
    assert json.loads(reply.output_text) == {"city": "Paris"}
    assert json.loads(received(stand).sampling.json_schema or "") == SCHEMA


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"previous_response_id": "resp_1"}, "there is no response 'resp_1'"),
        ({"previous_response_id": 1}, "must be a string"),
        ({"store": "yes"}, "true or false"),
        ({"conversation": "c"}, "conversation"),
        ({"background": True}, "background"),
        ({"inputs": "x"}, "did you mean 'input'"),
        ({"input": []}, "input must be"),
        ({"input": [{"type": "computer_call_output"}]}, "not supported"),
        ({"input": [{"type": "file_search_call"}]}, "must not be empty"),
        ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "not supported"),
        ({"input": [{"role": "robot", "content": "x"}]}, "role"),
        ({"tools": [{"type": "web_search"}], "tool_choice": "required"}, "'web_search'"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "name": "nobody"}}, "'nobody'"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"max_output_tokens": "many"}, "integer"),
    ],
)
async def test_wrong_responses_requests(stand: Stand, change: dict[str, Any], words: str) -> None:
    reply = await post(stand, "/v1/responses", **{"input": "x", **change})
    assert reply.status_code == 400
    assert words in reply.json()["error"]["message"]


async def test_an_error_in_a_responses_stream_is_an_event(stand: Stand) -> None:
    stand.scheduler.stuck = True
    kept, responses.FIRST_OUTPUT_SECONDS = responses.FIRST_OUTPUT_SECONDS, 0.01
    try:
        task = asyncio.create_task(post(stand, "/v1/responses", input="x", stream=True))
        while not stand.manager.num_in_flight:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        stand.manager.scheduler_died("it fell over")
        text = (await task).text
    finally:
        responses.FIRST_OUTPUT_SECONDS = kept
    assert "it fell over" in text
    kinds = [line.removeprefix("event: ") for line in text.splitlines() if line.startswith("event: ")]
    assert kinds[-2:] == ["error", "response.failed"], "clients read one or the other"
    failed = json.loads(text.splitlines()[-2].removeprefix("data: "))
    assert (failed["sequence_number"], failed["response"]["status"]) == (len(kinds) - 1, "failed")
    assert failed["response"]["error"]["code"] == "server_error"


# --- messages ---------------------------------------------------------------------------------------------------------------


async def test_a_message_has_reasoning_and_text(stand: Stand, claude: anthropic.AsyncAnthropic) -> None:
    says(stand, REASONING_TEXT)
    reply = await claude.messages.create(
        model="m", max_tokens=50, system="Be kind.", messages=[{"role": "user", "content": "The quick"}]
    )
    assert [block.type for block in reply.content] == ["thinking", "text"]
    assert (reply.stop_reason, reply.role) == ("end_turn", "assistant")
    assert prompt_of(stand).startswith("<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nThe quick<|im_end|>")
    count = await claude.messages.count_tokens(
        model="m", system="Be kind.", messages=[{"role": "user", "content": "The quick"}]
    )
    assert count.input_tokens == len(received(stand).input_ids) == reply.usage.input_tokens
    says(stand, "one two three")
    reply = await claude.messages.create(
        model="m", max_tokens=50, stop_sequences=["two"], messages=[{"role": "user", "content": "x"}]
    )
    assert (reply.stop_reason, reply.stop_sequence) == ("stop_sequence", "two")
    reply = await claude.messages.create(model="m", max_tokens=1, messages=[{"role": "user", "content": "x"}])
    assert reply.stop_reason == "max_tokens"


async def test_a_messages_tools_and_history(stand: Stand, claude: anthropic.AsyncAnthropic) -> None:
    says(stand, CALL)
    ask: Any = {"model": "m", "max_tokens": 200, "tools": [CLAUDE_TOOL], "tool_choice": {"type": "any"}}
    reply = await claude.messages.create(messages=[{"role": "user", "content": "weather?"}], **ask)
    (call,) = reply.content
    assert call.type == "tool_use"
    assert (call.name, call.input, reply.stop_reason) == ("get_weather", json.loads(ARGUMENTS), "tool_use")
    history: Any = [
        {"role": "user", "content": "weather?"},
        {"role": "assistant", "content": [{"type": "tool_use", "id": call.id, "name": call.name, "input": call.input}]},
        {
            "role": "user",
            "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "18"}, {"type": "text", "text": "And?"}],
        },
    ]
    await claude.messages.create(messages=history, **ask)
    assert "Result of get_weather:\n18<|im_end|>\n<|im_start|>user\nAnd?<|im_end|>" in prompt_of(stand)


async def test_a_streamed_message_makes_the_same_message(stand: Stand, claude: anthropic.AsyncAnthropic) -> None:
    for text in (REASONING_TEXT, f"Let me look. {CALL}"):
        says(stand, text)
        ask: Any = {"model": "m", "max_tokens": 200, "tools": [CLAUDE_TOOL], "messages": [{"role": "user", "content": "x"}]}
        whole = await claude.messages.create(**ask)
        async with claude.messages.stream(**ask) as stream:
            kinds = [event.type async for event in stream]
            final = await stream.get_final_message()
        assert kinds[0] == "message_start"
        assert kinds[-1] == "message_stop"
        shown = [block.model_dump(exclude={"id", "parsed_output"}) for block in final.content]
        assert shown == [block.model_dump(exclude={"id", "parsed_output"}) for block in whole.content]
        assert final.stop_reason == whole.stop_reason
        assert final.usage.output_tokens == whole.usage.output_tokens


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"max_tokens": None}, "max_tokens is missing"),
        ({"messages": []}, "messages must be"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "role"),
        ({"messages": [{"role": "user", "content": [{"type": "document"}]}]}, "not supported"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "file"}}]}]}, "source"),
        (
            {"tools": [{"type": "web_search_20250305", "name": "web_search"}], "tool_choice": {"type": "any"}},
            "web_search_20250305",
        ),
        ({"tool_choice": {"type": "maybe"}}, "tool_choice"),
        ({"thinking": {"type": "maybe"}}, "thinking"),
        ({"message": "x"}, "did you mean 'messages'"),
        ({"container": "x"}, "container"),
    ],
)
async def test_wrong_messages_requests(stand: Stand, change: dict[str, Any], words: str) -> None:
    body: dict[str, Any] = {"max_tokens": 5, "messages": [{"role": "user", "content": "x"}], **change}
    reply = await post(stand, "/v1/messages", **body)
    assert reply.status_code == 400
    assert reply.json()["type"] == "error"
    assert reply.json()["error"]["type"] == "invalid_request_error"
    assert words in reply.json()["error"]["message"]


async def test_anthropics_header_is_a_key_too(make_stand: MakeStand) -> None:
    stand = make_stand(api_keys=("secret",))
    async with client_of(stand, **{"x-api-key": "secret"}) as http:
        assert (await http.get("/v1/models")).status_code == 200
    async with client_of(stand, **{"x-api-key": "wrong"}) as http:
        assert (await http.get("/v1/models")).status_code == 401


async def test_aborting_everybody_takes_the_admins_key(make_stand: MakeStand) -> None:
    stand = make_stand(api_keys=("user",), admin_api_key="admin")
    for key, status in (("user", 403), ("admin", 200)):
        async with client_of(stand, Authorization=f"Bearer {key}") as http:
            assert (await http.post("/abort_request", json={"abort_all": True})).status_code == status
            assert (await http.post("/abort_request", json={"rid": "x"})).status_code == 200


# --- score and rerank -------------------------------------------------------------------------------------------------------


async def test_scores_are_probabilities_of_labels(stand: Stand) -> None:
    reply = (await post(stand, "/v1/score", query="The quick", items=[" brown", " fox"], label_token_ids=[3, 9])).json()
    tokenizer = stand.manager.need_tokenizer()
    for item, scores in zip((" brown", " fox"), reply["scores"], strict=True):
        at = len(tokenizer.encode("The quick" + item))
        assert scores == pytest.approx([math.exp(logprob_of(label, at)) for label in (3, 9)])
    reply = (await post(stand, "/v1/score", query=[4], items=[[5], [6, 7]], label_token_ids=[3, 9], apply_softmax=True)).json()
    assert all(sum(scores) == pytest.approx(1.0) for scores in reply["scores"])
    reply = (await post(stand, "/v1/score", query="b", items="a", label_token_ids=[3], item_first=True)).json()
    assert prompt_of(stand) == "ab"
    for wrong in ({"label_token_ids": []}, {"items": []}, {"label_token_ids": [10**6]}, {"query": 5}, {"items": [1.5]}):
        body = {"query": "a", "items": ["b"], "label_token_ids": [3], **wrong}
        assert (await post(stand, "/v1/score", **body)).status_code == 400


async def test_documents_are_ranked_by_their_nearness(make_stand: MakeStand, stand: Stand) -> None:
    embedding = make_stand(info={"embedding_dim": 8})
    documents = ["The quick brown fox", "12", "The quick"]
    reply = (await post(embedding, "/v1/rerank", query="The quick", documents=documents)).json()
    assert reply[0]["index"] == 2
    assert reply[0]["document"] == "The quick"
    assert reply[0]["score"] == pytest.approx(1.0)
    scores = [result["score"] for result in reply]
    assert scores == sorted(scores, reverse=True)
    assert len((await post(embedding, "/v1/rerank", query="a", documents=documents, top_n=1)).json()) == 1
    assert (await post(embedding, "/v1/rerank", query="a", documents=[])).status_code == 400
    assert (await post(embedding, "/v1/rerank", query="a", documents=["b", ""])).status_code == 400
    assert (await post(stand, "/v1/rerank", query="a", documents=["b"])).status_code == 400


WORDS = "a word " * 2000
REPEATED: dict[str, tuple[str, dict[str, Any], str]] = {
    "score": ("/v1/score", {"query": WORDS, "items": ["a"] * 4000, "label_token_ids": [5]}, "query"),
    "score, ids": ("/v1/score", {"query": [7] * 4000, "items": [[8]] * 4000, "label_token_ids": [5]}, "query"),
    "score, item first": (
        "/v1/score",
        {"query": WORDS, "items": ["a"] * 4000, "label_token_ids": [5], "item_first": True},
        "query",
    ),
    "rerank": ("/v1/rerank", {"query": WORDS, "documents": ["a"] * 4000}, "query"),
    "rerank, instruct": ("/v1/rerank", {"query": "a", "instruct": WORDS, "documents": ["a"] * 4000}, "query"),
    "choices": ("/score_choices", {"text": WORDS, "choices": ["a"] * 4000}, "text"),
    "choices, ids": ("/score_choices", {"input_ids": [7] * 4000, "choices": ["a"] * 4000}, "input_ids"),
}


@pytest.mark.parametrize("name", REPEATED)
async def test_what_each_prompt_repeats_is_bounded(make_stand: MakeStand, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some kilobytes would be tokenized for 20 s: refused before a token is made."""
    path, body, field = REPEATED[name]
    stand = make_stand(info={"context_len": 32768})
    tokenizer = stand.manager.need_tokenizer()
    monkeypatch.setattr(type(tokenizer), "encode_pieces", lambda *_: pytest.fail("a token was made"))
    async with client_of(stand) as client:
        response = await client.post(path, json=body)
    assert response.status_code == 400
    assert f"{field} has" in response.text and "8000000 in all" in response.text
