"""What is written down about calls: the log of requests, metrics, traces, and the times they are made of."""

from __future__ import annotations

import time

from sglang.srt.config import HttpOptions
from sglang.srt.messages import SchedulerStats, TokenizedReq, TokenOut
from sglang.srt.server.calls import Sequence
from sglang.srt.server.generate_req import GenerateOut
from sglang.srt.server.telemetry.metrics import Metrics
from sglang.srt.server.telemetry.request_log import RequestLog
from sglang.srt.server.telemetry.tracing import Moments, Tracing


class CallRecords:
    """Owner of the log, the metrics and the traces; each does nothing where it is not asked for."""

    def __init__(self, http: HttpOptions) -> None:
        name, endpoint = http.served_model_name, http.otlp_traces_endpoint
        self.metrics = Metrics(name) if http.enable_metrics else None
        self.tracing = Tracing(endpoint, name) if endpoint else None
        self._log = RequestLog(http.log_requests, http.log_requests_level)
        self.leaving: dict[str, list[Sequence]] = {}
        """dropped; the scheduler has not said its last about them"""

    def received(self, requests: list[TokenizedReq]) -> None:
        """A call has begun."""
        if self.metrics is not None:
            self.metrics.received(requests)

    def handed_over(self, request: TokenizedReq) -> None:
        self._log.received(request)

    def said(self, sequence: Sequence, token_out: TokenOut, out: GenerateOut, now: float) -> None:
        """Tokens have come, at `now`."""
        if token_out.ids:
            if not sequence.first_at or self.metrics is not None:
                self._note_times(sequence, token_out, now)
            sequence.last_at = now
        if self._log.keeps_text:
            self._log.said(sequence.request, out)

    def finished(self, sequence: Sequence, out: GenerateOut) -> None:
        """A sequence has ended by itself."""
        assert out.finish is not None
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
        """Nobody listens to a sequence any more."""
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
        """What it had to say it will not say any more."""
        while self.leaving:
            self._left(next(iter(self.leaving)), None)

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

    def restarted(self, num_resumed: int) -> None:
        if self.metrics is not None:
            self.metrics.restarted(num_resumed)

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
