"""The event stream of the machine view, encoded once for all viewers.

    ViewDelta --take--> mirror of the tree, event --> every viewer's queue --> POST /page/live

A new viewer gets the mirror first. A viewer that does not keep up loses its queue and gets the mirror again, so that no queue grows.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Iterable
from typing import Any

from sglang.srt.messages import NodeView, TokenizedReq, ViewDelta
from sglang.srt.server.calls import Sequence
from sglang.srt.server.http.json_pieces import encode_json
from sglang.srt.server.http.request_scope import current_scope
from sglang.srt.server.page.latencies import Latencies
from sglang.srt.server.tokenizer_manager import TokenizerManager

MAX_VIEWERS = 16
MAX_WAITING = 200
"""events of one viewer"""
NUM_AT_ONCE = 500
"""nodes of one event"""
ALIVE_SECONDS = 1.0
MAX_CALLS, MAX_SAMPLES = 2000, 32
"""requests of programs that are followed at once, and of one call"""
NUM_PROMPT_IDS = 600
"""of a prompt's end, and of an answer's beginning"""


class Viewer:
    """One viewer. `events` wait to be sent."""

    def __init__(self) -> None:
        self.events: deque[bytes] = deque()
        self.news = asyncio.Event()

    def put(self, event: bytes) -> bool:
        """False if too many wait."""
        self.events.append(event)
        self.news.set()
        return len(self.events) <= MAX_WAITING

    def begin(self, mirror: list[bytes]) -> None:
        """All that waited is told by the mirror instead."""
        self.events = deque(mirror)
        self.news.set()


class LiveHub:
    """Owner of the viewers and of the mirror of what they have been told. The scheduler is asked while there is one."""

    def __init__(self, manager: TokenizerManager) -> None:
        self._manager = manager
        self._viewers: set[Viewer] = set()
        self._nodes: dict[int, list[Any]] = {}
        self._state: dict[str, Any] = {}
        """the rest of the last delta"""
        self._runs: dict[str, tuple[str, str]] = {}
        """by rid, the run and branch of requests of programs that are under way"""
        self._latencies = Latencies()
        manager.on_view = self._take

    @property
    def is_full(self) -> bool:
        return len(self._viewers) >= MAX_VIEWERS

    async def events(self) -> AsyncIterator[bytes]:
        """The events for one viewer, until it leaves or the server ends."""
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
            viewer.begin(self._mirror())
        self._manager.records.observer = self

    def _leave(self, viewer: Viewer) -> None:
        self._viewers.discard(viewer)
        if not self._viewers:
            self._manager.view(False)
            self._manager.records.observer = None
            self._latencies.clear()
            self._runs.clear()
            self._nodes.clear()
            self._state = {}

    def _mirror(self) -> list[bytes]:
        """All that there is, from the beginning."""
        nodes, at_once = list(self._nodes.values()), NUM_AT_ONCE
        cuts = range(0, max(len(nodes), 1), at_once)
        parts = ({"first": at == 0, "nodes": nodes[at : at + at_once], "gone": [], "steps": [], **self._state} for at in cuts)
        return list(map(_event, parts))

    def _take(self, delta: ViewDelta) -> None:
        """Takes one delta of the scheduler, for all viewers."""
        if not self._viewers:  # it was on its way when the last one left
            return
        if delta.is_first:
            self._nodes.clear()
        shown = [self._shown(node) for node in delta.nodes]
        self._nodes.update((node[0], node) for node in shown)
        for node_id in delta.gone:
            self._nodes.pop(node_id, None)
        stats = {name: getattr(delta.stats, name) for name in delta.stats.__struct_fields__}
        self._state = {
            "late": delta.num_late,
            "omitted": delta.num_omitted,
            "stats": stats,
            "latencies": self._latencies.summary(),
        }
        event = _event({"first": delta.is_first, "nodes": shown, "gone": delta.gone, "steps": delta.steps, **self._state})
        self._tell(event)

    def _tell(self, event: bytes) -> None:
        late = [viewer for viewer in self._viewers if not viewer.put(event)]
        if late:
            mirror = self._mirror()  # made once: it may be megabytes
            for viewer in late:
                viewer.begin(mirror)

    # --- requests -------------------------------------------------------------------------------------------------------------

    def begun(self, requests: list[TokenizedReq]) -> None:
        """Requests have begun; those of programs of ours say so."""
        scope = current_scope()
        if not scope.run or len(self._runs) >= MAX_CALLS:
            return
        run, _, branch = scope.run.partition("/")
        for request in requests[:MAX_SAMPLES]:
            self._runs[request.rid] = run, branch
            call = {
                "run": run,
                "branch": branch,
                "rid": request.rid,
                "name": scope.variable,
                "at": time.time(),
                "prompt_len": len(request.input_ids),
                "prompt": self._text(request.input_ids[-NUM_PROMPT_IDS:]),
                "constraint": request.sampling.grammar is not None,
                "max_new_tokens": request.sampling.max_new_tokens,
            }
            self._tell(_event({"call": call}))

    def ended(self, sequence: Sequence, reason: str) -> None:
        """A request is over."""
        self._latencies.note(sequence, reason)
        place = self._runs.pop(sequence.request.rid, None)
        if place is None:
            return
        progress = sequence.progress
        last = progress.last
        call = {
            "run": place[0],
            "branch": place[1],
            "rid": sequence.request.rid,
            "ended": time.time(),
            "reason": reason,
            "completion": len(progress.ids),
            "cached": progress.cached_len,
            "text": self._text(progress.ids[:NUM_PROMPT_IDS]),
            "first": sequence.first_at - sequence.call.started_at if sequence.first_at else None,
            "retracted": last.num_retractions if last is not None else 0,
        }
        self._tell(_event({"call": call}))

    def _shown(self, node: NodeView) -> list[Any]:
        """[id, parent, start, length, locked, hits, text]"""
        return [node.id, node.parent, node.start, node.length, node.is_locked, node.num_hits, self._text(node.ids)]

    def _text(self, ids: Iterable[int]) -> str:
        tokenizer = self._manager.tokenizer
        if tokenizer is None:
            return " ".join(map(str, ids))
        table = tokenizer.vocabulary.token_bytes
        return b"".join(table[i] if 0 <= i < len(table) else b"" for i in ids).decode(errors="replace")


def _event(data: dict[str, Any]) -> bytes:
    return b"data: %b\n\n" % encode_json(data)
