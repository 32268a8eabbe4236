"""The loop of an embedding model: receive, compute a group of texts, emit. Clients take turns; the texts of one client are served in
order of arrival.

There is no decoding and no cache, so none of the scheduler's owners are needed: a request is queued or done.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from sglang.srt.config import OF_BATCHES
from sglang.srt.errors import OverloadError, RequestError
from sglang.srt.forward_batch import Embedder
from sglang.srt.messages import (
    AbortReq,
    BatchEmbedOut,
    BatchTokenOut,
    ControlReply,
    EmbedOut,
    EmbedReq,
    FinishReason,
    FlushCacheReq,
    Inbox,
    Outbox,
    PauseReq,
    ProfileReq,
    SchedulerStats,
    ShutdownReq,
    StateReq,
    TokenizedReq,
    TokenOut,
    ToScheduler,
)
from sglang.srt.scheduler.finish import abort_reason, failure_reason
from sglang.srt.scheduler.profiling import Profiler

IDLE_SECONDS = 1.0
GROUP_TOKENS = 2048
"""tokens computed between two looks at the inbox"""
GROUP_TEXTS = 64


class Line:
    """Owner of the waiting texts."""

    def __init__(self) -> None:
        self._texts: dict[str, EmbedReq] = {}
        self._of_client: dict[str, dict[str, EmbedReq]] = {}
        """in the order of their turns"""

    def __len__(self) -> int:
        return len(self._texts)

    def __iter__(self) -> Iterator[EmbedReq]:
        return iter(self._texts.values())

    def get(self, rid: str | None) -> EmbedReq | None:
        return self._texts.get(rid) if rid is not None else None

    def num_of(self, client: str) -> int:
        return len(self._of_client.get(client, ()))

    def add(self, req: EmbedReq) -> None:
        self._texts[req.rid] = req
        self._of_client.setdefault(req.client, {})[req.rid] = req

    def remove(self, req: EmbedReq) -> None:
        """Its client's next turn comes after those of others."""
        del self._texts[req.rid]
        others = self._of_client.pop(req.client)
        del others[req.rid]
        if others:
            self._of_client[req.client] = others

    def in_turns(self) -> Iterator[EmbedReq]:
        """All texts, one of each client at a time; those of batches only when there are no others."""
        others = [texts for client, texts in self._of_client.items() if not client.startswith(OF_BATCHES)]
        for turn in itertools.zip_longest(*(texts.values() for texts in others or self._of_client.values())):
            yield from (req for req in turn if req is not None)


class EmbeddingScheduler:
    """Serves until a ShutdownReq. `max_waiting`: texts beyond that many in the line are refused."""

    def __init__(self, embedder: Embedder, inbox: Inbox, outbox: Outbox, max_waiting: int) -> None:
        self._embedder = embedder
        self._inbox = inbox
        self._outbox = outbox
        self._max_waiting = max_waiting
        self._line = Line()
        self._profiler = Profiler()
        self._paused = False
        self._stopping = False
        self._num_steps = 0

    def run(self) -> None:
        """Serves until a ShutdownReq. Errors are raised to the caller."""
        while not self._stopping:
            self._receive()
            self.step()
        self._end_all(abort_reason(OverloadError("the server is shutting down")))

    def _receive(self) -> None:
        for message in self._inbox.receive(0.0 if len(self._line) and not self._paused else IDLE_SECONDS):
            self.handle(message)

    def step(self) -> bool:
        """Computes the front of the line. False when there is nothing to do."""
        if self._paused or not len(self._line):
            return False
        group: list[EmbedReq] = []
        tokens = 0
        for req in itertools.islice(self._line.in_turns(), GROUP_TEXTS):
            tokens += len(req.input_ids)
            if group and tokens > GROUP_TOKENS:
                break
            group.append(req)
        vectors = self._embedder.embed([req.input_ids for req in group], [req.first_len for req in group])
        outs = [self._out(req, vector) for req, vector in zip(group, vectors, strict=True)]
        for req in group:
            self._line.remove(req)
        self._num_steps += 1
        self._outbox.send(BatchEmbedOut(outs))
        return True

    @staticmethod
    def _out(req: EmbedReq, vector: np.ndarray[tuple[int], np.dtype[np.float32]]) -> EmbedOut:
        if not np.isfinite(vector).all():
            return EmbedOut(req.rid, finish=failure_reason("the model's vector is not made of numbers (NaN)"))
        return EmbedOut(req.rid, np.ascontiguousarray(vector, np.float32).tobytes())

    def handle(self, message: ToScheduler) -> None:
        """Takes one message. Called between steps only."""
        if isinstance(message, EmbedReq):
            self._accept(message)
        elif isinstance(message, TokenizedReq):
            reason = abort_reason(RequestError("this server embeds and does not generate: use /v1/embeddings"))
            self._outbox.send(BatchTokenOut([TokenOut(message.rid, [], reason, prompt_len=len(message.input_ids))]))
        elif isinstance(message, AbortReq):
            reason = FinishReason("abort", message=message.message)
            if message.all:
                self._end_all(reason)
            elif (req := self._line.get(message.rid)) is not None:
                self._end([req], reason)
        elif isinstance(message, FlushCacheReq):
            self._outbox.send(ControlReply(message.call_id))
        elif isinstance(message, PauseReq):
            self._paused = message.pause
            self._outbox.send(ControlReply(message.call_id))
        elif isinstance(message, ProfileReq):
            self._outbox.send(self._profiler.handle(message))
        elif isinstance(message, StateReq):
            self._outbox.send(ControlReply(message.call_id, stats=self._snapshot()))
        elif isinstance(message, ShutdownReq):
            self._stopping = True

    def _accept(self, req: EmbedReq) -> None:
        info = self._embedder.info
        error: RequestError | OverloadError | None = None
        if self._line.get(req.rid) is not None:
            error = RequestError(f"a request with the id {req.rid!r} is already running", "rid")
        elif not 0 < len(req.input_ids) <= info.context_len:
            error = RequestError(f"a text of {len(req.input_ids)} tokens: the model takes 1 to {info.context_len}", "input")
        elif min(req.input_ids) < 0 or max(req.input_ids) >= info.vocab_size:
            error = RequestError(f"the text has token ids outside 0 to {info.vocab_size - 1}", "input")
        elif len(self._line) >= self._max_waiting:
            error = OverloadError(f"{self._max_waiting} texts are waiting already; try again later")
        elif req.client and self._line.num_of(req.client) >= self._max_waiting - len(self._line):  # the rest is for others
            error = OverloadError(f"{self._line.num_of(req.client)} texts of this API key are waiting already; try again later")
        if error is None:
            self._line.add(req)
        else:
            self._outbox.send(BatchEmbedOut([EmbedOut(req.rid, finish=abort_reason(error))]))

    def _end_all(self, reason: FinishReason) -> None:
        self._end(list(self._line), reason)

    def _end(self, reqs: list[EmbedReq], reason: FinishReason) -> None:
        for req in reqs:
            self._line.remove(req)
        if reqs:
            self._outbox.send(BatchEmbedOut([EmbedOut(req.rid, finish=reason) for req in reqs]))

    def _snapshot(self) -> SchedulerStats:
        return SchedulerStats(
            num_waiting=len(self._line), max_total_tokens=self._embedder.info.max_total_tokens, num_steps=self._num_steps
        )
