"""A thousand requests of every kind at once: each gets an answer or a 4xx, and nothing is left behind."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from typing import Any

import httpx

from tests.conftest import RunningServer
from tests.server.test_end_to_end import wait_until_idle

NUM_REQUESTS = 1000
CONCURRENCY = 64
PREFIXES = ["You are a helpful assistant. ", "Once upon a time there was a fox. " * 4, "", "List of facts:\n1. "]


def plain(rng: random.Random) -> dict[str, Any]:
    params = {"max_new_tokens": rng.randrange(0, 12), "temperature": rng.choice([0, 0.8])}
    return {"text": rng.choice(PREFIXES) + f"Number {rng.randrange(40)} says", "sampling_params": params}


def constrained(rng: random.Random) -> dict[str, Any]:
    body = plain(rng)
    body["sampling_params"] |= rng.choice(
        [{"regex": "[a-z]{2,5} (yes|no)"}, {"json_schema": '{"type":"integer","minimum":0,"maximum":999}'}]
    ) | {"max_new_tokens": 24}
    return body


def several(rng: random.Random) -> dict[str, Any]:
    body = plain(rng)
    body["sampling_params"]["n"] = rng.randrange(2, 4)
    return body


def too_long(rng: random.Random) -> dict[str, Any]:
    return {"text": "long " * rng.randrange(9000, 12000)}


def invalid(rng: random.Random) -> dict[str, Any]:
    broken: list[dict[str, Any]] = [
        {"text": None},
        {"text": "a", "sampling_params": {"top_p": 2}},
        {"text": "a", "sampling_params": {"regex": "*"}},
        {"text": "a", "no_such_field": 1},
        {"text": ["a", 3]},
        {"input_ids": [[1, 2], [-4]]},
    ]
    return rng.choice(broken)


async def ask(client: httpx.AsyncClient, rng: random.Random) -> str:
    """Sends one request; returns its kind and outcome, having checked that they fit."""
    kind = rng.choices(["plain", "stream", "leave", "constrained", "several", "long", "invalid"], [30, 20, 15, 15, 8, 4, 8])[0]
    if kind in ("stream", "leave"):
        body = plain(rng) | {"stream": True}
        body["sampling_params"]["max_new_tokens"] = 200 if kind == "leave" else 8
        async with client.stream("POST", "/generate", json=body) as reply:
            assert reply.status_code == 200
            lines = []
            async for line in reply.aiter_lines():
                lines.append(line)
                if kind == "leave" and len(lines) > 3:
                    return "left"
        assert lines[-2] == "data: [DONE]" or lines[-1] == "data: [DONE]", lines[-3:]
        return "streamed"
    makers = {"plain": plain, "constrained": constrained, "several": several, "long": too_long, "invalid": invalid}
    body = makers[kind](rng)
    reply = await client.post("/generate", json=body)
    if kind in ("long", "invalid"):
        assert 400 <= reply.status_code < 500, (body, reply.text)
        assert reply.json()["error"]["message"]
        return "refused"
    assert reply.status_code == 200, (body, reply.text)
    answer = reply.json()
    if kind == "several":
        assert len(answer) == body["sampling_params"]["n"]
    return "answered"


async def run_all(url: str) -> Counter[str]:
    rng = random.Random(0)
    gate = asyncio.Semaphore(CONCURRENCY)
    limits = httpx.Limits(max_connections=CONCURRENCY, max_keepalive_connections=CONCURRENCY)
    async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits, trust_env=False) as client:

        async def one(seed: int) -> str:
            async with gate:
                return await ask(client, random.Random(seed))

        return Counter(await asyncio.gather(*(one(rng.randrange(2**32)) for _ in range(NUM_REQUESTS))))


def test_a_thousand_mixed_requests_leave_nothing_behind(server: RunningServer, http: httpx.Client) -> None:
    children = server.children()
    outcomes = asyncio.run(run_all(server.url))
    assert sum(outcomes.values()) == NUM_REQUESTS
    assert min(outcomes[o] for o in ("answered", "streamed", "left", "refused")) > 0, outcomes
    state = wait_until_idle(http)
    assert state["num_used_tokens"] == 0
    assert state["num_free_tokens"] + state["num_cached_tokens"] == state["max_total_tokens"], state
    assert state["num_inflight"] == 0, "requests that the HTTP process still remembers"
    assert server.children() == children
    log = server.log.read_text()
    assert "Traceback" not in log, log[log.index("Traceback") :][:3000]


def test_pages_add_up_after_a_flush(http: httpx.Client) -> None:
    wait_until_idle(http)
    assert http.post("/flush_cache").status_code == 200
    state = wait_until_idle(http)
    assert state["num_free_tokens"] == state["max_total_tokens"]
    assert json.dumps(state)
