"""Fields that clients add to chats and completions: hints, fields of answers sent back, vLLM's names. Each is taken, or refused by name
with the reason."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx
import pytest

from sglang.srt.messages import TokenizedReq
from sglang.srt.server.native.not_done import NOT_DONE_FIELDS, NOTED
from sglang.srt.server.openai.protocol import REFUSED, ChatRequest, CompletionRequest
from tests.server.conftest import MakeStand, Stand
from tests.server.http_tools import client_of, events_of

HELLO = [{"role": "user", "content": "The quick brown fox"}]
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {"name": "look", "parameters": {"type": "object", "properties": {"at": {"type": "string"}}}},
}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


async def post(stand: Stand, path: str = "/v1/chat/completions", **body: Any) -> httpx.Response:
    prompt: dict[str, Any] = {"messages": HELLO} if "chat" in path else {"prompt": "The quick"}
    async with client_of(stand) as client:
        return await client.post(path, json={**prompt, "max_tokens": 2, **body})


async def constraint(stand: Stand, path: str = "/v1/chat/completions", **body: Any) -> tuple[str, str] | None:
    """What the scheduler was asked to hold the answer to."""
    response = await post(stand, path, **body)
    assert response.status_code == 200, response.text
    request = stand.scheduler.received[-1]
    assert isinstance(request, TokenizedReq)
    return request.sampling.grammar


HINTS = [
    *({"reasoning_effort": effort} for effort in ("none", "minimal", "low", "medium", "high", "xhigh", "max", "auto")),
    *({"verbosity": much} for much in ("low", "medium", "high")),
    {"store": True},
    {"metadata": {"a": "b"}},
    {"service_tier": "flex"},
    {"safety_identifier": "u"},
    {"prompt_cache_key": "k"},
    {"prompt_cache_retention": "24h"},
    {"user": "u"},
    {"prediction": {"type": "content", "content": "x"}},
    {"modalities": ["text"]},
    {"parallel_tool_calls": False},
    {"stream": True, "stream_options": {"include_obfuscation": False, "include_usage": True}},
    {"separate_reasoning": True, "stream_reasoning": False},
    {"web_search_options": None},
    {"audio": None},
    {"functions": [], "function_call": "none"},
    {"guided_decoding_backend": "outlines"},
    {"structured_outputs": None, "guided_json": None},
    {"length_penalty": 1.0, "use_beam_search": False, "prompt_logprobs": None},
    {"prompt_cache_options": {"mode": "implicit", "ttl": "30m"}, "moderation": {"model": "m"}},
    {"client_metadata": {"a": "b"}, "session_id": "s", "trace": {}, "cache_control": {"type": "ephemeral"}},
    {"provider": {"order": ["a"]}, "models": ["a"], "route": "fallback", "usage": {"include": True}, "transforms": []},
    {"reasoning": {"effort": "low", "max_tokens": 100, "enabled": True, "exclude": False}, "include_reasoning": True},
    {"thinking": {"type": "enabled", "budget_tokens": 100}, "enable_thinking": True, "extra_body": {}},
]


@pytest.mark.parametrize("hint", HINTS)
async def test_hints_are_taken(stand: Stand, hint: dict[str, Any]) -> None:
    assert (await post(stand, **hint)).status_code == 200


async def test_what_is_not_done_is_refused_with_the_reason(stand: Stand) -> None:
    for path, kind in (("/v1/chat/completions", ChatRequest), ("/v1/completions", CompletionRequest)):
        for name, refusal in REFUSED.items():
            if name in kind.model_fields:  # the other one's alone is refused
                continue
            error = (await post(stand, path, **{name: {"x": 1}})).json()["error"]
            assert error["message"] == f"{name} is not supported by this server: {refusal.why}" and error["param"] == name
            for neutral in refusal.neutral:
                assert (await post(stand, path, **{name: neutral})).status_code == 200, name


async def test_fields_of_sglang_are_one_table_for_three_routes(stand: Stand) -> None:
    """What asks for nothing is taken, all else is refused with the same reason."""
    prompts = {"/v1/chat/completions": {"messages": HELLO}, "/v1/completions": {"prompt": "a"}, "/generate": {"text": "a"}}
    async with client_of(stand) as client:
        for path, prompt in prompts.items():
            for name, refusal in NOT_DONE_FIELDS.items():
                for neutral in (None, *refusal.neutral):
                    reply = await client.post(path, json={**prompt, name: neutral})
                    assert reply.status_code == 200, (path, name, reply.text)
                for value in ("x", {"x": 1}, 7):
                    reply = await client.post(path, json={**prompt, name: value})
                    why = f"{name} is not supported by this server: {refusal.why}"
                    assert (reply.status_code, reply.json()["error"]["message"]) == (400, why), (path, name)
            everything = {**dict.fromkeys(NOT_DONE_FIELDS), **dict.fromkeys(NOTED, "x"), "input_ids": None}
            assert (await client.post(path, json={**everything, **prompt})).status_code == 200
        batch = {"text": ["a", "b"], "lora_path": [None, ""], "bootstrap_room": [None, None], "sampling_params": {}}
        assert (await client.post("/generate", json=batch)).status_code == 200
        reply = await client.post("/generate", json={**batch, "bootstrap_room": [None, 3]})
        assert reply.status_code == 400 and "bootstrap_room" in reply.text


async def test_the_documented_neutral_values(stand: Stand) -> None:
    """As the original's own client sends them."""
    none = dict.fromkeys(
        (
            "bootstrap_host",
            "bootstrap_port",
            "bootstrap_room",
            "data_parallel_rank",
            "routed_dp_rank",
            "custom_params",
            "input_ids",
        )
    )
    false = dict.fromkeys(("return_routed_experts", "return_cached_tokens_details", "return_prompt_token_ids"), False)
    for path in ("/v1/chat/completions", "/v1/completions"):
        assert (await post(stand, path, **none, **false)).status_code == 200
        reply = await post(stand, path, input_ids=[1, 2])
        assert reply.status_code == 400 and reply.json()["error"]["param"] == "input_ids"


