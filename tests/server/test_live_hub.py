"""Viewers of the machine view that do not keep up: their queues are bounded, and what they are told again is encoded once for all."""

from __future__ import annotations

import json
from types import SimpleNamespace

from sglang.srt.server.page.live import MAX_VIEWERS, MAX_WAITING, LiveHub, Viewer

NUM_NODES = 1200


def test_late_viewers_share_one_mirror() -> None:
    manager = SimpleNamespace(on_view=None, draining=False, records=SimpleNamespace(observer=None), view=lambda on: None)
    hub = LiveHub(manager)  # type: ignore[arg-type]
    hub._nodes = {i: [i, i - 1, 0, 24, False, 3, "the text of a node"] for i in range(NUM_NODES)}
    late, quick = [Viewer() for _ in range(MAX_VIEWERS - 1)], Viewer()
    hub._viewers = {*late, quick}
    for _ in range(MAX_WAITING + 1):
        hub._tell(b"data: {}\n\n")
        quick.events.clear()
    assert not quick.events
    nodes = [node for event in late[0].events for node in json.loads(event.removeprefix(b"data: "))["nodes"]]
    assert len(nodes) == NUM_NODES and json.loads(late[0].events[0].removeprefix(b"data: "))["first"]
    for viewer in late:
        assert len(viewer.events) < MAX_WAITING and all(map(lambda a, b: a is b, viewer.events, late[0].events))
