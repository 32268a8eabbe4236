"""What viewers of the machine are sent: one stream of events each, made once for all of them.

    ViewDelta --take--> mirror of the tree, event --> every viewer's queue --> POST /page/live

Who comes later gets the mirror first. A viewer that does not keep up loses its queue and gets the mirror again, so that nothing grows.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import Any

from sglang.srt.messages import NodeView, ViewDelta
from sglang.srt.server.http.json_pieces import encode_json
from sglang.srt.server.tokenizer_manager import TokenizerManager

MAX_VIEWERS = 16
MAX_WAITING = 50
"""events of one viewer"""
NUM_AT_ONCE = 500
"""nodes of one event"""
ALIVE_SECONDS = 1.0


class Viewer:
    """One of those who look. `events` wait to be sent."""

    def __init__(self) -> None:
        self.events: deque[bytes] = deque()
        self.news = asyncio.Event()

    def put(self, event: bytes) -> bool:
        """False if too many wait."""
        self.events.append(event)
        self.news.set()
        return len(self.events) <= MAX_WAITING


class LiveHub:
    """Owner of the viewers and of the mirror of what they have been told. The scheduler is asked while there is one."""

    def __init__(self, manager: TokenizerManager) -> None:
        self._manager = manager
        self._viewers: set[Viewer] = set()
        self._nodes: dict[int, list[Any]] = {}
        self._state: dict[str, Any] = {}
        """the rest of the last delta"""
        manager.on_view = self._take

    @property
    def is_full(self) -> bool:
        return len(self._viewers) >= MAX_VIEWERS

    async def events(self) -> AsyncIterator[bytes]:
        """What one viewer is sent, until it leaves or the server ends."""
        viewer = Viewer()
        self._enter(viewer)
        try:
            while not self._manager.draining:
                while viewer.events:
                    yield viewer.events.popleft()
                viewer.news.clear()
                try:
                    await asyncio.wait_for(viewer.news.wait(), ALIVE_SECONDS)
                except asyncio.TimeoutError:
                    yield b": nothing new\n\n"
        finally:
            self._leave(viewer)

    def _enter(self, viewer: Viewer) -> None:
        self._viewers.add(viewer)
        if len(self._viewers) == 1:
            self._manager.view(True)
        else:
            self._tell_all(viewer)

    def _leave(self, viewer: Viewer) -> None:
        self._viewers.discard(viewer)
        if not self._viewers:
            self._manager.view(False)
            self._nodes.clear()
            self._state = {}

    def _tell_all(self, viewer: Viewer) -> None:
        """The mirror, from the beginning."""
        viewer.events.clear()
        nodes = list(self._nodes.values())
        for at in range(0, max(len(nodes), 1), NUM_AT_ONCE):
            viewer.put(
                _event({"first": at == 0, "nodes": nodes[at : at + NUM_AT_ONCE], "gone": [], "steps": [], **self._state})
            )

    def _take(self, delta: ViewDelta) -> None:
        """One delta of the scheduler, for everyone."""
        if not self._viewers:  # it was on its way when the last one left
            return
        if delta.is_first:
            self._nodes.clear()
        shown = [self._shown(node) for node in delta.nodes]
        self._nodes.update((node[0], node) for node in shown)
        for node_id in delta.gone:
            self._nodes.pop(node_id, None)
        stats = {name: getattr(delta.stats, name) for name in delta.stats.__struct_fields__}
        self._state = {"late": delta.num_late, "omitted": delta.num_omitted, "stats": stats}
        event = _event({"first": delta.is_first, "nodes": shown, "gone": delta.gone, "steps": delta.steps, **self._state})
        for viewer in self._viewers:
            if not viewer.put(event):
                self._tell_all(viewer)

    def _shown(self, node: NodeView) -> list[Any]:
        """[id, parent, start, length, locked, hits, text]"""
        return [node.id, node.parent, node.start, node.length, node.is_locked, node.num_hits, self._text(node.ids)]

    def _text(self, ids: list[int]) -> str:
        tokenizer = self._manager.tokenizer
        if tokenizer is None:
            return " ".join(map(str, ids))
        table = tokenizer.vocabulary.token_bytes
        return b"".join(table[i] if 0 <= i < len(table) else b"" for i in ids).decode(errors="replace")


def _event(data: dict[str, Any]) -> bytes:
    return b"data: %b\n\n" % encode_json(data)
