"""The scheduler's counters, its two log lines, and the snapshot for metrics."""

from __future__ import annotations

import logging
import time

import msgspec

from sglang.srt.messages import DraftCounts, SchedulerStats
from sglang.srt.scheduler.batch import Extend, ScheduleBatch
from sglang.srt.scheduler.cache.kv_memory import KvMemory

logger = logging.getLogger("sglang")

RECENT_SECONDS = 1.0
"""a throughput is measured over at least so long, once one is known"""


class StepStats:
    """Counts since the start of the scheduler and since the last log line."""

    def __init__(self, memory: KvMemory, log_interval: int) -> None:
        self._memory = memory
        self._interval = max(log_interval, 1)
        self.num_steps = 0
        self.num_decode_steps = 0
        self._num_generated = 0
        self._since = time.monotonic()
        self._gen_throughput = 0.0
        """of the time up to the last log line"""
        self._prompt_tokens = 0
        self._cached_tokens = 0
        self._drafts: dict[str, DraftCounts] = {}

    def note_step(
        self, batch: ScheduleBatch, num_accepted: int, drafts: dict[str, DraftCounts], num_running: int, num_queued: int
    ) -> bool:
        """Counts one step and writes its log lines. `num_accepted`: tokens that drafts brought; `drafts`: by proposer. True when a
        snapshot is due."""
        self.num_steps += 1
        for proposer, counts in drafts.items():
            self._drafts.setdefault(proposer, DraftCounts()).add(counts)
        self._num_generated += len(batch.sampled) + num_accepted
        if batch.extends:
            self._num_generated += sum(e.end - e.start - 1 for e in batch.extends if e.is_jump)
            if prefills := batch.prefills:
                self._log_prefill(prefills, num_running, num_queued)
        if batch.decodes:
            self.num_decode_steps += 1
            if self.num_decode_steps % self._interval == 0:
                self._log_decode(num_running, num_queued)
        return self.num_steps % self._interval == 0

    def note_idle(self) -> None:
        """The clock of the throughput starts with the next step."""
        self._since, self._num_generated = time.monotonic(), 0

    def snapshot(self, num_running: int, num_waiting: int, num_grammars: int, num_retractions: int) -> SchedulerStats:
        """The state now."""
        memory = self._memory
        return SchedulerStats(
            num_running=num_running,
            num_waiting=num_waiting,
            num_grammar_waiting=num_grammars,
            num_used_tokens=memory.num_used,
            num_cached_tokens=memory.tree.num_evictable,
            num_free_tokens=memory.num_slots - memory.allocator.num_held,
            max_total_tokens=memory.num_slots,
            gen_throughput=self._throughput(time.monotonic()) if num_running else 0.0,
            cache_hit_rate=self._cached_tokens / self._prompt_tokens if self._prompt_tokens else 0.0,
            num_retractions=num_retractions,
            num_steps=self.num_steps,
            drafts={proposer: msgspec.structs.replace(counts) for proposer, counts in self._drafts.items()},
        )

    def _throughput(self, now: float) -> float:
        """Recent tokens a second: since the last log line, or up to that line if it was written just now."""
        seconds = max(now - self._since, 1e-9)
        return self._num_generated / seconds if seconds > RECENT_SECONDS or not self._gen_throughput else self._gen_throughput

    @property
    def _usage(self) -> float:
        return self._memory.num_used / self._memory.num_slots

    def _log_prefill(self, extends: list[Extend], num_running: int, num_queued: int) -> None:
        new = [extend for extend in extends if extend.is_new]
        num_tokens = sum(extend.length for extend in extends)
        num_cached = sum(extend.start for extend in new)
        self._prompt_tokens += num_tokens + num_cached
        self._cached_tokens += num_cached
        logger.info(
            "Prefill batch. #new-seq: %d, #new-token: %d, #cached-token: %d, token usage: %.2f, #running-req: %d, #queue-req: %d, ",
            len(new),
            num_tokens,
            num_cached,
            self._usage,
            num_running,
            num_queued,
        )

    def _log_decode(self, num_running: int, num_queued: int) -> None:
        now = time.monotonic()
        self._gen_throughput = self._num_generated / max(now - self._since, 1e-9)
        self._since, self._num_generated = now, 0
        logger.info(
            "Decode batch. #running-req: %d, #token: %d, token usage: %.2f, gen throughput (token/s): %.2f, #queue-req: %d, ",
            num_running,
            self._memory.num_used,
            self._usage,
            self._gen_throughput,
            num_queued,
        )
