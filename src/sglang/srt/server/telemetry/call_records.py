"""Records of calls: the request log, metrics, traces, and the times that they use.

The request log is optional: one JSON object per line, whatever clients put into their fields. Its levels: 0 ids, lengths and times;
1 sampling parameters as well; 2 the first tokens and the end of the text; 3 the whole text.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from typing import Any, Protocol

import msgspec

from sglang.srt.config import HttpOptions
from sglang.srt.messages import SchedulerStats, TokenizedReq, TokenOut
from sglang.srt.server.calls import Sequence
from sglang.srt.server.generate_req import HEALTH_RIDS, GenerateOut, GenerateReq, own_rid
from sglang.srt.server.telemetry.metrics import Metrics
from sglang.srt.server.telemetry.tracing import Moments, Tracing

logger = logging.getLogger("sglang.requests")

SHORT = 32
"""ids shown at level 2"""
SHORT_TEXT = 200


class RequestLog:
    """Writes it, where it is `enabled`. Health checks of the server itself are not in it."""

    def __init__(self, enabled: bool, level: int) -> None:
        self._enabled = enabled
        self._level = level
        self.keeps_text = enabled and level >= 2
        """whether `said` is to be told"""
        self._said: dict[str, list[str]] = {}

    def received(self, request: TokenizedReq) -> None:
        if not self._enabled:
            return
        entry: dict[str, Any] = {"prompt_tokens": len(request.input_ids), "stream": request.stream}
        if request.client:
            entry["client"] = request.client
        if self._level >= 1:
            entry["sampling"] = request.sampling
        if self._level >= 2:
            entry["input_ids"] = list(request.input_ids if self._level >= 3 else request.input_ids[:SHORT])
        self._write("received", request, entry)

    def said(self, request: TokenizedReq, out: GenerateOut) -> None:
        """A piece of text: those of a stream are kept until its end, where all of it is logged."""
        if self.keeps_text and out.text:
            self._said.setdefault(request.rid, []).append(out.text)

    def finished(self, request: TokenizedReq, out: GenerateOut, first_seconds: float | None, queue_seconds: float) -> None:
        """`first_seconds`: from arrival to the first token, if there was one."""
        if not self._enabled or out.finish is None:
            return
        entry: dict[str, Any] = {
            "reason": out.finish.type,
            "prompt_tokens": out.prompt_len,
            "cached_tokens": out.cached_len,
            "completion_tokens": out.completion_len,
            "queue_seconds": round(queue_seconds, 4),
            "first_token_seconds": None if first_seconds is None else round(first_seconds, 4),
            "seconds": round(out.seconds, 4),
        }
        if out.finish.message is not None:
            entry["message"] = out.finish.message
        if self._level >= 2:
            text = "".join(self._said.pop(request.rid, ()))
            entry["text"] = text if self._level >= 3 else text[-SHORT_TEXT:]
        self._write("finished", request, entry)

    def dropped(self, request: TokenizedReq, message: str) -> None:
        """Ended by the server's side: the client left, the time was up, the scheduler died."""
        if self._enabled:
            entry = {"message": message}
            if (said := self._said.pop(request.rid, None)) is not None and self._level >= 3:
                entry["text"] = "".join(said)
            self._write("dropped", request, entry)

    @staticmethod
    def _write(event: str, request: TokenizedReq, entry: dict[str, Any]) -> None:
        if own_rid(request).startswith(HEALTH_RIDS):
            return
        fields = msgspec.to_builtins({"event": event, "rid": own_rid(request), **entry})
        logger.info("%s", msgspec.json.encode(fields).decode(), extra={"fields": fields})


# --- the log of requests ----------------------------------------------------------------------------------------------------


class CallObserver(Protocol):
    """Observes calls as they run (page/live.py)."""

    def begun(self, requests: list[TokenizedReq], req: GenerateReq) -> None: ...

    def ended(self, sequence: Sequence, reason: str) -> None: ...


