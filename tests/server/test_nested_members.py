"""Members of nested objects are done or refused, as those of a body are; the APIs whose clients add hints ignore hints, and nothing
that would change an answer."""

from __future__ import annotations

import json
import logging
from typing import Any

import httpx
import pytest

from sglang.srt.json_drafts import draft_of
from sglang.srt.server import fields
from sglang.srt.server.schema_check_work import validator_of
from tests.server.conftest import MakeStand, Stand
from tests.server.http_tools import client_of
from tests.server.test_tools import CALL, HELLO, NAMED, TOOLS, prompt_of, received, says

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
CALLED = {"id": "call_1", "type": "function", "function": {"name": "now", "arguments": "{}"}}
PICTURE = {"url": "data:image/png;base64,aaaa"}
CLAUDE_TOOL = {"name": "get_weather", "input_schema": {"type": "object"}}
ITEM = {"role": "user", "content": "x"}


@pytest.fixture
def stand(make_stand: MakeStand) -> Stand:
    return make_stand(info={"context_len": 2048})


async def post(stand: Stand, path: str, body: dict[str, Any]) -> httpx.Response:
    async with client_of(stand) as client:
        return await client.post(path, json=body)


async def chat(stand: Stand, **body: Any) -> httpx.Response:
    return await post(stand, "/v1/chat/completions", {"messages": HELLO, **body})


async def test_a_json_object_with_a_schema_follows_it(stand: Stand) -> None:
    says(stand, '{"a": 1}')
    assert (await chat(stand, response_format={"type": "json_object", "schema": SCHEMA})).status_code == 200
    assert json.loads(received(stand).sampling.json_schema or "") == SCHEMA
    body = {"prompt": "x", "response_format": {"type": "json_object", "schema": {"required": ["a"]}}}
    assert (await post(stand, "/v1/completions", body)).status_code == 200
    assert json.loads(received(stand).sampling.json_schema or "") == {"type": "object", "required": ["a"]}
    text = {"format": {"type": "json_object", "schema": SCHEMA}}
    assert (await post(stand, "/v1/responses", {"input": "x", "text": text})).status_code == 200
    assert json.loads(received(stand).sampling.json_schema or "") == SCHEMA
    assert (await chat(stand, response_format={"type": "json_object", "schema": None})).status_code == 200
    assert json.loads(received(stand).sampling.json_schema or "") == {"type": "object"}


@pytest.mark.parametrize("kinds", ["array", "string", ["array", "null"], [], 5, None])
async def test_the_schema_of_a_json_object_allows_objects(stand: Stand, kinds: Any) -> None:
    form = {"type": "json_object", "schema": {"type": kinds, "items": {"type": "integer"}}}
    for path, body in (("/v1/completions", {"prompt": "x"}), ("/v1/chat/completions", {"messages": HELLO})):
        response = await post(stand, path, {**body, "response_format": form})
        assert response.status_code == 400 and "asks for an object" in response.text


async def test_of_several_types_a_json_object_is_an_object(stand: Stand) -> None:
    says(stand, "{}")
    for schema in ({"type": ["array", "object"], "maxProperties": 2}, {"maxProperties": 2}):
        assert (await chat(stand, response_format={"type": "json_object", "schema": schema})).status_code == 200
        assert json.loads(received(stand).sampling.json_schema or "") == {"type": "object", "maxProperties": 2}


@pytest.mark.parametrize("draft", ["draft-04", "draft-06", "draft-07", "draft/2019-09", "draft/2020-12"])
async def test_a_json_object_is_one_beside_a_reference(stand: Stand, draft: str) -> None:
    """Until draft 7, nothing counts beside a $ref."""
    says(stand, "{}")
    told = {"type": ["array", "object"], "maxProperties": 1}
    schema = {"$schema": f"https://json-schema.org/{draft}/schema", "$ref": "#/definitions/A", "definitions": {"A": told}}
    assert (await chat(stand, response_format={"type": "json_object", "schema": schema})).status_code == 200
    sent = json.loads(received(stand).sampling.json_schema or "")
    validator = validator_of(draft_of(sent))(sent)
    assert [validator.is_valid(value) for value in ({}, {"a": 1}, [1], {"a": 1, "b": 2})] == [True, True, False, False]


def user(*parts: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(parts)}]}


def assistant(call: Any) -> dict[str, Any]:
    return {"messages": [*HELLO, {"role": "assistant", "content": None, "tool_calls": [call]}, *HELLO]}


