"""Where each token of an answer comes from (`return_token_origins`): sampled, accepted from a draft, or forced by the grammar. To ask
changes nothing in the answer."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest

from tests.conftest import RunningServer

SCHEMA = '{"type": "object", "properties": {"first_name": {"type": "string"}, "population": {"type": "integer"}}, "required": ["first_name", "population"]}'
COPY = "Repeat the words: " + "red green blue yellow violet orange " * 12


def generate(http: httpx.Client, text: str, **more: Any) -> dict[str, Any]:
    params = {"temperature": 0, "max_new_tokens": 60} | more.pop("params", {})
    reply = http.post("/generate", json={"text": text, "sampling_params": params, **more})
    assert reply.status_code == 200, reply.text
    answer: dict[str, Any] = reply.json()
    return answer


@pytest.mark.parametrize("logprobs", [False, True])
@pytest.mark.parametrize(
    "params", [{}, {"temperature": 1.0, "seed": 5}, {"json_schema": SCHEMA}, {"regex": "(yes|no), certainly"}]
)
def test_every_token_has_one_and_the_answer_is_the_same(http: httpx.Client, params: dict[str, Any], logprobs: bool) -> None:
    plain = generate(http, "A city and its size: ", params=params, return_logprob=logprobs)
    asked = generate(http, "A city and its size: ", params=params, return_logprob=logprobs, return_token_origins=True)
    origins = asked["meta_info"].pop("output_token_origins")
    assert len(origins) == len(asked["output_ids"])
    assert asked["output_ids"] == plain["output_ids"] and asked["text"] == plain["text"]
    assert plain["meta_info"].keys() == asked["meta_info"].keys()
    if logprobs:
        name = "output_token_logprobs"
        assert asked["meta_info"][name] == plain["meta_info"][name]
    constrained = "json_schema" in params or "regex" in params
    assert ("forced" in origins) == constrained
    assert "sampled" in origins or "draft" in origins


def test_what_the_grammar_forces_is_what_it_forces(http: httpx.Client) -> None:
    answer = generate(http, "x", params={"regex": "the only thing"}, return_token_origins=True)
    assert answer["text"] == "the only thing"
    assert set(answer["meta_info"]["output_token_origins"][:-1]) <= {"forced"} or len(answer["output_ids"]) == 1


@pytest.mark.parametrize("params", [{}, {"presence_penalty": -0.1, "logit_bias": {"1": -100}}])
def test_drafts_are_reported(http: httpx.Client, params: dict[str, Any]) -> None:
    answer = generate(http, COPY, params=params, return_token_origins=True)
    origins = answer["meta_info"]["output_token_origins"]
    assert "draft" in origins and "forced" not in origins


def test_streams_say_the_same(http: httpx.Client, server: RunningServer) -> None:
    whole = generate(http, COPY, return_token_origins=True)["meta_info"]["output_token_origins"]
    params = {"temperature": 0, "max_new_tokens": 60}
    body = {"text": COPY, "sampling_params": params, "return_token_origins": True, "stream": True}
    lines = http.post("/generate", json=body).text.split("\n\n")
    last = json.loads(lines[-3].removeprefix("data: "))
    assert len(last["meta_info"]["output_token_origins"]) == len(whole) == len(last["output_ids"])
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="None", max_retries=0)
    asked: Any = {
        "model": "default",
        "messages": [{"role": "user", "content": "Say yes."}],
        "temperature": 0,
        "max_tokens": 20,
        "extra_body": {"return_token_origins": True, "regex": "yes, I certainly will(!|\\.)"},
    }
    reply = client.chat.completions.create(**asked)
    origins = reply.choices[0].token_origins  # type: ignore[attr-defined]
    assert "".join(entry["token"] for entry in origins).startswith(reply.choices[0].message.content or "")
    assert {entry["origin"] for entry in origins} >= {"forced"}
    pieces = [c.choices[0] for c in client.chat.completions.create(**asked, stream=True) if c.choices]
    streamed = [entry for piece in pieces for entry in getattr(piece, "token_origins", None) or ()]
    assert streamed == origins
    unasked = {**asked, "extra_body": {"regex": asked["extra_body"]["regex"]}}
    assert not hasattr(client.chat.completions.create(**unasked).choices[0], "token_origins")