class CallRecords:
    """Owner of the log, the metrics and the traces; each does nothing where it is not asked for."""

    def __init__(self, http: HttpOptions) -> None:
        name, endpoint = http.served_model_name, http.otlp_traces_endpoint
        self.metrics = Metrics(name) if http.enable_metrics else None
        self.tracing = Tracing(endpoint, name) if endpoint else None
        self._log = RequestLog(http.log_requests, http.log_requests_level)
        self.notes_all = self.metrics is not None or self._log.keeps_text
        self.observer: CallObserver | None = None
        self.leaving: dict[str, list[Sequence]] = {}
        """dropped; the scheduler has not said its last about them"""

    def received(self, requests: list[TokenizedReq], req: GenerateReq) -> None:
        """A call has begun."""
        if self.observer is not None:
            self.observer.begun(requests, req)
        if self.metrics is not None:
            self.metrics.received(requests)

    def handed_over(self, request: TokenizedReq) -> None:
        self._log.received(request)

    def said(self, sequence: Sequence, token_out: TokenOut, out: GenerateOut, now: float) -> None:
        """Tokens have come, at `now`. To be told of the first ones, and of all where it `notes_all`."""
        if token_out.ids:
            self._note_times(sequence, token_out, now)
            sequence.last_at = now
        if self._log.keeps_text:
            self._log.said(sequence.request, out)

    def finished(self, sequence: Sequence, out: GenerateOut) -> None:
        """A sequence has ended by itself."""
        assert out.finish is not None
        if self.observer is not None:
            self.observer.ended(sequence, out.finish.type)
        first = sequence.first_at - sequence.call.started_at if sequence.first_at else None
        self._log.finished(sequence.request, out, first, sequence.queue_time)
        if self.metrics is not None:
            self.metrics.finished(out, first, sequence.request.sampling.grammar is not None)
        self._trace(sequence, out.finish.type, out.prompt_len, out.completion_len)

    def discarded(self, token_out: TokenOut) -> None:
        """An answer was thrown away, and the next one is generated in its place."""
        if self.metrics is not None:
            self.metrics.left(token_out.prompt_len, token_out.cached_len, token_out.completion_len)

    def dropped(self, sequence: Sequence, message: str) -> None:
        """Notes that a sequence has no reader any more."""
        if self.observer is not None:
            self.observer.ended(sequence, "abort")
        self._log.dropped(sequence.request, message)
        self._trace(sequence, "abort", sequence.prompt_len, 0)
        if self.metrics is not None:
            self.metrics.aborted()

    def lost(self, sequence: Sequence, message: str) -> None:
        """A sequence has ended with the scheduler."""
        self._log.dropped(sequence.request, message)

    # --- what the scheduler still says of dropped sequences -------------------------------------------------------------------

    def expect_last(self, sequence: Sequence) -> None:
        """The scheduler has been told to abort a dropped sequence, and will say how far it got."""
        self.leaving.setdefault(sequence.request.rid, []).append(sequence)

    def take_last(self, token_out: TokenOut) -> bool:
        """Whether the output is of a dropped sequence, and not of a new one with its name."""
        if token_out.rid not in self.leaving:
            return False
        if token_out.finish is not None:
            self._left(token_out.rid, token_out)
        return True

    def scheduler_died(self) -> None:
        """Ends the dropped sequences, since the scheduler that died sends no more outputs of them."""
        while self.leaving:
            self._left(next(iter(self.leaving)), None)

    def replica_died(self, names: Iterable[str]) -> None:
        """Ends those dropped sequences that one of several schedulers had."""
        for name in names:
            while name in self.leaving:
                self._left(name, None)

    def _left(self, rid: str, last: TokenOut | None) -> None:
        """The first dropped sequence of that name is over. `last`: what the scheduler said of it; None if it died before."""
        sequence, *others = self.leaving.pop(rid)
        if others:
            self.leaving[rid] = others
        if self.metrics is None:
            return
        if last is not None:
            self.metrics.left(last.prompt_len, last.cached_len, last.completion_len)
        else:
            progress = sequence.progress
            self.metrics.left(sequence.prompt_len, progress.cached_len, len(progress.ids))

    # --- the scheduler ---------------------------------------------------------------------------------------------------------

    def scheduler(self, stats: SchedulerStats) -> None:
        if self.metrics is not None:
            self.metrics.scheduler(stats)

    def restarted(self, num_resumed: int, counts_anew: bool = True) -> None:
        """A scheduler took the place of one that died. `counts_anew`: the statistics begin at zero."""
        if self.metrics is not None:
            self.metrics.restarted(num_resumed, counts_anew)

    # --- times -----------------------------------------------------------------------------------------------------------------

    def _note_times(self, sequence: Sequence, token_out: TokenOut, now: float) -> None:
        count = len(token_out.ids)
        if not sequence.first_at:
            call_began = sequence.call.started_at
            # without a stream all tokens come at once; the scheduler knows when there was the first
            sequence.first_at = sequence.last_at = call_began + token_out.first_time if token_out.first_time else now
            sequence.queue_time = token_out.queue_time
            if self.metrics is not None:
                self.metrics.first_token(sequence.first_at - call_began, token_out.queue_time)
            count -= 1
        if count and self.metrics is not None:
            self.metrics.next_tokens(now - sequence.last_at, count)

    def _trace(self, sequence: Sequence, reason: str, prompt_len: int, completion_len: int) -> None:
        if self.tracing is None:
            return
        arrived = sequence.call.started_at
        started = arrived + sequence.queue_time if sequence.first_at else 0.0
        facts = {
            "gen_ai.response.finish_reasons": (reason,),
            "gen_ai.usage.input_tokens": prompt_len,
            "gen_ai.usage.output_tokens": completion_len,
        }
        moments = Moments(arrived, started, sequence.first_at, time.monotonic())
        self.tracing.ended(sequence.request, moments, sequence.call.trace, facts)
