"""X-Sglang-Run: only what it is for is taken from it, and only viewers are told."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from sglang.srt.server.page.live import MAX_CALLS, LiveHub
from tests.server.conftest import MakeStand
from tests.server.http_tools import client_of

GOOD = {"X-Sglang-Run": "3fa9/0.1.2", "X-Sglang-Variable": "na%C3%AFve%20name"}
BAD = [
    "",
    "x",
    "3fa9",
    "3fa9/",
    "/0",
    "3fa9/0.",
    "3fa9/0..1",
    "3FA9/0",
    "../../0",
    "3fa9/" + "0." * 40 + "0",
    "3fa9/0\t1",
    "a" * 5000,
]


async def calls_of(make_stand: MakeStand, headers: list[dict[str, str]]) -> list[dict[str, Any]]:
    """What a viewer is told of requests with these headers."""
    stand = make_stand()
    hub = LiveHub(stand.manager)
    viewer = hub.enter()
    told: list[dict[str, Any]] = []

    async def look() -> None:
        async for event in hub.events(viewer):
            if event.startswith(b"data: "):
                data = json.loads(event[6:])
                if "call" in data:
                    told.append(data["call"])

    looking = asyncio.create_task(look())
    await asyncio.sleep(0)
    async with client_of(stand) as client:
        for each in headers:
            reply = await client.post(
                "/generate", json={"text": "Paris is", "sampling_params": {"max_new_tokens": 2}}, headers=each
            )
            assert reply.status_code == 200
    await asyncio.sleep(0.05)
    looking.cancel()
    await asyncio.gather(looking, return_exceptions=True)
    hub.leave(viewer)
    assert stand.manager.records.observer is None
    return told


async def test_a_viewer_is_told_of_the_beginning_and_the_end(make_stand: MakeStand) -> None:
    begun, ended = await calls_of(make_stand, [GOOD])
    assert (begun["run"], begun["branch"], begun["name"]) == ("3fa9", "0.1.2", "na\u00efve name")
    assert begun["prompt"] == "Paris is" and begun["constraint"] is False
    assert ended["rid"] == begun["rid"] and ended["completion"] == 2 and ended["ended"] >= begun["at"]


@pytest.mark.parametrize("value", BAD)
async def test_what_is_no_run_is_none(make_stand: MakeStand, value: str) -> None:
    assert await calls_of(make_stand, [{"X-Sglang-Run": value}]) == []


async def test_requests_of_others_are_not_told(make_stand: MakeStand) -> None:
    assert await calls_of(make_stand, [{}]) == [] and MAX_CALLS > 0
