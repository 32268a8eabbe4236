"""/v1/messages: what clients add is ignored, what Anthropic's servers would do is left out, what changes the answer is done or refused
by name, and errors say it in the words that Anthropic's clients read."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
from typing import Any

import httpx
import pytest

from sglang.srt.messages import FinishReason
from sglang.srt.server import fields
from sglang.srt.server.anthropic.messages import _stopped
from sglang.srt.server.anthropic.request import MESSAGES_FIELDS, chat_body
from sglang.srt.server.http import wire
from sglang.srt.server.native.format import GENERATE_FIELDS
from sglang.srt.server.openai.blocks import Blocks
from sglang.srt.server.openai.protocol import ChatRequest, CompletionRequest
from sglang.srt.server.openai.responses.request_body import RESPONSES_FIELDS
from tests.server.conftest import MakeStand, Stand
from tests.server.http_tools import client_of
from tests.server.test_tools import ARGUMENTS, CALL, prompt_of, received, says

HELLO = [{"role": "user", "content": "x"}]
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"name": "get_weather", "description": "Weather", "input_schema": SCHEMA}
SEARCH = {"type": "web_search_20250305", "name": "web_search", "max_uses": 3}
EPHEMERAL = {"type": "ephemeral", "ttl": "1h"}


@pytest.fixture
def stand(make_stand: MakeStand) -> Stand:
    fields._noted.clear()
    return make_stand(info={"context_len": 4096}, max_body_bytes=1 << 20)


async def post(stand: Stand, path: str = "/v1/messages", headers: dict[str, str] | None = None, **body: Any) -> httpx.Response:
    async with client_of(stand) as http:
        return await http.post(path, json={"max_tokens": 500, "messages": HELLO, **body}, headers=headers)


async def told(stand: Stand, **body: Any) -> Any:
    reply = await post(stand, **body)
    assert reply.status_code == 200, reply.text
    return reply.json()


def of_user(*blocks: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(blocks)}]


def document(source: Any, **more: Any) -> dict[str, Any]:
    return {"type": "document", "source": source, **more}


def text(words: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": words, **more}


# --- ignored ----------------------------------------------------------------------------------------------------------------

IGNORED: list[tuple[int, dict[str, Any]]] = [
    (1, {"context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]}}),
    (
        1,
        {"context_management": {"edits": [{"type": "compact_20260112", "trigger": {"type": "input_tokens", "value": 50_000}}]}},
    ),
    (1, {"cache_control": EPHEMERAL}),
    (2, {"speed": "fast", "fallbacks": [{"model": "other"}], "stream": False}),
    (3, {"diagnostics": {"previous_message_id": "msg_1"}, "user_profile_id": "u", "betas": ["context-1m-2025-08-07"]}),
    (0, {"request_id": "r", "metadata": {"user_id": "u"}, "service_tier": "auto", "inference_geo": "eu"}),
    (1, {"output_config": {"effort": "xhigh"}}),
    (0, {"output_config": {"effort": None, "format": None}, "output_format": None, "thread": None}),
    (2, {"output_config": {"task_budget": {"type": "tokens", "total": 20_000}, "tone": "dry"}}),
    (2, {"thinking": {"type": "enabled", "budget_tokens": 1024}}),
    (1, {"thinking": {"type": "adaptive", "display": "omitted"}}),
    (1, {"thinking": {"type": "between_tools"}}),
    (0, {"thinking": {"type": "disabled"}}),
    (3, {"tools": [{**WEATHER, "eager_input_streaming": True, "defer_loading": True, "input_examples": [{"city": "Rome"}]}]}),
    (2, {"tools": [{**WEATHER, "type": None, "cache_control": EPHEMERAL, "allowed_callers": ["direct"], "icon": "sun"}]}),
    (2, {"messages": of_user(text("x", cache_control=EPHEMERAL, tone=1, citations=None)), "system": [text("y", hint=2)]}),
    (1, {"messages": of_user(*2 * [document({"type": "text", "media_type": "text/plain", "data": "x", "page": 2})])}),
    (1, {"tools": [WEATHER], "tool_choice": {"type": "any", "reason": "r"}}),
    (1, {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA, "title": "t"}}}),
    (2, {"messages": [{"role": "system", "content": "y", "clear_at": "never", "output_config": {"effort": "low"}}, *HELLO]}),
    (
        1,
        {
            "messages": of_user(
                {"type": "tool_result", "tool_use_id": "t", "content": [text("x", hint=3)], "toolset_name": None}
            )
        },
    ),
]


@pytest.mark.parametrize(("num_lines", "change"), IGNORED)
async def test_hints_are_ignored_with_a_line_each(
    stand: Stand, caplog: pytest.LogCaptureFixture, num_lines: int, change: dict[str, Any]
) -> None:
    says(stand, "Yes.")
    with caplog.at_level(logging.WARNING, "sglang.srt.server.fields"):
        for path in ("/v1/messages", "/v1/messages", "/v1/messages/count_tokens?beta=true"):
            reply = await post(stand, path, {"anthropic-version": "2099-01-01", "anthropic-beta": "a-2099-01-01,b"}, **change)
            assert reply.status_code == 200, reply.text
    assert len([record for record in caplog.records if record.message.startswith("ignored ")]) == num_lines


async def test_what_anthropics_servers_would_run_is_left_out(stand: Stand, caplog: pytest.LogCaptureFixture) -> None:
    says(stand, CALL)
    hosted = [
        *(
            SEARCH,
            {"type": "web_fetch_20270101", "name": "web_fetch"},
            {"type": "code_execution_20250825", "name": "code_execution"},
        ),
        *({"type": "tool_search_tool_bm25", "name": "tool_search_tool_bm25"}, {"type": "mcp_toolset", "mcp_server_name": "s"}),
        {"type": "computer_toolset_20260801", "name": "computer"},
    ]
    with caplog.at_level(logging.WARNING, "sglang.srt.server.fields"):
        reply = await told(stand, tools=[*hosted, WEATHER], tool_choice={"type": "any"})
    assert reply["content"][0]["input"] == json.loads(ARGUMENTS)
    assert "get_weather" in prompt_of(stand) and "web_" not in prompt_of(stand) and "code_execution" not in prompt_of(stand)
    assert [sum(tool["type"] in record.message for record in caplog.records) for tool in hosted] == [1] * len(hosted)
    says(stand, "Yes.")
    assert (await told(stand, tools=hosted, tool_choice={"type": "auto"}))["content"] == [text("Yes.")]


@pytest.mark.parametrize(
    ("kind", "name", "choice"),
    [
        ("web_search_20250305", "web_search", {"type": "tool", "name": "web_search"}),
        ("code_execution_20260120", "code_execution", {"type": "any"}),
        ("advisor_20260301", "advisor", {"type": "tool", "name": "advisor", "disable_parallel_tool_use": True}),
    ],
)
async def test_a_forced_call_of_what_is_left_out_is_refused(stand: Stand, kind: str, name: str, choice: Any) -> None:
    tools = [{"type": kind, "name": name}, *([WEATHER] if choice["type"] == "tool" else [])]
    reply = await post(stand, tools=tools, tool_choice=choice)
    assert reply.status_code == 400
    assert kind in reply.json()["error"]["message"] and "tool_choice" in reply.json()["error"]["message"]


@pytest.mark.parametrize(
    ("tool", "words"),
    [
        ({"type": "bash_20250124", "name": "bash"}, ('"command"', '"restart"')),
        ({"type": "text_editor_20250124", "name": "str_replace_editor"}, ('"undo_edit"', '"view_range"')),
        ({"type": "text_editor_20250728", "name": "str_replace_based_edit_tool", "max_characters": 9}, ('"insert_text"',)),
        ({"type": "memory_20250818", "name": "memory"}, ('"old_path"', '"rename"')),
        (
            {"type": "computer_20251124", "name": "computer", "display_width_px": 1280, "display_height_px": 800},
            ("1280 pixels wide and 800 high", '"coordinate"'),
        ),
    ],
)
async def test_tools_that_the_client_runs_are_tools(stand: Stand, tool: dict[str, Any], words: tuple[str, ...]) -> None:
    call = {"name": tool["name"], "arguments": {"command": "view", "action": "screenshot", "path": "/a"}}
    says(stand, json.dumps(call))
    reply = await told(stand, tools=[tool], tool_choice={"type": "tool", "name": tool["name"]})
    (block,) = reply["content"]
    assert (block["type"], block["name"], block["input"], reply["stop_reason"]) == (
        "tool_use",
        tool["name"],
        call["arguments"],
        "tool_use",
    )
    assert all(word in prompt_of(stand) for word in words)
    assert ("undo_edit" in prompt_of(stand)) == (tool["type"] == "text_editor_20250124")


async def test_tools_may_be_added_among_the_messages(stand: Stand) -> None:
    says(stand, CALL)
    change = {"type": "tool_addition", "tool": {"type": "tool_definition", "definition": WEATHER}}
    removal = {"type": "tool_removal", "tool": {"type": "tool_reference", "name": "other"}}
    messages = [{"role": "user", "content": "weather?"}, {"role": "system", "content": [change, removal]}]
    reply = await told(stand, messages=messages, tool_choice={"type": "tool", "name": "get_weather"})
    assert reply["stop_reason"] == "tool_use"


# --- blocks -----------------------------------------------------------------------------------------------------------------

BLOCKS: list[tuple[dict[str, Any], str]] = [
    (document({"type": "text", "media_type": "text/plain", "data": "Green."}), "<document>\nGreen.\n</document>\n"),
    (
        document({"type": "text", "media_type": "text/plain", "data": "Green."}, title="Sky", context="poem", citations={"enabled": True}),
        '<document title="Sky" context="poem">\nGreen.\n</document>\n',
    ),
    (document({"type": "content", "content": "Green."}, title=None), "<document>\nGreen.\n</document>\n"),
    (document({"type": "content", "content": [text("Gre"), text("en.")]}), "<document>\nGreen.\n</document>\n"),
    (
        document({"type": "base64", "media_type": "text/markdown", "data": base64.b64encode("Grün.".encode()).decode()}),
        "<document>\nGrün.\n</document>\n",
    ),
    (
        {"type": "search_result", "source": "http://a", "title": "Sky", "content": [text("Green.")], "citations": {"enabled": False}},
        '<search_result title="Sky" source="http://a">\nGreen.\n</search_result>\n',
    ),
    ({"type": "compaction", "content": "They spoke of the sky."}, "They spoke of the sky."),
    ({"type": "compaction", "content": None, "encrypted_content": "zzz"}, ""),
    ({"type": "server_tool_use", "id": "s", "name": "web_search", "input": {"query": "zzz"}}, ""),
    ({"type": "web_search_tool_result", "tool_use_id": "s", "content": [{"type": "web_search_result", "encrypted_content": "zzz"}]}, ""),
    ({"type": "bash_code_execution_tool_result", "tool_use_id": "s", "content": {"stdout": "zzz"}}, ""),
    ({"type": "mcp_tool_use", "id": "m", "name": "zzz", "server_name": "zzz", "input": {}}, ""),
    ({"type": "thinking", "thinking": "zzz", "signature": "zzz"}, ""),
    ({"type": "redacted_thinking", "data": "zzz"}, ""),
]  # fmt: skip


@pytest.mark.parametrize(("block", "shown"), BLOCKS)
async def test_blocks_that_are_text_and_those_that_are_nothing(stand: Stand, block: dict[str, Any], shown: str) -> None:
    says(stand, "Yes.")
    await told(stand, messages=of_user(block, text("What colour?")))
    assert f"<|im_start|>user\n{shown}What colour?<|im_end|>" in prompt_of(stand)
    if block["type"] in ("document", "search_result"):
        result = {
            "type": "tool_result",
            "tool_use_id": "t",
            "content": [block, {"type": "tool_reference", "tool_name": "look"}],
        }
        await told(stand, messages=[*HELLO, *of_user(result)])
        assert f"{shown}\nThe tool look can be called.<|im_end|>" in prompt_of(stand)


REFUSED_BLOCKS: list[tuple[dict[str, Any], str]] = [
    (document({"type": "base64", "media_type": "application/pdf", "data": "JVBERi0="}), "application/pdf"),
    (document({"type": "url", "url": "http://a/b.pdf"}), "PDF"),
    (document({"type": "file", "file_id": "file_1"}), "file"),
    (document({"type": "base64", "media_type": "text/plain", "data": "%%%"}), "base64 of UTF-8"),
    (document({"type": "text", "media_type": "text/plain", "data": 5}), "source.data must be a string"),
    (document({"type": "text", "media_type": "text/plain", "data": "x", "regex": 2}), "source.regex is not supported"),
    (document({"type": "content", "content": 5}), "must be a list of blocks"),
    ({"type": "search_result", "source": "a", "title": "b", "content": "x"}, "must be a list of blocks"),
    ({"type": "image", "source": {"type": "file", "file_id": "f"}}, "base64 or url"),
    ({"type": "container_upload", "file_id": "f"}, "container_upload"),
    ({"type": "hologram", "data": "x"}, "hologram"),
    ({"type": ["text"], "text": "x"}, "not supported"),
    ({"type": "text"}, "messages[0].content[0].text must be a string"),
    ({"type": "tool_result", "tool_use_id": "t", "content": [{"type": "hologram"}]}, "messages[0].content[0].content[0]"),
    ({"type": "tool_result", "tool_use_id": "t", "content": {"a": 1}}, "a string or a list of blocks"),
]


@pytest.mark.parametrize(("block", "words"), REFUSED_BLOCKS)
async def test_blocks_that_would_be_lost_are_refused(stand: Stand, block: dict[str, Any], words: str) -> None:
    reply = await post(stand, messages=of_user(block))
    assert reply.status_code == 400 and words in reply.json()["error"]["message"], reply.text
    assert "messages[0].content[0]" in reply.json()["error"]["message"]


async def test_system_messages_may_stand_anywhere(make_stand: MakeStand) -> None:
    """Agents say there what has changed; the template of this model takes them."""
    stand = make_stand()
    says(stand, "Yes.")
    await told(stand, system="a", messages=[*HELLO, {"role": "system", "content": [text("b")]}, *HELLO], max_tokens=9)
    assert "system\na<|im_end|>\n<|im_start|>user\nx<|im_end|>\n<|im_start|>system\nb<|im_end|>" in prompt_of(stand)


# --- formats ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}, "effort": "low"}},
        {"output_format": {"type": "json_schema", "schema": SCHEMA, "name": "answer"}},
        {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}, "output_format": {"type": "json_schema", "schema": SCHEMA}},
    ],
)  # fmt: skip
async def test_a_format_is_a_constraint(stand: Stand, change: dict[str, Any]) -> None:
    says(stand, '{"city": "Rome"}')
    assert (await told(stand, **change))["content"] == [text('{"city": "Rome"}')]
    assert json.loads(received(stand).sampling.json_schema or "") == SCHEMA


@pytest.mark.parametrize(
    ("given", "told_"), [("low", "low"), ("high", "high"), ("xhigh", "high"), ("max", "high"), (None, None)]
)
def test_the_effort_is_the_templates_to_know(given: str | None, told_: str | None) -> None:
    body = {"max_tokens": 9, "messages": HELLO, "output_config": {"effort": given}}
    assert chat_body(body, thinks=False).get("reasoning_effort") == told_


@pytest.mark.parametrize("thinks", [True, False])
def test_whether_to_think_is_the_templates_to_know(thinks: bool) -> None:
    """Without a parser reasoning would be text of the answer: nobody asks for them then."""
    expected = {"enabled": True if thinks else None, "disabled": False, "adaptive": None, "between_tools": None}
    for kind, enabled in expected.items():
        chat = chat_body({"max_tokens": 9, "messages": HELLO, "thinking": {"type": kind}}, thinks)
        assert chat.get("chat_template_kwargs", {}).get("enable_thinking") == enabled


async def test_a_format_beside_tools(stand: Stand) -> None:
    """With tool_choice auto the answer is either; a call that must be is one."""
    format_: Any = {"format": {"type": "json_schema", "schema": {"type": "array"}}}
    says(stand, CALL)
    for choice in (None, {"type": "any"}, {"type": "tool", "name": "get_weather"}):
        reply = await told(stand, output_config=format_, tools=[WEATHER], tool_choice=choice)
        assert (reply["stop_reason"], reply["content"][0]["input"]) == ("tool_use", json.loads(ARGUMENTS)), choice
        assert ("array" in (received(stand).sampling.json_schema or "")) == (choice is None)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"output_config": {"format": {"type": "json_object"}}}, "of the type 'json_schema'"),
    ({"output_config": {"format": {"type": "json_schema", "schema": "x"}}}, "output_config.format.schema must be"),
    ({"output_config": {"format": {"type": "json_schema", "schema": SCHEMA, "regex": "a"}}}, "regex"),
    ({"output_config": "json"}, "output_config must be an object"),
    ({"output_config": {"formats": {}}}, "did you mean 'format'"),
    ({"output_format": {"type": "json_schema"}}, "output_format.schema must be"),
    ({"output_format": {"type": "json_schema", "schema": {}}, "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}}, "output_format"),
    ({"max_tokens": "many"}, "max_tokens must be an integer"),
    ({"max_tokens": -1}, "max_tokens must be an integer"),
    ({"max_tokens": True}, "max_tokens must be an integer"),
    ({"stop_sequences": "x"}, "stop_sequences must be a list of strings"),
    ({"stop_sequences": [""]}, "stop_sequences must not contain"),
    ({"stop_sequences": ["x"] * 100}, "stop_sequences: at most 64"),
    ({"temperature": -1}, "temperature must be"),
    ({"top_k": 0}, "top_k must be"),
    ({"tools": [{**WEATHER, "input_schema": {"type": 5}}]}, "the tool 'get_weather'"),
    ({"tools": [{"name": "a b"}]}, "tools[0].name"),
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools[0].type must be custom"),
    ({"tools": [{"type": 5, "name": "f"}]}, "tools[0].type must be custom"),
    ({"tools": ["bash"]}, "tools[0].type must be custom"),
    ({"tools": {"a": 1}}, "tools must be a list"),
    ({"tool_choice": {"type": "any"}}, "tool_choice.type any needs tools"),
    ({"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "other"}}, "'other'"),
    ({"tools": [WEATHER], "tool_choice": "auto"}, "tool_choice.type must be"),
    ({"mcp_servers": [{"type": "url", "url": "http://a", "name": "s"}]}, "mcp_servers"),
    ({"container": {"skills": []}}, "container"),
    ({"compaction": {"type": "summarize"}}, "compaction"),
    ({"thinking": {"type": "sometimes"}}, "thinking.type"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "words"), WRONG)
async def test_what_is_wrong_or_would_be_lost_is_named_as_the_client_does(
    stand: Stand, change: dict[str, Any], words: str
) -> None:
    reply = await post(stand, **change)
    assert reply.status_code == 400 and words in reply.json()["error"]["message"], reply.text
    assert not any(name in reply.text for name in ("max_new_tokens", "response_format", "stop must", "function.name"))


@pytest.mark.parametrize("name", ["json_schema", "max_new_tokens", "stop", "response_format", "n", "seed", "logit_bias"])
async def test_names_of_other_apis_are_refused_as_they_came(stand: Stand, name: str) -> None:
    reply = await post(stand, **{name: "x"})
    assert reply.status_code == 400
    assert reply.json()["error"]["message"] == f"{name!r} is not supported by this server"


async def test_every_name_by_which_another_api_changes_an_answer_is_refused(stand: Stand) -> None:
    own = MESSAGES_FIELDS.read | {"metadata", "service_tier", "store", "user", "include", "stream_options"}
    names = {*ChatRequest.model_fields, *CompletionRequest.model_fields, *RESPONSES_FIELDS.read, *GENERATE_FIELDS.members} - own
    assert {"max_output_tokens", "instructions", "max_completion_tokens", "seed", "reasoning", "min_new_tokens"} < names
    for name in names:
        reply = await post(stand, **{name: 3})
        assert (reply.status_code, reply.json()["error"]["message"]) == (400, f"{name!r} is not supported by this server")
        assert (await post(stand, **{name: None})).status_code == 200, name


# --- errors -----------------------------------------------------------------------------------------------------------------


async def test_a_thread_is_refused_so_that_clients_send_all_of_it(stand: Stand) -> None:
    for thread in ({"type": "create"}, {"type": "continue", "previous_message_id": "msg_1"}):
        for streams in (False, True):
            reply = await post(stand, thread=thread, stream=streams)
            error = reply.json()["error"]
            assert (reply.status_code, error["type"]) == (400, "invalid_request_error")
            assert error["details"] == {"error_code": "thread_unsupported_request", "unsupported": ["thread"]}
            assert "thread" in error["message"]


async def test_too_long_is_said_in_words_that_agents_read(stand: Stand) -> None:
    count = (await post(stand, "/v1/messages/count_tokens")).json()["input_tokens"]
    for streams in (False, True):
        reply = await post(stand, max_tokens=32_000, stream=streams)
        message = f"input length and `max_tokens` exceed context limit: {count} + 32000 > 4096"
        assert reply.status_code == 400 and reply.json()["error"]["message"].startswith(message)
        reply = await post(stand, messages=[{"role": "user", "content": "word " * 4000}], stream=streams)
        size = (await post(stand, "/v1/messages/count_tokens", messages=[{"role": "user", "content": "word " * 4000}])).json()
        assert reply.json()["error"]["message"] == f"prompt is too long: {size['input_tokens']} tokens > 4095 maximum"
    reply = await post(stand, messages=[{"role": "user", "content": "x" * 500_000}])
    assert reply.status_code == 400 and reply.json()["error"]["message"].startswith("prompt is too long: ")
    assert (await post(stand, max_tokens=4096 - count)).status_code == 200


async def test_every_error_has_anthropics_shape_and_a_name(make_stand: MakeStand, stand: Stand) -> None:
    locked = make_stand(api_keys=("secret",))
    async with client_of(stand) as http, client_of(locked) as stranger:
        replies = [
            (await http.post("/v1/messages", json={}), 400, "invalid_request_error"),
            (
                await http.post("/v1/messages", content=b"<a>", headers={"content-type": "text/xml"}),
                415,
                "invalid_request_error",
            ),
            (await http.get("/v1/messages"), 405, "invalid_request_error"),
            (await http.post("/v1/messages/nothing", json={}), 404, "not_found_error"),
            (await http.post("/v1/messages", json={"messages": "x" * (1 << 21)}), 413, "request_too_large"),
            (await http.post("/v1/messages/batches", json={"requests": []}), 400, "invalid_request_error"),
            (await http.get("/v1/messages/batches/msgbatch_1/results"), 400, "invalid_request_error"),
            (await http.delete("/v1/messages/batches/msgbatch_1"), 400, "invalid_request_error"),
            (await stranger.post("/v1/messages", json={}), 401, "authentication_error"),
        ]
    for reply, status, kind in replies:
        body = reply.json()
        assert (reply.status_code, body["type"], body["error"]["type"]) == (status, "error", kind), reply.text
        assert body["error"]["message"]
    assert "batches" in replies[5][0].json()["error"]["message"]
    good = await post(stand)
    names = [reply.headers["request-id"] for reply, _, _ in replies] + [good.headers["request-id"]]
    assert len(set(names)) == len(names) and all(name.startswith("req_") for name in names)


# --- streams ----------------------------------------------------------------------------------------------------------------


def events_of(reply: httpx.Response) -> list[dict[str, Any]]:
    found = []
    for event in reply.text.strip().split("\n\n"):
        name, _, data = event.partition("\ndata: ")
        found.append(json.loads(data))
        assert name == f"event: {found[-1]['type']}"
    return found


async def test_the_order_of_a_streams_events(stand: Stand) -> None:
    says(stand, f"Let me look. {CALL}")
    reply = await post(stand, tools=[WEATHER], stream=True)
    assert reply.headers["request-id"].startswith("req_")
    events = events_of(reply)
    assert [event["type"] for event in events[:3]] == ["message_start", "ping", "content_block_start"]
    assert [event["type"] for event in events[-3:]] == ["content_block_stop", "message_delta", "message_stop"]
    start, end = events[0]["message"], events[-2]
    assert start["content"] == [] and start["stop_reason"] is None
    assert start["usage"]["input_tokens"] > 0
    assert end["usage"]["output_tokens"] > 0 and end["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    at = [(event["type"], event["index"]) for event in events if "index" in event]
    assert at == sorted(at, key=lambda one: one[1]), "blocks come one after the other"
    for index in (0, 1):
        kinds = [kind for kind, i in at if i == index]
        assert kinds[0] == "content_block_start" and kinds[-1] == "content_block_stop"
        assert set(kinds[1:-1]) == {"content_block_delta"}
    begun = [event["content_block"] for event in events if event["type"] == "content_block_start"]
    assert begun[0] == text("") and begun[1] | {"id": ""} == {"type": "tool_use", "id": "", "name": "get_weather", "input": {}}
    pieces = [event["delta"] for event in events if event["type"] == "content_block_delta" and event["index"] == 1]
    assert all(piece.keys() == {"type", "partial_json"} and piece["type"] == "input_json_delta" for piece in pieces)
    assert json.loads("".join(piece["partial_json"] for piece in pieces)) == json.loads(ARGUMENTS)


async def test_reasoning_may_be_left_out(make_stand: MakeStand) -> None:
    stand = make_stand(reasoning_parser="qwen3")
    says(stand, "<think>hm</think>Yes.")
    for display, shown in (("omitted", ""), ("summarized", "hm"), (None, "hm")):
        thinking = {"type": "enabled", "budget_tokens": 1024, "display": display}
        reply = await told(stand, thinking=thinking, max_tokens=50)
        assert reply["content"] == [{"type": "thinking", "thinking": shown, "signature": ""}, text("Yes.")]
        assert 0 < reply["usage"]["output_tokens_details"]["thinking_tokens"] < reply["usage"]["output_tokens"]
        events = events_of(await post(stand, thinking=thinking, max_tokens=50, stream=True))
        told_ = "".join(event["delta"].get("thinking", "") for event in events if event["type"] == "content_block_delta")
        assert told_ == shown
        assert [event["content_block"]["type"] for event in events if "content_block" in event] == ["thinking", "text"]


async def test_a_silent_stream_pings_and_ends_with_an_error_event(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "FIRST_OUTPUT_SECONDS", 0.01)
    monkeypatch.setattr(wire, "KEEP_ALIVE_SECONDS", 0.01)
    stand.scheduler.stuck = True
    task = asyncio.create_task(post(stand, stream=True))
    while not stand.manager.num_in_flight:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.2)
    stand.manager.scheduler_died("it fell over")
    events = events_of(await task)
    assert {event["type"] for event in events[:-1]} == {"ping"}
    assert events[-1]["type"] == "error" and events[-1]["error"]["type"] == "api_error"
    assert "it fell over" in events[-1]["error"]["message"]


def test_an_answer_that_was_aborted_has_not_ended() -> None:
    assert _stopped(FinishReason("abort", message="by the operator"), Blocks()) == ("pause_turn", None)


async def test_cached_tokens_are_counted_once(stand: Stand) -> None:
    """Anthropic's input_tokens leave out those that were read from the cache."""
    async with client_of(stand) as client:
        body = {"max_tokens": 3, "messages": [{"role": "user", "content": "The quick brown fox"}]}
        num_tokens = (await client.post("/v1/messages/count_tokens", json=body)).json()["input_tokens"]
        first, second = [(await client.post("/v1/messages", json=body)).json()["usage"] for _ in range(2)]
    assert (first["input_tokens"], first["cache_read_input_tokens"]) == (num_tokens, 0)
    assert (second["input_tokens"], second["cache_read_input_tokens"]) == (1, num_tokens - 1)


def test_results_stand_before_the_calls_of_the_same_message() -> None:
    blocks = [
        {"type": "text", "text": "So."},
        {"type": "tool_use", "id": "b", "name": "now", "input": {}},
        {"type": "tool_result", "tool_use_id": "a", "content": [{"type": "text", "text": "1"}, {"type": "text", "text": "2"}]},
    ]
    told = chat_body({"messages": [{"role": "assistant", "content": blocks}], "max_tokens": 1}, thinks=False)["messages"]
    assert told[0] == {"role": "tool", "tool_call_id": "a", "content": "1\n2"}
    assert (told[1]["content"][0]["text"], told[1]["tool_calls"][0]["id"], len(told)) == ("So.", "b", 2)
