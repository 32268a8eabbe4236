"""Errors name the field that the client wrote, whatever it is called inside: every field of every route, with a value of a wrong
type and with values that are out of range."""

from __future__ import annotations

import re
from typing import Any

import httpx
import pytest

from sglang.srt.errors import GrammarError, RequestError
from sglang.srt.sampling_params import SamplingParams
from sglang.srt.server.native.format import GENERATE_FIELDS
from sglang.srt.server.openai.aliases import ALIASES
from sglang.srt.server.openai.protocol import ChatRequest, CompletionRequest
from tests.server.conftest import CONTEXT_LEN, MakeStand, Stand
from tests.server.http_tools import client_of

HELLO = [{"role": "user", "content": "The quick brown fox"}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": HELLO},
    "/v1/completions": {"prompt": "The quick"},
    "/generate": {"text": "The quick"},
    "/v1/embeddings": {"input": "a"},
}
CHAT, COMPLETIONS, GENERATE, EMBEDDINGS = BODIES
TOO_LONG = CONTEXT_LEN + 1
WRONG_TYPE: Any = [{"x": [1]}]
SCHEMA = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "integer", "minimum": "low"}}}


async def post(stand: Stand, path: str, **body: Any) -> httpx.Response:
    async with client_of(stand) as client:
        return await client.post(path, json={**BODIES[path], **body})


async def check_named(stand: Stand, path: str, body: dict[str, Any], name: str) -> None:
    response = await post(stand, path, **body)
    error = response.json()["error"]
    assert response.status_code == 400, (path, name, response.text)
    said = error["message"] if path == GENERATE else f"{error['message']} {error['param']}"
    assert name in said, (path, name, error)
    if path != GENERATE:
        assert error["param"] == name, error
    if path != GENERATE:
        inner = {"max_new_tokens", "min_new_tokens", "input_ids", "top_logprobs_num", "sampling_params"}
        assert not inner & set(re.findall(r"\w+", said)), (path, name, error)


async def test_values_of_a_wrong_type(stand: Stand) -> None:
    for path, kind in ((CHAT, ChatRequest), (COMPLETIONS, CompletionRequest)):
        for name in {*kind.model_fields, *ALIASES} - {"tools", "messages"}:
            await check_named(stand, path, {name: WRONG_TYPE}, name)
        await check_named(stand, path, {"structured_outputs": 3}, "structured_outputs")
    await check_named(stand, CHAT, {"tools": 3}, "tools")
    await check_named(stand, CHAT, {"messages": 3}, "messages")
    for name in SamplingParams.__struct_fields__:
        await check_named(stand, GENERATE, {"sampling_params": {name: WRONG_TYPE}}, name)
    await check_named(stand, GENERATE, {"sampling_params": {"sampling_seed": "x"}}, "sampling_seed")
    for name in GENERATE_FIELDS.read - {"modalities"}:
        await check_named(stand, GENERATE, {name: 2.5}, name)
    assert stand.scheduler.received == []


async def test_values_of_a_wrong_type_for_embeddings(make_stand: MakeStand) -> None:
    stand = make_stand(info={"embedding_dim": 8})
    for name in ("model", "input", "encoding_format", "dimensions", "rid"):
        await check_named(stand, EMBEDDINGS, {name: WRONG_TYPE}, name)
    for body in ({"dimensions": 0}, {"dimensions": 9}, {"encoding_format": "hex"}, {"input": []}, {"input": [[-1]]}):
        await check_named(stand, EMBEDDINGS, body, next(iter(body)))


OUT_OF_RANGE: list[tuple[str, Any]] = [
    ("temperature", -1),
    ("temperature", 1e9),
    ("top_p", 0),
    ("top_p", 1.1),
    ("top_k", 0),
    ("top_k", 2**40),
    ("min_p", -0.1),
    ("frequency_penalty", 3),
    ("presence_penalty", -3),
    ("repetition_penalty", 0),
    ("n", 0),
    ("n", 1000),
    ("seed", 2**70),
    ("stop", [""]),
    ("stop", ["x" * 5000]),
    ("stop", ["x"] * 100),
    ("stop_regex", [""]),
    ("stop_token_ids", [10**6]),
    ("stop_token_ids", [2**40]),
    ("logit_bias", {"999999": 1}),
    ("logit_bias", {"1": 1000}),
    ("logit_bias", {str(2**40): 1}),
    ("constrained_json_whitespace_pattern", "x" * 300),
]


@pytest.mark.parametrize(("name", "value"), OUT_OF_RANGE)
async def test_values_out_of_range(stand: Stand, name: str, value: Any) -> None:
    for path in (CHAT, COMPLETIONS):
        await check_named(stand, path, {name: value}, name)
    await check_named(stand, GENERATE, {"sampling_params": {name: value}}, name)


