"""Requests of programs that are kept for viewers: whole, so that anybody can send them again; within bounds; without salts; and for the
operator alone."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from types import SimpleNamespace
from typing import Any

import httpx
import msgspec
import pytest

from sglang.srt.config import HttpOptions
from sglang.srt.messages import LogprobOptions, TokenizedReq, pack_ids
from sglang.srt.sampling_params import SEED_BITS, SamplingParams
from sglang.srt.server.generate_req import GenerateReq
from sglang.srt.server.multimodal.inputs import MediaInput, Pixels
from sglang.srt.server.page import kept
from sglang.srt.server.page.kept import KeptRequests
from sglang.srt.server.page.live import LiveHub, Viewer
from sglang.srt.server.tokenization.tokenizer import Tokenizer
from tests.server.conftest import MakeStand, Stand
from tests.server.http_tools import client_of

RUN = {"X-Sglang-Run": "3fa9/0"}
SECRET = "pepper-and-salt"


def hub_of(stand: Stand) -> LiveHub:
    """The one behind its routes."""
    hub = stand.manager.on_view.__self__  # type: ignore[attr-defined]
    assert isinstance(hub, LiveHub)
    return hub


@asynccontextmanager
async def looking(stand: Stand, **headers: str) -> AsyncIterator[tuple[httpx.AsyncClient, Viewer]]:
    hub = hub_of(stand)
    viewer = hub.enter()
    try:
        async with client_of(stand, **headers) as client:
            yield client, viewer
    finally:
        hub.leave(viewer)


def calls_of(viewer: Viewer) -> list[dict[str, Any]]:
    """The calls that have begun."""
    told = [json.loads(event[6:]) for event in viewer.events]
    return [event["call"] for event in told if "at" in event.get("call", {})]


async def told(client: httpx.AsyncClient, rid: str) -> dict[str, Any]:
    reply = await client.post("/page/request", json={"rid": rid})
    assert reply.status_code == 200, reply.text
    found: dict[str, Any] = reply.json()
    return found


def last(stand: Stand) -> TokenizedReq:
    return [one for one in stand.scheduler.received if isinstance(one, TokenizedReq)][-1]


GENERATE: list[dict[str, Any]] = [
    {"text": "Paris is", "sampling_params": {"max_new_tokens": 3}},
    {"text": "Paris is " * 400, "sampling_params": {"max_new_tokens": 3, "temperature": 0}},
    {"text": "Paris", "sampling_params": {"max_new_tokens": 3, "regex": "(a|b){1,3}" + "c?" * 1500, "stop": ["x"]}},
    {"text": "Paris", "sampling_params": {"max_new_tokens": 0}, "return_logprob": True, "token_ids_logprob": [5, 6]},
    {"text": "Paris", "sampling_params": {"max_new_tokens": 3, "logit_bias": {"7": 2.5}}, "return_logprob": True},
    {"text": "Paris is the capi", "sampling_params": {"max_new_tokens": 3}, "token_healing": True},
    {"input_ids": [5, 6, 7, 8], "sampling_params": {"max_new_tokens": 3, "seed": 11}},
    {"text": "", "sampling_params": {"max_new_tokens": 3}},
]


@pytest.mark.parametrize("body", GENERATE, ids=[str(i) for i in range(len(GENERATE))])
async def test_what_is_told_is_the_same_request(make_stand: MakeStand, body: dict[str, Any]) -> None:
    """Also with the seed that the server chose, and whatever parameters it prefers."""
    stand = make_stand(info={"context_len": 2000}, preferred_sampling_params={"temperature": 0.3, "top_k": 9})
    async with looking(stand) as (client, viewer):
        more = {"cache_salt": SECRET, "extra_key": SECRET, "rid": "mine", "priority": 3}
        assert (await client.post("/generate", json={**body, **more}, headers=RUN)).status_code == 200
        asked = last(stand)
        found = await told(client, calls_of(viewer)[0]["rid"])
        assert (found["path"], found["unsaid"], found["omitted"]) == ("/generate", [], [])
        assert SECRET not in json.dumps(found) and not found["body"].keys() & more.keys()
        stand.manager.http.preferred_sampling_params.clear()
        assert (await client.post("/generate", json=found["body"])).status_code == 200
        same = {name: getattr(last(stand), name) for name in ("input_ids", "sampling", "logprobs", "healed", "adapter")}
        assert same == {name: getattr(asked, name) for name in same}


async def test_samples_and_prompts_of_a_batch_are_requests_of_their_own(make_stand: MakeStand) -> None:
    stand = make_stand()
    async with looking(stand) as (client, viewer):
        params = [{"max_new_tokens": 2, "n": 2, "seed": 5}, {"max_new_tokens": 4}]
        await client.post("/generate", json={"text": ["one", "two"], "sampling_params": params}, headers=RUN)
        found = [(await told(client, call["rid"]))["body"] for call in calls_of(viewer)]
        assert [(one["text"], one["sampling_params"]["max_new_tokens"]) for one in found] == [
            ("one", 2),
            ("one", 2),
            ("two", 4),
        ]
        assert [one["sampling_params"]["seed"] for one in found[:2]] == [5, 6] and "n" not in found[0]["sampling_params"]


@pytest.mark.parametrize("unconditional", [False, True])
async def test_choices_are_one_request(make_stand: MakeStand, unconditional: bool) -> None:
    stand = make_stand()
    body = {"text": "The sky is", "choices": [" blue", " red and", " grey"], "unconditional": unconditional}
    async with looking(stand) as (client, viewer):
        scores = (await client.post("/score_choices", json={**body, "cache_salt": SECRET}, headers=RUN)).json()
        calls = calls_of(viewer)
        assert [call["choice"] for call in calls] == body["choices"] and len({call["choice_of"] for call in calls}) == 1
        found = await told(client, calls[0]["choice_of"])
        assert found["path"] == "/score_choices" and SECRET not in json.dumps(found)
        again = (await client.post("/score_choices", json=found["body"])).json()
        assert again["choices"] == scores["choices"]


async def test_a_chat_of_another_client_s_making_is_told_as_its_prompt(make_stand: MakeStand) -> None:
    """Programs may use the OpenAI API of this server: their messages are one prompt."""
    stand = make_stand()
    async with looking(stand) as (client, viewer):
        messages = [{"role": "user", "content": "Hello"}]
        body = {"messages": messages, "max_tokens": 3, "user": SECRET, "cache_salt": SECRET}
        assert (await client.post("/v1/chat/completions", json=body, headers=RUN)).status_code == 200
        asked = last(stand)
        found = await told(client, calls_of(viewer)[0]["rid"])
        assert "Hello" in found["body"]["text"] and SECRET not in json.dumps(found)
        assert (await client.post("/generate", json=found["body"])).status_code == 200
        assert (last(stand).input_ids, last(stand).sampling) == (asked.input_ids, asked.sampling)


async def test_only_the_operator_is_told(make_stand: MakeStand) -> None:
    stand = make_stand(api_keys=("client",), admin_api_key="admin")
    async with looking(stand, Authorization="Bearer client") as (client, viewer):
        await client.post("/generate", json=GENERATE[0], headers=RUN)
        rid = calls_of(viewer)[0]["rid"]
        assert (await client.post("/page/request", json={"rid": rid})).status_code == 401
        admin = {"Authorization": "Bearer admin"}
        assert (await client.post("/page/request", json={"rid": rid}, headers=admin)).status_code == 200
        for unknown in ("", "other", rid + "x"):
            assert (await client.post("/page/request", json={"rid": unknown}, headers=admin)).status_code == 404
        assert (await client.post("/page/request", json={"rid": rid, "x": 1}, headers=admin)).status_code == 400
    async with client_of(stand, **admin) as client:
        assert (await client.post("/page/request", json={"rid": rid})).status_code == 404, "nobody looks any more"


async def test_nothing_is_told_where_nobody_may_look(make_stand: MakeStand) -> None:
    stand = make_stand(host="0.0.0.0")
    async with client_of(stand) as client:
        assert (await client.post("/page/request", json={"rid": "x"})).status_code == 403


# --- bounds, and what only some servers take --------------------------------------------------------------------------------


def request(rid: str, ids: int = 3, **sampling: Any) -> TokenizedReq:
    return TokenizedReq(rid, pack_ids(range(ids)), SamplingParams(**sampling), cache_salt=SECRET)


def image(data: bytes, **more: Any) -> MediaInput:
    return MediaInput("image", "data:image/png;base64," + base64.b64encode(data).decode(), **more)


async def test_the_newest_are_kept_within_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "MAX_BYTES", 1 << 20)
    requests = KeptRequests(HttpOptions())
    for i in range(100):
        requests.note([request(f"r{i}")], GenerateReq(text="x" * (100 << 10)))
        assert requests._kept.cost <= 1 << 20
    assert await requests.told("r0", None) is None
    newest = await requests.told("r99", None)
    assert newest is not None and newest["body"]["text"] == "x" * (100 << 10)
    requests.clear()
    assert requests._kept.cost == 0 and await requests.told("r99", None) is None


async def test_of_large_images_size_and_digest_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "MAX_MEDIA", 40_000)
    monkeypatch.setattr(kept, "LARGE", 10_000)
    requests = KeptRequests(HttpOptions())
    large, small = bytes(range(256)) * 200, b"small" * 100
    asked = GenerateReq(
        text="a<image>b<image>c<image>", media=[[image(large), image(small), MediaInput("image", "x" * 50_000)]]
    )
    requests.note([request("r")], asked)
    while requests._omitting:
        await asyncio.sleep(0.01)
    found = await requests.told("r", None)
    assert found is not None
    sources = found["body"]["image_data"]
    assert sources[0] == "image-1" and sources[1].startswith("data:image/png;base64,") and sources[2] == "image-3"
    assert found["omitted"][0] == {"name": "image-1", "size": len(large), "sha256": hashlib.sha256(large).hexdigest()}
    assert len(found["omitted"]) == 2 and requests._kept.cost < 10_000
    requests.note([request("whole")], GenerateReq(text="a", media=[[image(small)]]))
    whole = await requests.told("whole", None)
    assert whole is not None and whole["omitted"] == []
    requests.note([request("late")], asked)
    requests.clear()
    with suppress(asyncio.CancelledError):
        await asyncio.gather(*requests._omitting)
    assert await requests.told("late", None) is None, "who is cleared keeps nothing that comes later"


async def test_what_generate_cannot_say_is_named(tokenizer: Tokenizer) -> None:
    requests = KeptRequests(HttpOptions())
    first = msgspec.structs.replace(request("r", seed=1 << SEED_BITS, regex="a"), grammar_after=(5,))
    requests.note([first], GenerateReq(text="a", media=[[image(b"x", detail="low"), image(b"y", pixels=Pixels(1, 2))]]))
    found = await requests.told("r", tokenizer)
    assert found is not None and len(found["unsaid"]) == 3 and "seed" not in found["body"]["sampling_params"]
    assert str(1 << SEED_BITS) in " ".join(found["unsaid"])


async def test_choices_after_images_are_told_both_ways(tokenizer: Tokenizer) -> None:
    """As the batch that they are, and as choices of a prompt."""
    requests = KeptRequests(HttpOptions())
    texts = ["see", "see yes", "see no"]
    options = LogprobOptions(start_len=1)
    rows = [msgspec.structs.replace(request(f"r{i}", max_new_tokens=0), logprobs=options) for i in range(3)]
    media = [[image(b"x")]] * 3
    req = GenerateReq(text=list(texts), logprobs=[options] * 3, media=media, adapter=["poet"] * 3)
    requests.note(rows, req)
    found = await requests.told("r0", tokenizer)
    assert found is not None and found["scores"] == {"text": "see", "choices": [" yes", " no"], "lora_path": "poet"}
    assert found["body"]["text"] == texts and found["body"]["lora_path"] == ["poet"] * 3
    assert found["body"]["image_data"] == [[media[0][0].source]] * 3
    assert found["body"]["logprob_start_len"] == 1


async def test_ids_that_no_text_stands_for_are_told_as_ids(tokenizer: Tokenizer) -> None:
    requests = KeptRequests(HttpOptions())
    word = tokenizer.encode("hello")
    apart = [i for letter in "hello" for i in tokenizer.encode(letter)]
    for rid, ids in (("word", word), ("apart", apart)):
        one = TokenizedReq(rid, pack_ids(ids), SamplingParams())
        requests.note([one], GenerateReq(input_ids=ids))
    assert [(await requests.told(rid, tokenizer))["body"].get("text") for rid in ("word", "apart")] == ["hello", None]  # type: ignore[index]
    assert (await requests.told("apart", tokenizer))["body"]["input_ids"] == apart  # type: ignore[index]


async def test_the_conversation_of_a_session_is_the_prompt(tokenizer: Tokenizer) -> None:
    requests = KeptRequests(HttpOptions())
    one = TokenizedReq("r", pack_ids(tokenizer.encode("before and now")), SamplingParams())
    session: Any = SimpleNamespace(id=SECRET)
    requests.note([one], GenerateReq(text=" now", session=session))
    found = await requests.told("r", tokenizer)
    assert found is not None and found["body"]["text"] == "before and now" and SECRET not in json.dumps(found)