def variables_seen(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What chat templates are given from now on."""
    seen: list[dict[str, Any]] = []
    tokenizer = stand.manager.need_tokenizer()
    encode = tokenizer.encode_chat

    def spy(*args: Any, template_variables: dict[str, Any], **kwargs: Any) -> list[int]:
        seen.append(template_variables)
        return encode(*args, template_variables=template_variables, **kwargs)

    monkeypatch.setattr(tokenizer, "encode_chat", spy)
    return seen


async def test_no_effort_means_no_reasoning(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the template has a switch for reasoning, and no word for effort."""
    seen = variables_seen(stand, monkeypatch)
    for body in ({"reasoning_effort": "none"}, {"reasoning_effort": "high"}, {}):
        await post(stand, **body)
    await post(stand, reasoning_effort="none", chat_template_kwargs={"enable_thinking": True})
    assert [variables.get("enable_thinking") for variables in seen] == [False, None, None, True]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses"])
async def test_other_servers_switches_for_reasoning(stand: Stand, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    seen = variables_seen(stand, monkeypatch)
    prompt: dict[str, Any] = {"messages": HELLO} if "chat" in path else {"input": "Hi"}
    own = [({"reasoning": {"enabled": False}}, False), ({"reasoning": {"effort": "none"}}, False)] if "chat" in path else []
    for body, switch in [
        ({"thinking": {"type": "disabled"}}, False),
        ({"thinking": {"type": "enabled", "clear_thinking": True}}, True),
        ({"thinking": {"type": "auto"}}, None),
        ({"thinking": False, "enable_thinking": False}, False),
        ({"enable_thinking": True}, True),
        ({"enable_thinking": True, "chat_template_kwargs": {"enable_thinking": False}}, False),
        *own,
    ]:
        async with client_of(stand) as client:
            assert (await client.post(path, json={**prompt, **body})).status_code == 200, body
        assert seen.pop().get("enable_thinking") is switch, body
    for body, word in [
        ({"thinking": {"type": "weird"}}, "thinking.type must be one of enabled"),
        ({"thinking": True, "enable_thinking": False}, "say different things"),
        ({"thinking": "on"}, "thinking"),
    ]:
        async with client_of(stand) as client:
            response = await client.post(path, json={**prompt, **body})
        assert response.status_code == 400 and word in response.json()["error"]["message"], response.text


@pytest.mark.parametrize(
    ("reasoning", "word"),
    [
        ({"effort": 3}, "effort"),
        ({"exclude": True}, "exclude"),
        ({"enabled": "no"}, "enabled"),
        ({"effort": "low"}, "different"),
    ],
)
async def test_reasoning_that_says_nothing_clear(stand: Stand, reasoning: dict[str, Any], word: str) -> None:
    response = await post(stand, reasoning=reasoning, reasoning_effort="high" if "effort" in reasoning else None)
    assert response.status_code == 400 and word in response.json()["error"]["message"]


ECHOED = [
    {"reasoning": "hm"},
    {"reasoning_content": None, "reasoning": None},
    {"reasoning_details": [{"type": "reasoning.text", "text": "hm"}]},
    {"cache_control": {"type": "ephemeral"}},
    {"id": "msg_1"},
    {"refusal": None, "annotations": [], "audio": None, "function_call": None, "tool_calls": None},
    {"annotations": [{"type": "url_citation", "url_citation": {"url": "http://x"}}]},
    {"parsed": {"a": 1}},
    {"provider_specific_fields": {"a": 1}, "thinking_blocks": []},
    {"images": [], "tool_calls": []},
    {"usage": {"total_tokens": 3}, "model": "m", "created": 1, "timestamp": "now", "index": 0, "logprobs": None},
    {"phase": "commentary", "status": "completed", "signature": "s", "thought_signature": "t", "stop_reason": "end"},
    {"reasoning_opaque": "x", "reasoning_text": "y", "encrypted_content": "z", "prefix": False, "partial": False},
    {"additional_kwargs": {}, "response_metadata": {"a": 1}, "usage_metadata": {}, "invalid_tool_calls": []},
    {"content": [{"type": "thinking", "thinking": "hm", "signature": "s"}, {"type": "text", "text": "Yes.", "citations": []}]},
    {"content": [{"type": "reasoning", "text": "hm"}, {"type": "output_text", "text": "Yes.", "annotations": []}]},
    {"content": [{"type": "redacted_thinking", "data": "x"}]},
]


@pytest.mark.parametrize("extra", ECHOED)
async def test_fields_of_an_answer_may_come_back(stand: Stand, extra: dict[str, Any]) -> None:
    messages = [*HELLO, {"role": "assistant", "content": "Yes.", **extra}, *HELLO]
    assert (await post(stand, messages=messages)).status_code == 200


async def test_parts_of_texts_in_other_apis_words(stand: Stand) -> None:
    """They are read as what they are; reasoning is an answer's alone."""
    for kind in ("text", "input_text", "output_text"):
        part = {
            "type": kind,
            "text": "The quick brown fox",
            "prompt_cache_breakpoint": {"mode": "explicit"},
            "id": "p",
            "metadata": {},
        }
        assert (await post(stand, messages=[{"role": "user", "content": [part]}])).json()["usage"]["prompt_tokens"] == (
            await post(stand)
        ).json()["usage"]["prompt_tokens"]
    for part in ({"type": "thinking", "thinking": "hm"}, {"type": "input_txt", "text": "x"}, {"type": ["text"], "text": "x"}):
        assert (await post(stand, messages=[{"role": "user", "content": [part]}])).status_code == 400


async def test_a_whole_answer_may_come_back(stand: Stand) -> None:
    message = (await post(stand)).json()["choices"][0]["message"]
    assert (await post(stand, messages=[*HELLO, message, *HELLO])).status_code == 200
    for extra in (
        {"audio": {"id": "a"}},
        {"function_call": {"name": "f", "arguments": "{}"}},
        {"mesage": "x"},
        {"prefix": True},
    ):
        response = await post(stand, messages=[{**message, **extra}])
        assert response.status_code == 400 and next(iter(extra)) in response.json()["error"]["message"]


async def test_tools_may_have_hints(make_stand: MakeStand) -> None:
    """Which the model is not told."""
    stand = make_stand(info={"context_len": 1024})
    hints = {"cache_control": {"type": "ephemeral"}, "defer_loading": True, "input_examples": [{"at": "x"}]}
    for hinted in ({**TOOL, **hints}, {**TOOL, "function": {**TOOL["function"], **hints}}):
        for tool in (TOOL, hinted):
            assert (await post(stand, tools=[tool])).status_code == 200
        plain, other = stand.scheduler.received[-2:]
        assert plain.input_ids == other.input_ids  # type: ignore[union-attr]
    assert (await post(stand, tools=[{**TOOL, "nonsense": 1}])).status_code == 400


FORMATS = [
    {"type": "json_object"},
    {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA, "strict": True}},
    {"type": "structural_tag", "structures": [{"begin": "<a>", "schema": SCHEMA, "end": "</a>"}], "triggers": ["<a>"]},
    {"type": "text"},
]


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "look"}}])
async def test_a_forced_call_goes_before_the_format(make_stand: MakeStand, form: dict[str, Any], choice: Any) -> None:
    stand = make_stand(info={"context_len": 1024})
    forced = await constraint(stand, tools=[TOOL], tool_choice=choice)
    assert await constraint(stand, tools=[TOOL], tool_choice=choice, response_format=form) == forced
    assert forced is not None and '"look"' in forced[1]
    refused = await post(stand, tools=[TOOL], tool_choice=choice, regex="a")
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "tool_choice"


