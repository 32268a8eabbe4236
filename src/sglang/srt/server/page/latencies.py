"""Latencies of the last requests, for viewers: medians and 95th percentiles."""

from __future__ import annotations

import math
import time
from collections import deque

from sglang.srt.server.calls import Sequence
from sglang.srt.server.generate_req import HEALTH_RIDS

NUM_REQUESTS = 200
NAMES = ("queue", "first", "between", "whole")
"""from arrival to the first step, and to the first token; from one token to the next; from arrival to the end"""


class Latencies:
    """Latencies of requests that have ended, from times that the server measures anyway. Aborted requests are left out."""

    def __init__(self) -> None:
        self._ended: deque[tuple[float | None, ...]] = deque(maxlen=NUM_REQUESTS)
        self._summary: dict[str, object] | None = None

    def note(self, sequence: Sequence, reason: str) -> None:
        """A request has ended."""
        if reason == "abort" or not sequence.first_at or sequence.rid.startswith(HEALTH_RIDS):
            return
        now, began, num_after = time.monotonic(), sequence.call.started_at, len(sequence.progress.ids) - 1
        between = (now - sequence.first_at) / num_after if num_after > 0 else None
        self._ended.append((sequence.queue_time, sequence.first_at - began, between, now - began))
        self._summary = None

    def clear(self) -> None:
        self._ended.clear()
        self._summary = None

    def summary(self) -> dict[str, object]:
        """{count, name: [median, 95th percentile] in seconds} of the last NUM_REQUESTS requests."""
        if self._summary is None:
            self._summary = {"count": len(self._ended)}
            for name, column in zip(NAMES, zip(*self._ended, strict=True), strict=False):
                if known := sorted(value for value in column if value is not None):
                    self._summary[name] = [quantile(known, 0.5), quantile(known, 0.95)]
        return self._summary


def quantile(ordered: list[float], share: float) -> float:
    """The least of them that `share` of all do not exceed."""
    return round(ordered[math.ceil(len(ordered) * share) - 1], 6)
