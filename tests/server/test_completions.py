"""POST /v1/completions."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.server.conftest import Stand
from tests.server.echo_scheduler import logprob_of
from tests.server.http_tools import client_of, events_of

TEXT = "Paris is the capital"


async def complete(stand: Stand, **body: Any) -> httpx.Response:
    async with client_of(stand) as client:
        return await client.post("/v1/completions", json=body)


async def test_shape_and_default_length(stand: Stand) -> None:
    tokenizer = stand.manager.need_tokenizer()
    ids = tokenizer.encode(TEXT)
    reply = (await complete(stand, prompt=TEXT)).json()
    assert reply["object"] == "text_completion"
    assert reply["model"] == "test-model"
    text = tokenizer.decode((ids * 16)[:16])
    assert reply["choices"] == [{"index": 0, "text": text, "logprobs": None, "finish_reason": "length", "matched_stop": None}]
    assert reply["usage"]["completion_tokens"] == 16


@pytest.mark.parametrize("prompt", [[5, 6, 7], [[5, 6, 7], [8, 9]], ["Paris", "London is"]])
async def test_every_kind_of_prompt(stand: Stand, prompt: Any) -> None:
    reply = (await complete(stand, prompt=prompt, max_tokens=2, n=2)).json()
    prompts = prompt if isinstance(prompt[0], (list, str)) else [prompt]
    assert [choice["index"] for choice in reply["choices"]] == list(range(2 * len(prompts)))
    tokenizer = stand.manager.need_tokenizer()
    rows = [tokenizer.encode(p) if isinstance(p, str) else p for p in prompts]
    for choice in reply["choices"]:
        row = rows[choice["index"] // 2]
        assert choice["text"] == tokenizer.decode((row * 2)[:2])
    assert reply["usage"]["prompt_tokens"] == sum(map(len, rows)), "a prompt counts once, whatever n"


async def test_echo_with_logprobs_scores_the_prompt(stand: Stand) -> None:
    """What lm-eval asks for."""
    tokenizer = stand.manager.need_tokenizer()
    ids = tokenizer.encode(TEXT)
    for prompt in (TEXT, ids):
        reply = (await complete(stand, prompt=prompt, max_tokens=1, echo=True, logprobs=2, temperature=0)).json()
        choice = reply["choices"][0]
        assert choice["text"] == TEXT + tokenizer.decode(ids[:1])
        logprobs = choice["logprobs"]
        assert logprobs["tokens"] == [tokenizer.token_text(i) for i in [*ids, ids[0]]]
        assert logprobs["token_logprobs"][0] is None
        assert logprobs["token_logprobs"][1:-1] == [logprob_of(i, at) for at, i in enumerate(ids)][1:]
        assert logprobs["top_logprobs"][0] is None
        assert all(len(top) >= 2 for top in logprobs["top_logprobs"][1:])
        offsets = logprobs["text_offset"]
        assert [choice["text"][at:].startswith(token) for at, token in zip(offsets, logprobs["tokens"], strict=True)] == [
            True
        ] * len(offsets)
    only = (await complete(stand, prompt=TEXT, max_tokens=0, echo=True, logprobs=1)).json()
    assert only["choices"][0]["text"] == TEXT


async def test_streams_join_to_the_whole(stand: Stand) -> None:
    body = {"prompt": [TEXT, "London is"], "max_tokens": 7, "echo": True, "logprobs": 0}
    whole = (await complete(stand, **body)).json()
    events = events_of((await complete(stand, **body, stream=True, stream_options={"include_usage": True})).text)
    assert events.pop() == "[DONE]"
    chunks = [json.loads(event) for event in events]
    usage = chunks.pop()
    assert usage["choices"] == [] and usage["usage"] == whole["usage"] | {
        "prompt_tokens_details": usage["usage"]["prompt_tokens_details"]
    }
    for choice in whole["choices"]:
        mine = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == choice["index"]]
        assert "".join(c["text"] for c in mine) == choice["text"]
        assert [c["finish_reason"] for c in mine] == [None] * (len(mine) - 1) + ["length"]
        for key in ("tokens", "token_logprobs", "text_offset"):
            assert [x for c in mine for x in c["logprobs"][key]] == choice["logprobs"][key]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, None),
        ({"prompt": ["a", 1]}, "prompt"),
        ({"prompt": TEXT, "max_tokens": 0}, "max_tokens"),
        ({"prompt": TEXT, "max_tokens": -1, "echo": True}, "max_tokens"),
        ({"prompt": TEXT, "logprobs": 1000}, "logprobs"),
        ({"prompt": TEXT, "best_of": 3}, "best_of"),
        ({"prompt": TEXT, "suffix": "x"}, "suffix"),
        ({"prompt": TEXT, "messages": []}, "messages"),
    ],
)
async def test_wrong_requests(stand: Stand, body: dict[str, Any], param: str | None) -> None:
    response = await complete(stand, **body)
    if body == {"prompt": [[]]}:
        assert response.status_code == 200, "an empty prompt is a beginning"
        return
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param