TAG = {"type": "structural_tag", "structures": [{"begin": "<a>", "schema": {}, "end": "</a>"}], "triggers": ["<a>"]}
WRONG: list[tuple[str, dict[str, Any]]] = [
    ("shema", {"response_format": {"type": "json_object", "shema": SCHEMA}}),
    ("schema", {"response_format": {"type": "json_object", "schema": "x"}}),
    ("schema", {"response_format": {"type": "text", "schema": SCHEMA}}),
    ("schema", {"response_format": {"type": "json_schema", "schema": SCHEMA, "json_schema": {"schema": SCHEMA}}}),
    ("regex", {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA, "regex": "a"}}}),
    ("strict", {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA, "strict": "yes"}}}),
    ("name", {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA, "name": 1}}}),
    ("at_least_one", {"response_format": {**TAG, "at_least_one": True}}),
    ("style", {"response_format": {**TAG, "structures": [{**TAG["structures"][0], "style": "x"}]}}),  # type: ignore[index]
    ("prefix", user({"type": "text", "text": "a", "prefix": True})),
    ("refusal", user({"type": "text", "text": "a", "refusal": "b"})),
    ("text", user({"type": "refusal", "refusal": "a", "text": "b"})),
    ("size", user({"type": "image_url", "image_url": PICTURE, "size": 1})),
    ("crop", user({"type": "image_url", "image_url": {**PICTURE, "crop": 1}})),
    ("fps", user({"type": "video_url", "video_url": PICTURE, "fps": 1})),
    ("result", assistant({**CALLED, "result": "1"})),
    ("output", assistant({**CALLED, "function": {**CALLED["function"], "output": "1"}})),  # type: ignore[dict-item]
    ("type", assistant({**CALLED, "type": "custom"})),
    ("strict", {"tools": TOOLS, "tool_choice": {**NAMED, "strict": True}}),
    ("arguments", {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "now", "arguments": "{}"}}}),
    (
        "max",
        {
            "tools": TOOLS,
            "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [NAMED], "max": 1}},
        },
    ),
    (
        "mode",
        {
            "tools": TOOLS,
            "tool_choice": {"type": "allowed_tools", "mode": "auto", "allowed_tools": {"mode": "auto", "tools": [NAMED]}},
        },
    ),
    ("include_all", {"stream": True, "stream_options": {"include_all": True}}),
    ("kind", {"tools": [{**TOOLS[1], "kind": "x"}]}),
]


@pytest.mark.parametrize(("name", "change"), WRONG)
async def test_unknown_members_of_a_chat_are_refused_by_name(stand: Stand, name: str, change: dict[str, Any]) -> None:
    reply = await chat(stand, **change)
    assert reply.status_code == 400
    assert name in reply.json()["error"]["message"]
    assert not stand.scheduler.received


