"""Viewers of the machine view: each replica is told of by itself, queues are bounded, one who does not read costs nothing, and what late
ones are told again is encoded once for all."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest

from sglang.srt.config import HttpOptions
from sglang.srt.errors import OverloadError
from sglang.srt.machine_view import NodeView
from sglang.srt.messages import SchedulerStats, ViewDelta
from sglang.srt.process.routing import Router
from sglang.srt.server.page.live import (
    MAX_VIEWERS,
    MAX_WAITING,
    NUM_AT_ONCE,
    LiveHub,
    ViewerStream,
)

NUM_NODES = 1200


def make_hub() -> LiveHub:
    manager = SimpleNamespace(on_view=None, draining=False, records=SimpleNamespace(observer=None), view=lambda on: None)
    manager.tokenizer, manager.http = None, HttpOptions()
    return LiveHub(manager)  # type: ignore[arg-type]


def delta(replica: int, ids: range, is_first: bool = False, gone: tuple[int, ...] = ()) -> ViewDelta:
    nodes = [NodeView(i, i - 1, 0, 24, False, 3, [replica]) for i in ids]
    return ViewDelta(is_first, nodes, list(gone), 0, 0, [], SchedulerStats(num_running=replica + 1), replica)


class Reader:
    """A viewer, which reads when it is told to."""

    def __init__(self, hub: LiveHub) -> None:
        self._hub, self._viewer = hub, hub.enter()
        self._events = hub.events(self._viewer)
        self.nodes: dict[int, dict[int, str]] = {}
        self.running: dict[int, int] = {}
        self.raw: list[bytes] = []

    async def read(self, count: int) -> None:
        for _ in range(count):
            event = await asyncio.wait_for(anext(self._events), 5)
            self.raw.append(event)
            self._take(json.loads(event.removeprefix(b"data: ")) if event.startswith(b"data") else {})

    def _take(self, said: dict[str, Any]) -> None:
        if "nodes" not in said:
            return
        nodes = self.nodes.setdefault(said["replica"], {})
        if said["first"]:
            nodes.clear()
        nodes.update((node[0], node[6]) for node in said["nodes"])
        for gone in said["gone"]:
            del nodes[gone]
        self.running[said["replica"]] = said["stats"]["num_running"]

    async def leave(self) -> None:
        self._hub.leave(self._viewer)


async def begin(hub: LiveHub, count: int) -> list[Reader]:
    """Viewers that have read one event each, so that they are there."""
    readers = [Reader(hub) for _ in range(count)]
    reading = [asyncio.ensure_future(reader.read(1)) for reader in readers]
    while len(hub._viewers) < count:
        await asyncio.sleep(0)
    hub._take(delta(0, range(1), is_first=True))
    await asyncio.gather(*reading)
    return readers


async def test_replicas_keep_apart_also_for_who_comes_later() -> None:
    hub = make_hub()
    (early,) = await begin(hub, 1)
    hub._take(delta(1, range(3), is_first=True))
    hub._take(delta(0, range(1, 3)))
    hub._take(delta(1, range(0), gone=(2,)))
    await early.read(3)
    late = Reader(hub)
    await late.read(2)
    for reader in (early, late):
        assert reader.nodes == {0: {0: "0", 1: "0", 2: "0"}, 1: {0: "1", 1: "1"}}
        assert reader.running == {0: 1, 1: 2}
        await reader.leave()


async def test_late_viewers_share_one_encoding_and_only_once_they_read(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = make_hub()
    made = 0
    encode = hub._mirror

    def counted() -> list[bytes]:
        nonlocal made
        made += 1
        return encode()

    monkeypatch.setattr(hub, "_mirror", counted)
    readers = await begin(hub, MAX_VIEWERS)
    made = 0
    for replica in (0, 1):
        for start in range(0, NUM_NODES, NUM_AT_ONCE):
            hub._take(delta(replica, range(start, min(start + NUM_AT_ONCE, NUM_NODES)), is_first=start == 0))
    for _ in range(50 * MAX_WAITING):
        hub._tell(b'data: {"call": 1}\n\n')
    assert made == 0, "whoever does not read costs nothing"
    assert all(len(viewer.events) <= MAX_WAITING for viewer in hub._viewers)
    num_parts = 2 * -(-NUM_NODES // NUM_AT_ONCE)
    for reader in readers:
        await reader.read(num_parts)
        assert {replica: len(nodes) for replica, nodes in reader.nodes.items()} == {0: NUM_NODES, 1: NUM_NODES}
        assert all(map(lambda a, b: a is b, reader.raw[-num_parts:], readers[0].raw[-num_parts:]))
    for reader in readers:
        await reader.leave()


async def test_mirrors_longer_than_a_queue_arrive_while_events_come() -> None:
    hub = make_hub()
    (reader,) = await begin(hub, 1)
    count = (MAX_WAITING + 50) * 2
    for replica in range(count):
        hub._take(delta(replica, range(2), is_first=True))
    assert all(viewer.is_late for viewer in hub._viewers)
    for _ in range(count):
        await reader.read(1)
        if len(reader.nodes) % 9 == 0:
            hub._tell(b'data: {"call": 1}\n\n')
    assert len(reader.nodes) == count
    await reader.leave()


def test_the_tree_of_a_replica_that_died_is_gone() -> None:
    router = Router(2, 1000)
    heard = router.heard(1, delta(0, range(2)))
    assert isinstance(heard, ViewDelta) and heard.replica == 1 and len(heard.nodes) == 2
    _, news = router.lost(1)
    (gone,) = [message for message in news if isinstance(message, ViewDelta)]
    assert (gone.replica, gone.is_first, gone.nodes) == (1, True, [])


async def test_of_many_viewers_at_once_no_more_enter_than_there_are_places() -> None:
    """Nor do those that come before the first answers have begun; whoever leaves makes room, also one that is cut off."""
    hub = make_hub()
    scope = {"type": "http", "method": "POST", "path": "/page/live", "headers": [], "asgi": {"spec_version": "2.3"}}

    async def send(message: Any) -> None:
        await asyncio.Event().wait()  # it reads nothing

    async def view() -> None:
        await ViewerStream(hub)(scope, asyncio.Event().wait, send)  # type: ignore[arg-type]

    viewers = [asyncio.ensure_future(view()) for _ in range(200)]
    await asyncio.wait(viewers[MAX_VIEWERS:])
    refused = [viewer for viewer in viewers if viewer.done()]
    assert len(hub._viewers) == MAX_VIEWERS and len(refused) == 200 - MAX_VIEWERS
    assert all(isinstance(viewer.exception(), OverloadError) for viewer in refused)
    for viewer in viewers:
        viewer.cancel()
    await asyncio.gather(*viewers, return_exceptions=True)
    assert not hub._viewers