ALIKE: list[tuple[dict[str, Any], tuple[str, str]]] = [
    ({"guided_json": SCHEMA}, ("json_schema", json.dumps(SCHEMA))),
    ({"guided_json": json.dumps(SCHEMA)}, ("json_schema", json.dumps(SCHEMA))),
    ({"guided_regex": "[ab]+"}, ("regex", "[ab]+")),
    ({"guided_grammar": 'root ::= "a"'}, ("ebnf", 'root ::= "a"')),
    ({"structured_outputs": {"json": SCHEMA}}, ("json_schema", json.dumps(SCHEMA))),
    ({"structured_outputs": {"regex": "[ab]+", "backend": "xgrammar"}}, ("regex", "[ab]+")),
    ({"structured_outputs": {"grammar": 'root ::= "a"'}}, ("ebnf", 'root ::= "a"')),
    ({"structured_outputs": {"json_object": True}}, ("json_schema", '{"type": "object"}')),
    ({"structured_outputs": {"choice": ["yes", "no"]}}, ("regex", "yes|no")),
    ({"guided_grammar": 'root ::= "a"', "structured_outputs": {"grammar": 'root ::= "a"'}}, ("ebnf", 'root ::= "a"')),
    ({"guided_regex": "a", "regex": None, "guided_json": None}, ("regex", "a")),
]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
@pytest.mark.parametrize(("body", "expected"), ALIKE)
async def test_vllms_names(stand: Stand, path: str, body: dict[str, Any], expected: tuple[str, str]) -> None:
    assert await constraint(stand, path, **body) == expected