async def test_what_changes_nothing_in_a_chat_is_taken(stand: Stand) -> None:
    says(stand, "x")
    call = {**CALLED, "index": 0, "provider_specific_fields": {}, "function": {**CALLED["function"], "parsed_arguments": {}}}  # type: ignore[dict-item]
    part = {"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}, "annotations": []}
    form = {"type": "json_schema", "json_schema": {"name": "x", "description": "y", "strict": False, "schema": SCHEMA}}
    messages = [{"role": "user", "content": [part]}, {"role": "assistant", "content": None, "tool_calls": [call]}, *HELLO]
    reply = await chat(stand, messages=messages, response_format=form)
    assert reply.status_code == 200, reply.text
    assert "provider" not in prompt_of(stand)


# --- /v1/responses and /v1/messages -----------------------------------------------------------------------------------------


def told(content: list[dict[str, Any]]) -> dict[str, Any]:
    """What a tool gave back, as Anthropic's clients send it."""
    return {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": content}]}


HINTS: list[tuple[str, dict[str, Any]]] = [
    ("/v1/responses", {"input": "x", "prompt_cache_options": {"mode": "auto"}}),
    ("/v1/responses", {"input": [{**ITEM, "phase": "commentary", "id": "msg_1", "status": "completed"}]}),
    ("/v1/responses", {"input": "x", "reasoning": {"context": "auto"}}),
    ("/v1/responses", {"input": "x", "tools": [{"type": "function", "name": "f", "defer_loading": False}]}),
    ("/v1/responses", {"input": [{"role": "user", "content": [{"type": "input_text", "text": "x", "hint": 1}]}]}),
    ("/v1/responses", {"input": "x", "text": {"format": {"type": "text", "of_next_month": 1}}}),
    ("/v1/responses", {"input": "x", "text": {"format": {"type": "json_object", "of_next_month": {"a": 1}}}}),
    (
        "/v1/responses",
        {"input": "x", "text": {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA, "of_next_month": 1}}},
    ),
    *(
        (
            "/v1/responses",
            {"input": "x", "tools": [{"type": "function", "name": "f"}], "tool_choice": {**choice, "of_next_month": 1}},
        )
        for choice in (
            {"type": "auto"},
            {"type": "function", "name": "f"},
            {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "f", "hint": 1}]},
        )
    ),
    *(
        ("/v1/messages", {"tools": [CLAUDE_TOOL], "tool_choice": {"type": kind, "of_next_month": 1}})
        for kind in ("auto", "any", "none")
    ),
    ("/v1/messages", {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA, "of_next_month": 1}}}),
    (
        "/v1/messages",
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {
                            "type": "document",
                            "source": {"type": "text", "media_type": "text/plain", "data": "x", "of_next_month": 1},
                        },
                        {"type": "document", "source": {"type": "content", "content": "x", "of_next_year": 1}},
                    ],
                }
            ]
        },
    ),
    ("/v1/messages", {"cache_control": {"type": "ephemeral"}}),
    ("/v1/messages", {"speed": "standard", "user_profile_id": "u"}),
    ("/v1/messages", {"tools": [{**CLAUDE_TOOL, "eager_input_streaming": True}]}),
    ("/v1/messages", {"system": [{"type": "text", "text": "Be kind.", "cache_control": {"type": "ephemeral"}, "hint": 1}]}),
    ("/v1/messages", {"messages": [{**ITEM, "id": "msg_1"}]}),
    ("/v1/messages", {"messages": [{"role": "user", "content": [{"type": "text", "text": "x", "hint": 1}]}]}),
    ("/v1/messages", {"messages": [*HELLO, told([{"type": "text", "text": "x", "hint": 1}])]}),
]


@pytest.mark.parametrize(("path", "change"), HINTS)
async def test_hints_of_vendors_are_ignored_with_one_line(
    stand: Stand, caplog: pytest.LogCaptureFixture, path: str, change: dict[str, Any]
) -> None:
    fields._noted.clear()
    says(stand, "x")
    body = {"max_tokens": 9, "messages": HELLO, **change} if path == "/v1/messages" else change
    with caplog.at_level(logging.WARNING, "sglang.srt.server.fields"):
        for _ in range(2):
            reply = await post(stand, path, body)
            assert reply.status_code == 200, reply.text
    told = [record.message for record in caplog.records if "ignored an unknown" in record.message]
    assert len(told) == len(set(told))
    assert told
    large = {**body, "hint_of_tomorrow": ["x" * 40_000]}
    assert (await post(stand, path, large)).status_code == 200, "on the other way of reading, too"


