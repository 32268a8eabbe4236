"""Latencies shown to viewers: the figures of the requests that ended while they looked, and nothing of the server's own."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from sglang.srt.messages import SchedulerStats, ViewDelta
from sglang.srt.server.generate_req import HEALTH_RIDS
from sglang.srt.server.page.latencies import NAMES, NUM_REQUESTS, Latencies, quantile
from sglang.srt.server.page.live import LiveHub
from tests.server.conftest import MakeStand, Stand
from tests.server.http_tools import client_of


def test_a_quantile_is_one_of_the_values() -> None:
    assert quantile([3.0], 0.5) == quantile([3.0], 0.95) == 3.0
    values = [float(n) for n in range(1, 101)]
    assert (quantile(values, 0.5), quantile(values, 0.95)) == (50.0, 95.0)
    assert (quantile(values[:20], 0.95), quantile(values[:21], 0.95)) == (19.0, 20.0)


class Look:
    """Somebody who looks."""

    def __init__(self, stand: Stand, hub: LiveHub) -> None:
        self._stand, self._hub = stand, hub
        self._viewer = hub.enter()
        self._events = hub.events(self._viewer)

    async def told(self) -> dict[str, Any]:
        """The latencies of the next state that the scheduler tells of."""
        coming = asyncio.ensure_future(anext(self._events))
        self._stand.manager.handle(ViewDelta(True, [], [], 0, 0, [], SchedulerStats()))
        found: dict[str, Any] = json.loads((await coming)[6:])["latencies"]
        return found

    async def leave(self) -> None:
        self._hub.leave(self._viewer)


async def test_requests_that_end_are_measured_while_somebody_looks(make_stand: MakeStand) -> None:
    stand = make_stand()
    hub = LiveHub(stand.manager)
    async with client_of(stand) as client:

        async def ask(num_tokens: int) -> None:
            body = {"text": "Paris is", "sampling_params": {"max_new_tokens": num_tokens}}
            assert (await client.post("/generate", json=body)).status_code == 200

        await ask(3)
        look = Look(stand, hub)
        assert await look.told() == {"count": 0}, "what ended before was not noted"
        await ask(1)
        found = await look.told()
        assert found["count"] == 1 and "between" not in found, "a single token has no next one"
        for _ in range(3):
            await ask(4)
        found = await look.told()
        assert found["count"] == 4 and set(found) == {"count", *NAMES}
        for name in NAMES:
            median, high = found[name]
            assert 0 <= median <= high
        assert found["queue"][0] <= found["first"][0] <= found["whole"][0]
        await look.leave()
        await ask(3)
        another = Look(stand, hub)
        assert await another.told() == {"count": 0}, "nobody looked"
        await another.leave()


class Ended:
    """A sequence as Latencies looks at it."""

    def __init__(self, rid: str, first_at: float) -> None:
        self.rid, self.first_at, self.queue_time = rid, first_at, 0.25
        self.call = type("Call", (), {"started_at": 0.0})
        self.progress = type("Progress", (), {"ids": [1, 2]})


@pytest.mark.parametrize(
    ("rid", "first_at", "reason"),
    [("a", 0.0, "stop"), ("a", 1.0, "abort"), (f"{HEALTH_RIDS}x", 1.0, "stop")],
    ids=["no token", "aborted", "a health check"],
)
def test_what_says_nothing_of_latency_is_left_out(rid: str, first_at: float, reason: str) -> None:
    latencies = Latencies()
    latencies.note(Ended(rid, first_at), reason)  # type: ignore[arg-type]
    assert latencies.summary() == {"count": 0}


def test_the_last_ones_are_kept() -> None:
    latencies = Latencies()
    for n in range(NUM_REQUESTS + 50):
        latencies.note(Ended("a", float(n + 1)), "length")  # type: ignore[arg-type]
    found = latencies.summary()
    assert found["count"] == NUM_REQUESTS
    assert found["first"] == [50 + NUM_REQUESTS / 2, 50 + NUM_REQUESTS * 0.95]