async def test_choices_mean_their_letters(stand: Stand) -> None:
    choices = ["a+b", "(x|y)", "[z]", "back\\slash", "1.5$", "new\nline", "^{2}/", "naïve 🙂"]
    found = await constraint(stand, guided_choice=choices)
    assert found is not None and found[0] == "regex"
    for text in choices:
        assert re.fullmatch(found[1], text)
    for text in ("aab", "x", "z", "1x5$"):
        assert not re.fullmatch(found[1], text)


async def test_vllms_other_names(stand: Stand) -> None:
    response = await post(stand, include_stop_str_in_output=True, request_id="mine", guided_whitespace_pattern=" ?", regex="a")
    assert response.json()["id"] == "mine"
    request = stand.scheduler.received[-1]
    assert isinstance(request, TokenizedReq)
    assert request.sampling.no_stop_trim and request.sampling.constrained_json_whitespace_pattern == " ?"
    await post(stand, structured_outputs={"json": SCHEMA, "disable_any_whitespace": True})
    request = stand.scheduler.received[-1]
    assert isinstance(request, TokenizedReq) and request.sampling.constrained_json_whitespace_pattern == ""
    for outputs in ({"jsn": {}}, {"disable_additional_properties": True}, {"json_object": 1}):
        error = (await post(stand, structured_outputs=outputs)).json()["error"]
        assert error["param"].startswith("structured_outputs") and next(iter(outputs)) in error["message"]


async def test_deltas_have_the_keys_of_whole_answers(make_stand: MakeStand) -> None:
    stand = make_stand(info={"context_len": 1024})
    for body in ({}, {"n": 2}, {"logprobs": True}, {"tools": [TOOL]}, {"stop": ["fox"]}):
        response = await post(stand, stream=True, stream_options={"include_usage": True}, **body)
        *chunks, usage = [json.loads(event) for event in events_of(response.text)[:-1]]
        assert usage["choices"] == [] and usage["usage"]["total_tokens"] > 0
        for chunk in chunks:
            (choice,) = chunk["choices"]
            assert choice["delta"].keys() >= {"reasoning_content", "tool_calls"}
            assert choice.keys() == {"index", "delta", "logprobs", "finish_reason", "matched_stop"} and chunk["usage"] is None


async def test_the_model_has_a_second_name(stand: Stand) -> None:
    async with client_of(stand) as client:
        own, other = [(await client.get(f"/v1/models/{name}")).json() for name in ("test-model", "default")]
        assert own == other and own["id"] == "test-model"
        assert (await client.get("/v1/models/nobody")).status_code == 404
