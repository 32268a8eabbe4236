"""Whether reading a prefix is sooner than computing it, by what both took lately."""

from __future__ import annotations

import math

LEAST_TOKENS = 32
"""fewer are computed in any case"""
LEAST_ROWS = 64
"""steps with fewer rows of prompts say little of how fast those are computed"""
FIRST_READ_RATE = 200e6
"""bytes a second, before anything was read"""
READ_LATENCY = 0.002
WEIGHT = 0.3
SLACK_SECONDS = 1.0


class Pace:
    """Moving averages. Times are in seconds."""

    def __init__(self) -> None:
        self._read_rate = FIRST_READ_RATE
        self._prefill_rate = 0.0

    def note_read(self, num_bytes: int, seconds: float) -> None:
        self._read_rate += WEIGHT * (num_bytes / max(seconds, 1e-6) - self._read_rate)

    def note_step(self, num_rows: int, seconds: float) -> None:
        """So many rows of prompts were computed."""
        if num_rows >= LEAST_ROWS:
            rate = num_rows / max(seconds, 1e-6)
            self._prefill_rate += (WEIGHT if self._prefill_rate else 1.0) * (rate - self._prefill_rate)

    def is_worth(self, num_tokens: int, num_bytes: int) -> bool:
        """Whether `num_tokens` should be read, which take so many bytes."""
        if num_tokens < LEAST_TOKENS:
            return False
        return not self._prefill_rate or num_bytes / self._read_rate + READ_LATENCY < num_tokens / self._prefill_rate

    def patience(self, num_tokens: int) -> float:
        """How long a request waits for them, while they are read, before it computes them after all."""
        return SLACK_SECONDS + num_tokens / self._prefill_rate if self._prefill_rate else math.inf
