"""Why an answer ended and what it cost, on every route that generates: the same, streamed or not, with a scheduler that counts and
with the real one."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

from sglang.srt.server.generate_req import GenerateOut
from sglang.srt.server.openai.answers import Usage
from tests.server.conftest import MakeStand, Stand
from tests.server.http_tools import client_of
from tests.server.test_schema_checks import ONCE, TWICE, answers, verdict_here
from tests.server.test_schema_checks import SCHEMA as UNIQUE
from tests.server.test_tools import CALL, HELLO

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
FUNCTION = {"name": "get_weather", "parameters": SCHEMA}
BODIES: dict[str, dict[str, Any]] = {
    "/generate": {"text": "The quick"},
    "/v1/completions": {"prompt": "The quick"},
    "/v1/chat/completions": {"messages": HELLO},
    "/v1/responses": {"input": "The quick"},
    "/v1/messages": {"messages": HELLO},
}
LIMITS = {
    "/generate": "max_new_tokens", "/v1/completions": "max_tokens", "/v1/chat/completions": "max_tokens",
    "/v1/responses": "max_output_tokens", "/v1/messages": "max_tokens",
}  # fmt: skip
TOOLS: dict[str, list[dict[str, Any]]] = {
    "/v1/chat/completions": [{"type": "function", "function": FUNCTION}],
    "/v1/responses": [{"type": "function", **FUNCTION}],
    "/v1/messages": [{"name": "get_weather", "input_schema": SCHEMA}],
}
REASONS = {
    "length": {"/v1/responses": "max_output_tokens", "/v1/messages": "max_tokens"},
    "stop": {"/v1/responses": "completed", "/v1/messages": "end_turn"},
    "stop string": {"/v1/responses": "completed", "/v1/messages": "stop_sequence"},
    "tool_calls": {"/v1/responses": "completed", "/v1/messages": "tool_use"},
    "abort": {"/v1/responses": "aborted", "/v1/messages": "pause_turn"},
}
CASES: list[tuple[str, str, dict[str, Any], str]] = [
    ("the end of text", "one two three", {}, "stop"),
    ("the limit", "one two three", {"limit": 3}, "length"),
    ("the limit at the last token", "one", {"limit": 1}, "length"),
    ("a stop string", "one two three", {"stop": ["two"]}, "stop string"),
    ("a stop string at the beginning", "one two three", {"stop": ["o"]}, "stop string"),
    ("a call", CALL, {"tools": True}, "tool_calls"),
    ("a call that is cut", CALL, {"tools": True, "limit": 30}, "length"),
    ("several samples", "one two three", {"n": 3}, "stop"),
]


class Counted:
    """Lets the scheduler answer with `text`; counts what it samples."""

    def __init__(self, stand: Stand, text: str) -> None:
        tokenizer = stand.manager.need_tokenizer()
        ids = [*tokenizer.encode(text, add_special_tokens=False), min(tokenizer.vocabulary.eos_token_ids)]
        self.num_sampled = 0

        def sample(_: object, i: int) -> int:
            self.num_sampled += 1
            return ids[i]

        stand.scheduler.next_of = sample


def body_for(path: str, how: dict[str, Any], stream: bool) -> dict[str, Any]:
    stop = {"stop_sequences" if path == "/v1/messages" else "stop": how["stop"]} if "stop" in how else {}
    sampling = {LIMITS[path]: how.get("limit", 200), **stop, **({"n": how["n"]} if "n" in how else {})}
    body = {**BODIES[path], "stream": stream}
    if path == "/generate":
        return {**body, "sampling_params": sampling}
    if stream and path in ("/v1/completions", "/v1/chat/completions"):
        body["stream_options"] = {"include_usage": True}
    return {**body, **sampling, **({"tools": TOOLS[path]} if how.get("tools") else {})}


def told(path: str, events: list[Any]) -> tuple[set[str], int]:
    """(reasons, completion tokens) of a reply, or of the events of a stream."""
    if path == "/generate":
        rows = [row for event in events for row in (event if isinstance(event, list) else [event])]
        last = {row.get("index", i if len(events) == 1 else 0): row["meta_info"] for i, row in enumerate(rows)}
        return {meta["finish_reason"]["type"] for meta in last.values()}, sum(m["completion_tokens"] for m in last.values())
    if path in ("/v1/completions", "/v1/chat/completions"):
        reasons = {choice["finish_reason"] for event in events for choice in event["choices"]} - {None}
        return reasons, next(event["usage"]["completion_tokens"] for event in reversed(events) if event.get("usage"))
    if path == "/v1/responses":
        response = events[-1].get("response", events[-1])
        details = response["incomplete_details"]
        return {details["reason"] if details else response["status"]}, response["usage"]["output_tokens"]
    if len(events) == 1:
        return {events[0]["stop_reason"]}, events[0]["usage"]["output_tokens"]
    delta = next(event for event in events if event["type"] == "message_delta")
    return {delta["delta"]["stop_reason"]}, delta["usage"]["output_tokens"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", BODIES)
async def test_reasons_and_counts(make_stand: MakeStand, path: str, stream: bool) -> None:
    stand = make_stand(info={"context_len": 2048}, tool_call_parser="generic")
    async with client_of(stand) as client:
        for case, text, how, reason in CASES:
            if (how.get("tools") and path not in TOOLS) or ("n" in how and path in ("/v1/responses", "/v1/messages")):
                continue
            counted = Counted(stand, text)
            response = await client.post(path, json=body_for(path, how, stream))
            assert response.status_code == 200, (case, response.text)
            assert told(path, events_of(response, stream)) == ({reason_on(path, reason)}, counted.num_sampled), case


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", BODIES)
async def test_what_an_operator_aborts_is_counted(make_stand: MakeStand, path: str, stream: bool) -> None:
    stand = make_stand(info={"context_len": 2048})
    counted = Counted(stand, "one two three " * 300)
    async with client_of(stand) as client:
        asked = asyncio.ensure_future(client.post(path, json=body_for(path, {"limit": 1000}, stream)))
        while counted.num_sampled < 20:
            await asyncio.sleep(0)
        assert (await client.post("/abort_request", json={"abort_all": True})).status_code == 200
        response = await asked
    assert response.status_code == 200, response.text
    assert 20 <= counted.num_sampled < 1000
    assert told(path, events_of(response, stream)) == ({reason_on(path, "abort")}, counted.num_sampled)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", BODIES)
async def test_an_answer_that_is_made_anew_is_counted_once(
    make_stand: MakeStand, monkeypatch: pytest.MonkeyPatch, path: str, stream: bool
) -> None:
    """What was discarded is told beside it."""
    verdict_here(monkeypatch)
    stand = make_stand(info={"context_len": 2048})
    stand.scheduler.unenforced = ("#/uniqueItems",)
    answers(stand, TWICE, TWICE, ONCE)
    ask = {"type": "json_schema", "json_schema": {"name": "x", "schema": UNIQUE}}
    forms: dict[str, dict[str, Any]] = {
        "/v1/responses": {"text": {"format": {"type": "json_schema", "name": "x", "schema": UNIQUE}}},
        "/v1/messages": {"output_config": {"format": {"type": "json_schema", "schema": UNIQUE}}},
    }
    body = body_for(path, {}, stream)
    if path == "/generate":
        body["sampling_params"]["json_schema"] = json.dumps(UNIQUE)
    else:
        body |= forms.get(path, {"response_format": ask})
    async with client_of(stand) as client:
        response = await client.post(path, json=body)
    assert response.status_code == 200, response.text
    encode = stand.manager.need_tokenizer().encode
    once, twice = (len(encode(text, add_special_tokens=False)) + 1 for text in (ONCE, TWICE))
    events = events_of(response, stream)
    assert told(path, events) == ({reason_on(path, "stop")}, once)
    assert f'"discarded_tokens": {2 * twice}' in json.dumps(events)


# --- the real scheduler -----------------------------------------------------------------------------------------------------

STORY = "Once upon a time there was a small village, and"
REAL: list[tuple[str, dict[str, Any]]] = [
    ("the limit", {"limit": 9}),
    ("a stop string", {"stop": ["the"]}),
    ("a stop string and no more", {"stop": ["."], "limit": 60}),
    ("several samples", {"n": 2, "limit": 7}),
    ("stop_token_ids", {"stop_token_ids": True, "limit": 40}),
]


def own_words(http: httpx.Client, path: str) -> dict[str, Any]:
    """The prompt of a route in that of /generate, so that its ids can be counted there."""
    if path in ("/generate", "/v1/completions"):
        return {"text": STORY}
    messages = [{"role": "user", "content": STORY}]
    text = http.post("/apply_chat_template", json={"messages": messages}).json()["text"]
    ids = http.post("/tokenize", json={"text": text, "add_special_tokens": False}).json()["tokens"]
    return {"input_ids": ids}


@pytest.mark.parametrize("path", BODIES)
def test_the_real_scheduler_counts_what_it_samples(http: httpx.Client, path: str) -> None:
    """By the ids that /generate gives for the same prompt, from which every end is known beforehand."""
    prompt = own_words(http, path)
    sampling = {"temperature": 0, "max_new_tokens": 200}
    plain = http.post("/generate", json={**prompt, "sampling_params": sampling}, timeout=120).json()
    ids = plain["output_ids"]
    for case, how in REAL:
        if ("stop_token_ids" in how or "n" in how) and path in ("/v1/responses", "/v1/messages"):
            continue
        expected, reason = _expected(http, ids, how)
        for stream in (False, True):
            body = body_for(path, {**how, "limit": how.get("limit", 200)}, stream)
            body |= {key: STORY for key in ("text", "prompt", "input") if key in body}
            if "messages" in body:
                body["messages"] = [{"role": "user", "content": STORY}]
            own = body["sampling_params"] if path == "/generate" else body
            own["temperature"] = 0
            if "stop_token_ids" in how:
                own["stop_token_ids"] = [ids[5]]
            response = http.post(path, json=body, timeout=120)
            assert response.status_code == 200, response.text
            found = told(path, events_of(response, stream))
            assert found == ({reason_on(path, reason)}, how.get("n", 1) * expected), (case, stream)


def _expected(http: httpx.Client, ids: list[int], how: dict[str, Any]) -> tuple[int, str]:
    """(tokens of one sample, why it ends)"""
    limit = how.get("limit", 200)
    if "stop_token_ids" in how and (at := ids.index(ids[5])) < limit:
        return at + 1, "stop"
    for stop in how.get("stop", ()):
        for count in range(1, min(len(ids), limit) + 1):
            if stop in http.post("/detokenize", json={"tokens": ids[:count]}).json()["text"]:
                return count, "stop string"
    return (limit, "length") if len(ids) >= limit else (len(ids), "stop")


def events_of(response: httpx.Response, stream: bool) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"] if stream else [response.json()]


def reason_on(path: str, reason: str) -> str:
    return REASONS[reason].get(path, reason.partition(" ")[0])


@pytest.mark.parametrize("cached", [(0, 5), (5, 0), (3, 3)])
def test_samples_that_find_their_own_prompt_in_the_cache_save_nothing(cached: tuple[int, int]) -> None:
    usage = Usage(2)
    for index, num_cached in enumerate(cached):
        usage.add(GenerateOut(index, "r", "", [], None, 6, num_cached, 2))
    told = usage.as_dict()
    assert (told["prompt_tokens"], told["completion_tokens"]) == (6, 4)
    assert told["prompt_tokens_details"]["cached_tokens"] == min(cached)
