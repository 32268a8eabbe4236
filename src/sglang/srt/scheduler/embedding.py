"""The loop of a model that embeds: receive, compute a group of texts, emit. First come, first served.

There is no decoding and nothing to keep, so none of the scheduler's owners are needed: a request is in the line or done.
"""

from __future__ import annotations

import itertools

import numpy as np

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


class EmbeddingScheduler:
    """Serves until a ShutdownReq. `max_waiting`: texts beyond that many in the line are refused."""

    def __init__(self, embedder: Embedder, inbox: Inbox, outbox: Outbox, max_waiting: int) -> None:
        self._embedder = embedder
        self._inbox = inbox
        self._outbox = outbox
        self._max_waiting = max_waiting
        self._line: dict[str, EmbedReq] = {}
        self._profiler = Profiler()
        self._paused = False
        self._stopping = False
        self._num_steps = 0

    def run(self) -> None:
        """Serves until a ShutdownReq. An error goes on to whoever runs the scheduler."""
        while not self._stopping:
            self._receive()
            self.step()
        self._end_all(abort_reason(OverloadError("the server is shutting down")))

    def _receive(self) -> None:
        for message in self._inbox.receive(0.0 if self._line and not self._paused else IDLE_SECONDS):
            self.handle(message)

    def step(self) -> bool:
        """Computes the front of the line. False when there is nothing to do."""
        if self._paused or not self._line:
            return False
        group: list[EmbedReq] = []
        tokens = 0
        for req in itertools.islice(self._line.values(), GROUP_TEXTS):
            tokens += len(req.input_ids)
            if group and tokens > GROUP_TOKENS:
                break
            group.append(req)
        vectors = self._embedder.embed([req.input_ids for req in group])
        outs = [self._out(req, vector) for req, vector in zip(group, vectors, strict=True)]
        for req in group:
            del self._line[req.rid]
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
            elif message.rid in self._line:
                self._end([self._line[message.rid]], reason)
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
        if req.rid in self._line:
            error = RequestError(f"a request with the id {req.rid!r} is already running", "rid")
        elif not 0 < len(req.input_ids) <= info.context_len:
            error = RequestError(f"a text of {len(req.input_ids)} tokens: the model takes 1 to {info.context_len}", "input")
        elif min(req.input_ids) < 0 or max(req.input_ids) >= info.vocab_size:
            error = RequestError(f"the text has token ids outside 0 to {info.vocab_size - 1}", "input")
        elif len(self._line) >= self._max_waiting:
            error = OverloadError(f"{self._max_waiting} texts are waiting already; try again later")
        if error is None:
            self._line[req.rid] = req
        else:
            self._outbox.send(BatchEmbedOut([EmbedOut(req.rid, finish=abort_reason(error))]))

    def _end_all(self, reason: FinishReason) -> None:
        self._end(list(self._line.values()), reason)

    def _end(self, reqs: list[EmbedReq], reason: FinishReason) -> None:
        for req in reqs:
            del self._line[req.rid]
        if reqs:
            self._outbox.send(BatchEmbedOut([EmbedOut(req.rid, finish=reason) for req in reqs]))

    def _snapshot(self) -> SchedulerStats:
        return SchedulerStats(
            num_waiting=len(self._line), max_total_tokens=self._embedder.info.max_total_tokens, num_steps=self._num_steps
        )
