"""Requests that do not fit in the context, on every route: the error has the code and the words that clients recognize."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx
import pytest

from tests.server.conftest import CONTEXT_LEN, MakeStand, Stand
from tests.server.http_tools import client_of

CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
LIMITS = {CHAT: ("max_tokens", "max_completion_tokens"), COMPLETIONS: ("max_tokens",), RESPONSES: ("max_output_tokens",)}
LIMIT_WORDS = f"maximum context length is {CONTEXT_LEN} tokens"


def body_of(path: str, text: str) -> dict[str, Any]:
    turns = [{"role": "user", "content": text}]
    return {CHAT: {"messages": turns}, COMPLETIONS: {"prompt": text}, RESPONSES: {"input": text}}[path]


async def post(stand: Stand, path: str, body: dict[str, Any]) -> httpx.Response:
    async with client_of(stand) as client:
        return await client.post(path, json=body)


async def refusal(stand: Stand, path: str, body: dict[str, Any]) -> dict[str, Any]:
    reply = await post(stand, path, body)
    error: dict[str, Any] = reply.json()["error"]
    assert reply.status_code == 400, reply.text
    assert (error["type"], error["code"]) == ("invalid_request_error", "context_length_exceeded")
    return error


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("path", LIMITS)
async def test_a_prompt_that_is_too_long(stand: Stand, path: str, streams: bool) -> None:
    for text in ("fox " * 400, "fox " * CONTEXT_LEN * 20):  # by its tokens, and by its characters alone
        error = await refusal(stand, path, {**body_of(path, text), "stream": streams})
        found = re.search(
            r"input \((\d+) tokens.*\) is longer than the model's context length \((\d+) tokens\)", error["message"]
        )
        assert found is not None and int(found[1]) > int(found[2]) == CONTEXT_LEN, error
        assert LIMIT_WORDS in error["message"] and "shorten the input" in error["message"]
    assert stand.scheduler.received == []


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("path", LIMITS)
async def test_a_limit_that_is_too_high(stand: Stand, path: str, streams: bool) -> None:
    for name in LIMITS[path]:
        for limit in (CONTEXT_LEN, 100_000):
            error = await refusal(stand, path, {**body_of(path, "The quick"), name: limit, "stream": streams})
            assert error["param"] == name and f"{name} {limit}" in error["message"]
            assert LIMIT_WORDS in error["message"] and "longer than the model's context length" in error["message"]
            found = re.search(r"at most (\d+) new tokens", error["message"])
            assert found is not None
            fitting = {**body_of(path, "The quick"), name: int(found[1])}
            assert (await post(stand, path, fitting)).status_code == 200


async def test_a_prompt_that_just_fills_the_context(stand: Stand) -> None:
    error = await refusal(stand, COMPLETIONS, {"prompt": [5] * CONTEXT_LEN})
    assert error["message"].startswith(f"the input ({CONTEXT_LEN} tokens) leaves no room in the model's context length")
    assert LIMIT_WORDS in error["message"] and error["param"] == "prompt"
    assert (await post(stand, COMPLETIONS, {"prompt": [5] * (CONTEXT_LEN - 1)})).status_code == 200


async def test_texts_to_embed(make_stand: MakeStand) -> None:
    stand = make_stand(info={"embedding_dim": 8})
    for text in ("fox " * 400, "fox " * CONTEXT_LEN * 20, [5] * (CONTEXT_LEN + 1)):
        error = await refusal(stand, "/v1/embeddings", {"input": text})
        assert LIMIT_WORDS in error["message"] and error["param"] == "input"


async def test_the_native_route_says_the_same(stand: Stand) -> None:
    reply = await post(stand, "/generate", {"input_ids": [5] * 300})
    assert reply.status_code == 400 and list(reply.json()["error"]) == ["message"]
    assert "the input (300 tokens) is longer than" in reply.text
    reply = await post(stand, "/generate", {"text": "fox", "sampling_params": {"max_new_tokens": 300}})
    assert reply.status_code == 400 and "max_new_tokens 300" in json.loads(reply.text)["error"]["message"]
