"""Requests whose prefixes are read from the cache on disk. They stay in the waiting queue, keep their turn, and are passed over until
their load has ended; then they find in the tree what it brought."""

from __future__ import annotations

import time
from collections.abc import Sequence

import msgspec

from sglang.srt.messages import SchedulerStats
from sglang.srt.scheduler.admission.waiting import WaitingQueue
from sglang.srt.scheduler.batch import Extend, ScheduleBatch
from sglang.srt.scheduler.cache.disk.tier import DiskTier
from sglang.srt.scheduler.cache.disk.transfers import Load
from sglang.srt.scheduler.cache.kv_memory import KvMemory
from sglang.srt.scheduler.req import Req

MAX_LOADS = 2
"""that a request waits for: one that others began, and what is missing then. In a small pool, loads may evict what others have brought"""


class Restoring:
    """Owner of which request waits for which load. Without a `tier` nothing is ever read or written."""

    def __init__(self, tier: DiskTier | None, memory: KvMemory, waiting: WaitingQueue) -> None:
        self._tier, self._memory, self._waiting = tier, memory, waiting
        self.is_on = tier is not None
        self.num_waiting = 0
        """requests in the queue that wait for a load; those that have been aborted meanwhile are counted in"""
        self._waits: dict[Load, list[Req]] = {}
        self._began, self._num_rows = 0.0, 0
        self.num_cached = dict.fromkeys(("memory", *(tier.store.tiers if tier is not None else ())), 0)
        """prompt tokens that were found in the tree: computed by this scheduler, or read from a tier for their request"""

    @property
    def is_busy(self) -> bool:
        """Whether `poll` is to be called soon."""
        return self._tier is not None and self._tier.is_busy

    def add_stats(self, stats: SchedulerStats) -> SchedulerStats:
        """`stats` with what is known here."""
        if self._tier is None:
            return stats
        return msgspec.structs.replace(stats, cached_tokens=dict(self.num_cached), disk=self._tier.stats)

    def begin(self, req: Req) -> None:
        """The request has come: starts to read its prefix, if that is worth it."""
        if self._tier is None or not (limit := req.reuse_limit()):
            return
        req.load = load = self._tier.begin(req.fill_ids()[:limit], req.salt)
        if load is not None:
            req.num_loads += 1
            self.num_waiting += 1
            self._waits.setdefault(load, []).append(req)

    def poll(self) -> bool:
        """Before each step. Whether a request need not wait any more."""
        if self._tier is None:
            return False
        if not self._num_rows:
            self._began = time.perf_counter()
        has_ended = False
        for loaded in self._tier.poll():
            waited = self._waits.pop(loaded.load, [])
            self.num_waiting -= len(waited)
            for req in waited:
                if self._waiting.get(req.rid) is not req:  # aborted
                    continue
                has_ended = True
                req.load = None
                start = loaded.start if req.restored is None else req.restored[0]
                req.restored, req.restored_from = (start, loaded.end), loaded.tier
                if loaded.may_retry and req.num_loads < MAX_LOADS:
                    self.begin(req)
        return has_ended

    def note_admitted(self, extends: Sequence[Extend]) -> None:
        """Requests of a step that are new in it, with what they found in the tree."""
        for extend in extends:
            req, hold = extend.req, extend.req.hold
            if not extend.is_new or hold is None:
                continue
            if req.cached_len < 0:
                start, end = req.restored or (0, 0)
                cached = min(extend.start, req.prompt_len)
                restored = max(min(end, cached) - start, 0)
                self.num_cached[req.restored_from] += restored
                self.num_cached["memory"] += cached - restored
            if self._tier is not None and extend.start:
                slots = self._memory.rows.table[hold.row, : extend.start]
                self._tier.reused(req.fill_ids()[: extend.start], slots, hold.node, hold.salt)

    def note_step(self, batch: ScheduleBatch) -> None:
        """After each step. One without samples may be on its way still: its rows are counted with the next."""
        if self._tier is None:
            return
        self._num_rows += sum(extend.length for extend in batch.prefills)
        if batch.sampled:
            self._tier.pace.note_step(self._num_rows, time.perf_counter() - self._began)
            self._num_rows = 0

    def drain(self) -> None:
        """The scheduler ends in order: what is in memory is written."""
        if self._tier is not None:
            self._tier.drain()

    def close(self) -> None:
        """The scheduler ends."""
        if self._tier is not None:
            self._tier.close()