@pytest.mark.parametrize(
    ("path", "body", "name"),
    [
        (CHAT, {"max_tokens": -1}, "max_tokens"),
        (CHAT, {"max_completion_tokens": -1}, "max_completion_tokens"),
        (CHAT, {"max_tokens": TOO_LONG}, "max_tokens"),
        (CHAT, {"max_completion_tokens": TOO_LONG}, "max_completion_tokens"),
        (CHAT, {"max_tokens": 2**40}, "max_tokens"),
        (CHAT, {"min_tokens": -1}, "min_tokens"),
        (CHAT, {"min_tokens": 5, "max_completion_tokens": 4}, "min_tokens"),
        (CHAT, {"min_tokens": TOO_LONG}, "min_tokens"),
        (CHAT, {"messages": [{"role": "user", "content": "word " * 2000}]}, "messages"),
        (CHAT, {"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        (CHAT, {"include_stop_str_in_output": "x"}, "include_stop_str_in_output"),
        (CHAT, {"guided_json": {"type": "object"}, "guided_regex": "a"}, "guided_regex"),
        (CHAT, {"guided_regex": "a", "regex": "b"}, "regex"),
        (CHAT, {"guided_choice": []}, "guided_choice"),
        (CHAT, {"structured_outputs": {"regex": "a", "json": {}}}, "structured_outputs.regex"),
        (COMPLETIONS, {"max_tokens": TOO_LONG}, "max_tokens"),
        (COMPLETIONS, {"max_tokens": 0}, "max_tokens"),
        (COMPLETIONS, {"min_tokens": 17}, "min_tokens"),
        (COMPLETIONS, {"prompt": [10**6]}, "prompt"),
        (COMPLETIONS, {"prompt": "word " * 2000}, "prompt"),
        (COMPLETIONS, {"prompt": []}, "prompt"),
        (COMPLETIONS, {"prompt": "hi", "logprobs": 21}, "logprobs"),
        (GENERATE, {"sampling_params": {"max_new_tokens": TOO_LONG}}, "max_new_tokens"),
        (GENERATE, {"sampling_params": {"sampling_seed": 2**70}}, "sampling_seed"),
        (GENERATE, {"return_logprob": True, "top_logprobs_num": 10**6}, "top_logprobs_num"),
        (GENERATE, {"return_logprob": True, "token_ids_logprob": [10**6]}, "token_ids_logprob"),
    ],
)
async def test_what_has_another_name_inside(stand: Stand, path: str, body: dict[str, Any], name: str) -> None:
    await check_named(stand, path, body, name)


def test_an_error_is_said_in_other_names() -> None:
    names = {"json_schema": "response_format", "seed": "sampling_seed", "max_new_tokens": "max_tokens"}
    error = GrammarError("json_schema: #/seed: 'max_new_tokens' is no json_schema.x of \"json_schema\"", "json_schema")
    error.rename(names)
    assert str(error) == "response_format: #/seed: 'max_new_tokens' is no response_format.x of \"json_schema\""
    assert error.param == "response_format" and isinstance(error, GrammarError)
    error.rename(names)
    assert str(error).startswith("response_format: ")
    other = RequestError("the prompt's seed is odd", "text")
    other.rename(names)
    assert (str(other), other.param) == ("the prompt's seed is odd", "text")


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "/v1/responses": (
        {"input": "x"},
        "input instructions max_output_tokens temperature top_p top_logprobs tools tool_choice parallel_tool_calls text reasoning store "
        "previous_response_id truncation stream stop seed top_k min_p chat_template_kwargs priority cache_salt rid model",
    ),
    "/v1/messages": (
        {"messages": HELLO, "max_tokens": 3},
        "messages max_tokens system temperature top_p top_k tools tool_choice thinking stream model",
    ),
    "/v1/score": (
        {"query": "a", "items": ["b"], "label_token_ids": [1]},
        "query items label_token_ids apply_softmax item_first",
    ),
    "/tokenize": ({"text": "x"}, "text add_special_tokens"),
    "/detokenize": ({"tokens": [1]}, "tokens skip_special_tokens"),
    "/apply_chat_template": ({"messages": HELLO}, "messages tools chat_template_kwargs continue_final_message"),
    "/score_choices": ({"text": "a", "choices": ["b"]}, "text choices"),
    "/parse_function_call": ({"text": "a", "tools": []}, "text tools tool_call_parser"),
    "/separate_reasoning": ({"text": "a"}, "text reasoning_parser"),
    "/open_session": ({}, "capacity_of_str_len session_id"),
    "/abort_request": ({"rid": "x"}, "rid abort_all"),
}


@pytest.mark.parametrize("path", OTHERS)
async def test_fields_of_other_routes(stand: Stand, path: str) -> None:
    body, fields = OTHERS[path]
    async with client_of(stand) as client:
        for name in fields.split():
            for wrong in (WRONG_TYPE, 2.5, {"x": 1}):
                response = await client.post(path, json={**body, name: wrong})
                if wrong is not WRONG_TYPE and response.status_code == 200:
                    continue  # a temperature, or an object whose unknown keys are hints
                assert response.status_code == 400, (name, wrong, response.text)
                error = response.json()["error"]
                assert name in f"{error['message']} {error.get('param')}", (name, wrong, error)
