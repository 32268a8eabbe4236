"""The event stream of the machine view, encoded once for all viewers.

    ViewDelta --take--> mirror of the replica, event --> every viewer's queue --> POST /page/live

A new viewer gets the mirrors first. A viewer that does not keep up loses its queue, and gets the mirrors again once it reads: no queue
grows, and one that never reads costs nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Iterable
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from sglang.common.interrupts import wait_for
from sglang.common.prefixes import first_difference
from sglang.srt.errors import OverloadError
from sglang.srt.machine_view import NodeView
from sglang.srt.messages import TokenizedReq, ViewDelta
from sglang.srt.server.calls import Sequence
from sglang.srt.server.generate_req import GenerateReq
from sglang.srt.server.http.json_pieces import encode_json
from sglang.srt.server.http.request_scope import current_scope
from sglang.srt.server.page.kept import KeptRequests, bare_prompt, choice_start, text_of
from sglang.srt.server.page.latencies import Latencies
from sglang.srt.server.tokenizer_manager import TokenizerManager

MAX_VIEWERS = 16
MAX_WAITING = 200
"""events of one viewer, besides the mirrors that it has not read yet"""
NUM_AT_ONCE = 500
"""nodes of one event"""
ALIVE_SECONDS = 1.0
MAX_CALLS, MAX_SAMPLES, MAX_CHOICES = 2000, 32, 500
"""requests of programs that are followed at once, and of one call"""
NUM_PROMPT_IDS = 600
"""of a prompt's end, and of an answer's beginning"""


class Viewer:
    """One viewer. `events` wait to be sent."""

    def __init__(self) -> None:
        self.events: deque[bytes] = deque()
        self.news = asyncio.Event()
        self.is_late = False
        """whether events were dropped, which the mirrors are to tell instead"""
        self._most = MAX_WAITING

    def put(self, event: bytes) -> None:
        if len(self.events) >= self._most:
            self.is_late = True
            self.events.clear()
        if not self.is_late:
            self.events.append(event)
        self.news.set()

    def begin(self, mirrors: list[bytes]) -> None:
        """All that waited is told by the mirrors instead."""
        self.events, self.is_late, self._most = deque(mirrors), False, len(mirrors) + MAX_WAITING
        self.news.set()


class Mirror:
    """What the viewers know of one replica: its nodes by id, and the rest of its last delta."""

    def __init__(self) -> None:
        self.nodes: dict[int, list[Any]] = {}
        self.state: dict[str, Any] = {}

    def take(self, delta: ViewDelta, shown: list[list[Any]], latencies: dict[str, object]) -> dict[str, Any]:
        """Takes a delta. Returns the event that tells of it."""
        if delta.is_first:
            self.nodes.clear()
        self.nodes.update((node[0], node) for node in shown)
        for node_id in delta.gone:
            self.nodes.pop(node_id, None)
        self.state = {
            "replica": delta.replica,
            "late": delta.num_late,
            "omitted": delta.num_omitted,
            "stats": {name: getattr(delta.stats, name) for name in delta.stats.__struct_fields__},
            "latencies": latencies,
        }
        return {"first": delta.is_first, "nodes": shown, "gone": delta.gone, "steps": delta.steps, **self.state}

    def events(self) -> list[bytes]:
        """All that there is, from the beginning."""
        nodes, at_once = list(self.nodes.values()), NUM_AT_ONCE
        cuts = range(0, max(len(nodes), 1), at_once)
        parts = ({"first": at == 0, "nodes": nodes[at : at + at_once], "gone": [], "steps": [], **self.state} for at in cuts)
        return list(map(_event, parts))


class LiveHub:
    """Owner of the viewers and of the mirrors of what they have been told. The schedulers are asked while there is one."""

    def __init__(self, manager: TokenizerManager) -> None:
        self._manager = manager
        self._viewers: set[Viewer] = set()
        self._mirrors: dict[int, Mirror] = {}
        """by the number of the replica"""
        self._encoded: list[bytes] | None = None
        """the mirrors as events, until something changes: viewers who are late together share them"""
        self._runs: dict[str, dict[str, str]] = {}
        """by rid, which run and branch requests of programs are of that are under way, and of which choices"""
        self._num_scored: dict[str, int] = {}
        """by rid, how many tokens choices have"""
        self._kept = KeptRequests(manager.http)
        self._latencies = Latencies()
        manager.on_view = self._take

    async def events(self, viewer: Viewer) -> AsyncIterator[bytes]:
        """The events for one viewer, until the server ends."""
        while not self._manager.draining:
            if viewer.is_late:
                viewer.begin(self._mirror())
            while viewer.events:
                yield viewer.events.popleft()
            if viewer.is_late:
                continue
            viewer.news.clear()
            try:
                await wait_for(viewer.news.wait(), ALIVE_SECONDS)
            except asyncio.TimeoutError:
                yield b": nothing new\n\n"

    def enter(self) -> Viewer:
        """One more viewer, who is to `leave`. Raises OverloadError where there are too many."""
        if len(self._viewers) >= MAX_VIEWERS:
            raise OverloadError("too many viewers of the machine view; close one of them")
        viewer = Viewer()
        self._viewers.add(viewer)
        if len(self._viewers) == 1:
            self._manager.view(True)
        else:
            viewer.begin(self._mirror())
        self._manager.records.observer = self
        return viewer

    def leave(self, viewer: Viewer) -> None:
        self._viewers.discard(viewer)
        if not self._viewers:
            self._manager.view(False)
            self._manager.records.observer = None
            self._latencies.clear()
            self._runs.clear()
            self._num_scored.clear()
            self._kept.clear()
            self._mirrors.clear()
            self._encoded = None

    def _mirror(self) -> list[bytes]:
        if self._encoded is None:
            self._encoded = [event for _, mirror in sorted(self._mirrors.items()) for event in mirror.events()]
        return self._encoded

    def _take(self, delta: ViewDelta) -> None:
        """Takes one delta of a scheduler, for all viewers."""
        if not self._viewers:  # it was on its way when the last one left
            return
        mirror = self._mirrors.setdefault(delta.replica, Mirror())
        shown = [self._shown(node) for node in delta.nodes]
        self._encoded = None
        self._tell(_event(mirror.take(delta, shown, self._latencies.summary())))

    def _tell(self, event: bytes) -> None:
        for viewer in self._viewers:
            viewer.put(event)

    # --- requests -------------------------------------------------------------------------------------------------------------

    def begun(self, requests: list[TokenizedReq], req: GenerateReq) -> None:
        """Requests have begun; those of programs of ours say so."""
        scope = current_scope()
        if not scope.run or len(self._runs) >= MAX_CALLS:
            return
        run, _, branch = scope.run.partition("/")
        followed = requests[: MAX_CHOICES if choice_start(requests[0]) else MAX_SAMPLES]
        self._kept.note(followed, req)
        bare = bare_prompt(req)
        begins = first_difference(requests[0].input_ids, [one.input_ids for one in followed[1:]]) if bare is not None else 0
        is_unconditional = req.begins_alike and not choice_start(requests[-1])
        for i, request in enumerate(followed):
            start = begins or choice_start(request)
            if (bare is not None and not i) or (req.begins_alike and not start):
                continue  # the prompt of choices alone, or a choice without the prompt
            place = {"run": run, "branch": branch, "rid": request.rid}
            if start:
                place["choice_of"] = requests[0].rid
            self._runs[request.rid] = place
            prompt = request.input_ids[: start or None]
            call = {
                **place,
                "name": scope.variable,
                "at": time.time(),
                "prompt_len": len(prompt),
                "prompt": self._text(prompt[-NUM_PROMPT_IDS:]),
                "constraint": request.sampling.grammar is not None,
                "max_new_tokens": request.sampling.max_new_tokens,
            }
            if start:
                call["choice"] = self._text(request.input_ids[start : start + NUM_PROMPT_IDS])
                call["unconditional"] = is_unconditional
                self._num_scored[request.rid] = len(request.input_ids) - start
            self._tell(_event({"call": call}))

    async def request_of(self, rid: str) -> dict[str, Any] | None:
        """The request of a call, with which anybody gets the same answer (kept.py); None if it is not known any more."""
        return await self._kept.told(rid, self._manager.tokenizer)

    def ended(self, sequence: Sequence, reason: str) -> None:
        """A request is over."""
        self._latencies.note(sequence, reason)
        place = self._runs.pop(sequence.request.rid, None)
        num_scored = self._num_scored.pop(sequence.request.rid, 0)
        if place is None:
            return
        progress = sequence.progress
        last = progress.last
        call = {
            **place,
            "ended": time.time(),
            "reason": reason,
            "completion": len(progress.ids),
            "cached": progress.cached_len,
            "text": self._text(progress.ids[:NUM_PROMPT_IDS]),
            "first": sequence.first_at - sequence.call.started_at if sequence.first_at else None,
            "retracted": last.num_retractions if last is not None else 0,
        }
        if "choice_of" in place and last is not None and last.input_logprobs is not None:
            scored = [logprob for logprob, _ in last.input_logprobs.chosen()][-num_scored:]
            known = [logprob for logprob in scored if logprob is not None]
            call["score"] = sum(known) / len(known) if known else None
        self._tell(_event({"call": call}))

    def _shown(self, node: NodeView) -> list[Any]:
        """[id, parent, start, length, locked, hits, text]"""
        return [node.id, node.parent, node.start, node.length, node.is_locked, node.num_hits, self._text(node.ids)]

    def _text(self, ids: Iterable[int]) -> str:
        tokenizer = self._manager.tokenizer
        if tokenizer is None:
            return " ".join(map(str, ids))
        return text_of(ids, tokenizer)


class ViewerStream(StreamingResponse):
    """The events of one viewer, who has his place before the answer begins: of many that come at once, none passes the limit."""

    def __init__(self, hub: LiveHub) -> None:
        self._hub, self._viewer = hub, hub.enter()
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(hub.events(self._viewer), media_type="text/event-stream", headers=headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._hub.leave(self._viewer)


def _event(data: dict[str, Any]) -> bytes:
    return b"data: %b\n\n" % encode_json(data)