REFUSED: list[tuple[str, str, dict[str, Any]]] = [
    ("temprature", "/v1/responses", {"temprature": 0}),
    ("temprature", "/v1/messages", {"temprature": 0}),
    ("stop_sequence", "/v1/messages", {"stop_sequence": ["x"]}),
    ("response_format", "/v1/responses", {"response_format": {"type": "json_object"}}),
    ("regex", "/v1/messages", {"regex": "a"}),
    ("max_new_tokens", "/v1/responses", {"max_new_tokens": 3}),
    ("n", "/v1/messages", {"n": 2}),
    ("logit_bias", "/v1/responses", {"logit_bias": {"1": 1}}),
    ("regex", "/v1/responses", {"text": {"regex": "a"}}),
    ("regex", "/v1/responses", {"text": {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA, "regex": "a"}}}),
    ("shema", "/v1/responses", {"text": {"format": {"type": "json_object", "shema": SCHEMA}}}),
    ("names", "/v1/responses", {"tools": [{"type": "function", "name": "f"}], "tool_choice": {"type": "function", "name": "f", "names": 1}}),
    ("tool_choice.regex", "/v1/responses", {"tools": [{"type": "function", "name": "f"}], "tool_choice": {"type": "function", "name": "f", "regex": "a"}}),
    ("text.format.ebnf", "/v1/responses", {"text": {"format": {"type": "text", "ebnf": "a"}}}),
    ("structural_tag", "/v1/responses", {"text": {"format": {"type": "grammar", "grammar": "a"}}}),
    ("text, json_object", "/v1/responses", {"text": {"format": {"type": ["json_schema"], "schema": SCHEMA}}}),
    ("type", "/v1/responses", {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x", "file_id": "f"}]}]}),
    ("tool_choice.max_tokens", "/v1/messages", {"tools": [CLAUDE_TOOL], "tool_choice": {"type": "auto", "max_tokens": 1}}),
    ("output_config.format.regex", "/v1/messages", {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA, "regex": "a"}}}),
    ("disable_parallel", "/v1/messages", {"tools": [CLAUDE_TOOL], "tool_choice": {"type": "auto", "disable_parallel_tool_use": 1}}),
    ("urls", "/v1/messages", {"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "x", "urls": 1}}]}]}),
    ("contents", "/v1/messages", {"messages": [{**ITEM, "contents": "y"}]}),
    ("citation", "/v1/messages", {"system": [{"type": "text", "text": "x", "citation": []}]}),
    ("citation", "/v1/messages", {"messages": [*HELLO, told([{"type": "text", "text": "x", "citation": []}])]}),
    ("sources", "/v1/messages", {"messages": [*HELLO, told([{"type": "image", "source": {"type": "url", "url": "x"}, "sources": 1}])]}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "path", "change"), REFUSED)
async def test_what_changes_the_answer_is_refused_by_name(stand: Stand, name: str, path: str, change: dict[str, Any]) -> None:
    base: dict[str, Any] = {"max_tokens": 9, "messages": HELLO} if path == "/v1/messages" else {"input": "x"}
    reply = await post(stand, path, {**base, **change})
    assert reply.status_code == 400
    assert name in reply.json()["error"]["message"]


async def test_responses_know_allowed_tools(stand: Stand) -> None:
    says(stand, CALL)
    tools = [{"type": "function", **tool["function"]} for tool in TOOLS]
    choice = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "get_weather"}]}
    reply = await post(stand, "/v1/responses", {"input": "x", "tools": tools, "tool_choice": choice})
    assert reply.json()["output"][0]["name"] == "get_weather"
    assert '"now"' not in prompt_of(stand)


async def test_a_result_that_is_an_error_says_so(stand: Stand) -> None:
    says(stand, "x")
    blocks = [{"type": "tool_result", "tool_use_id": "t", "content": "no such city", "is_error": True}]
    calls = [{"type": "tool_use", "id": "t", "name": "get_weather", "input": {}}]
    messages = [*HELLO, {"role": "assistant", "content": calls}, {"role": "user", "content": blocks}]
    reply = await post(stand, "/v1/messages", {"max_tokens": 9, "tools": [CLAUDE_TOOL], "messages": messages})
    assert reply.status_code == 200, reply.text
    assert "Result of get_weather:\nError: no such city<|im_end|>" in prompt_of(stand)


@pytest.mark.parametrize(
    ("name", "is_slip"),
    [
        *(
            (name, True)
            for name in ("temprature", "temperatur", "temperatrue", "Temperature", "tool", "toolChoice", "max-tokens")
        ),
        *((name, True) for name in ("stop_sequence", "stopsequences", "messsages", "stop_sequenxes")),
        *((name, False) for name in ("speed", "temp", "betas", "top", "fallbacks", "user_profile_id", "streaming", "tier")),
    ],
)
async def test_what_is_misspelt_is_no_hint(stand: Stand, name: str, is_slip: bool) -> None:
    says(stand, "x")
    reply = await post(stand, "/v1/messages", {"max_tokens": 9, "messages": HELLO, name: None})
    assert reply.status_code == (400 if is_slip else 200)


async def test_hints_are_few(stand: Stand) -> None:
    """Names cost time, and a body may hold many."""
    many: dict[str, Any] = {f"hint_of_{i}": 1 for i in range(40)}
    reply = await post(stand, "/v1/messages", {"max_tokens": 9, "messages": HELLO, **many})
    assert reply.status_code == 400 and "and 39 more" in reply.json()["error"]["message"]
    block = {"type": "text", "text": "x", **many}
    reply = await post(stand, "/v1/messages", {"max_tokens": 9, "messages": [{"role": "user", "content": [block]}]})
    assert reply.status_code == 400
