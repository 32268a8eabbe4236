"""Routes messages between the server and several schedulers of one model.

    TokenizedReq        the scheduler that sglang/cluster/policy.py chooses
    AbortReq of one     the scheduler that has it
    all else            every scheduler; their answers become one

What viewers of the machine are told has the number of the scheduler that tells it.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field

import msgspec

from sglang.cluster.policy import BLOCK_IDS, PrefixPolicy, block_hashes
from sglang.srt.messages import (
    AbortReq,
    BatchTokenOut,
    ControlReply,
    DraftCounts,
    FlushCacheReq,
    FromScheduler,
    SchedulerStats,
    TokenizedReq,
    ToScheduler,
    ViewDelta,
)

TOTALS = ("num_retractions", "num_steps", "num_encoded")
"""statistics since a scheduler started; the other ones are of this moment"""
DISK_NOW = ("records", "bytes")
"""of SchedulerStats.disk: what is there, the same for all schedulers; the others are counts"""
HOST_NOW = ("host_records", "host_bytes")
"""of it, what each scheduler holds in host memory"""


@dataclass
class _Asked:
    """A call to all: who has not answered, and what the others said."""

    open: set[int]
    replies: list[ControlReply] = field(default_factory=list)


class Router:
    """Owner of what is known of the schedulers. Everything runs on the server's event loop."""

    def __init__(self, num_replicas: int, pool_tokens: int) -> None:
        self.policy = PrefixPolicy(num_replicas, pool_tokens)
        self.up = set(range(num_replicas))
        self._stats = [SchedulerStats() for _ in range(num_replicas)]
        self._ended = SchedulerStats()
        """totals of schedulers that have died"""
        self._asked: dict[int, _Asked] = {}

    # --- to the schedulers ----------------------------------------------------------------------------------------------------

    def targets(self, message: ToScheduler) -> list[int]:
        """Which schedulers get it."""
        if isinstance(message, TokenizedReq):
            prompt = self._blocks(message)
            limit = message.sampling.max_new_tokens or 0
            return [self.policy.send(message.rid, prompt, len(message.input_ids), limit)]
        if isinstance(message, AbortReq) and not message.all:
            index = self.policy.replica_of(message.rid)
            return [index] if index is not None else []
        if isinstance(message, FlushCacheReq):
            self.policy.flushed()
        call_id = getattr(message, "call_id", 0)
        if call_id:
            self._asked[call_id] = _Asked(set(self.up))
        return sorted(self.up)

    @staticmethod
    def _blocks(request: TokenizedReq) -> list[bytes]:
        """Of the prompt and of what was sent of the answer before. Images have ids of their own only in the scheduler's tree: their
        digests keep prompts with different ones apart."""
        ids = array("i", request.input_ids)
        if request.resumed:
            ids.extend(request.resumed)
        data, size = ids.tobytes(), BLOCK_IDS * ids.itemsize
        seed = [(request.cache_salt or "").encode(), str(request.adapter).encode(), *(item.mm_hash for item in request.media)]
        return block_hashes(seed, (data[at : at + size] for at in range(0, len(data) - size + 1, size)))

    # --- from the schedulers --------------------------------------------------------------------------------------------------

    def heard(self, index: int, message: FromScheduler) -> FromScheduler | None:
        """Takes a message of a scheduler. Returns what the server is to hear; None for nothing."""
        if isinstance(message, BatchTokenOut):
            for out in message.outs:
                if out.finish is not None:
                    self.policy.end(out.rid)
                else:
                    self.policy.progress(out.rid, len(out.ids))
        elif isinstance(message, SchedulerStats):
            self._stats[index] = message
            return self._all_stats()
        elif isinstance(message, ViewDelta):
            return msgspec.structs.replace(message, replica=index)
        elif isinstance(message, ControlReply):
            return self._answered(index, message)
        return message

    def _answered(self, index: int, reply: ControlReply) -> ControlReply | None:
        if reply.stats is not None:
            self._stats[index] = reply.stats
            reply = msgspec.structs.replace(reply, stats=self._all_stats())
        asked = self._asked.get(reply.call_id)
        if asked is None:
            return reply
        asked.open.discard(index)
        asked.replies.append(reply)
        return self._joined(reply.call_id, asked) if not asked.open else None

    def _joined(self, call_id: int, asked: _Asked) -> ControlReply:
        del self._asked[call_id]
        said = dict.fromkeys(reply.message for reply in asked.replies if reply.message)
        stats = self._all_stats() if any(reply.stats is not None for reply in asked.replies) else None
        adapter = next((reply.adapter for reply in asked.replies if reply.adapter is not None), None)
        return ControlReply(call_id, all(reply.ok for reply in asked.replies), "; ".join(said), stats, adapter)

    def _all_stats(self) -> SchedulerStats:
        return total([*self._stats, self._ended])

    # --- deaths -----------------------------------------------------------------------------------------------------------------

    def lost(self, index: int) -> tuple[list[str], list[FromScheduler]]:
        """A scheduler has died. Returns the names of its requests, and what the server is to hear: answers for calls that only it had
        not answered, and, for viewers, that its tree is gone."""
        self.up.discard(index)
        last = self._stats[index]
        disk = {name: count for name, count in last.disk.items() if name not in (*DISK_NOW, *HOST_NOW)}
        numbers = {name: getattr(last, name) for name in TOTALS}
        kept = SchedulerStats(**numbers, drafts=last.drafts, cached_tokens=last.cached_tokens, disk=disk)
        self._stats[index] = SchedulerStats()
        self._ended = total([self._ended, kept])
        gone = ViewDelta(True, [], [], 0, 0, [], SchedulerStats(), index)
        return [str(name) for name in self.policy.lost(index)], [*self._unanswered(index), gone]

    def _unanswered(self, index: int) -> Iterator[ControlReply]:
        for call_id, asked in list(self._asked.items()):
            if index in asked.open:
                asked.open.discard(index)
                asked.replies.append(ControlReply(call_id, False, "one of the schedulers died meanwhile"))
                if not asked.open:
                    yield self._joined(call_id, asked)

    def back(self, index: int) -> None:
        """Another scheduler has taken the place of the one that died."""
        self.up.add(index)
        self.policy.back(index)

    def forget_all(self) -> None:
        """None is up: what they counted is forgotten, as of a single one that dies."""
        self._ended = SchedulerStats()
        self._asked.clear()


def total(stats: list[SchedulerStats]) -> SchedulerStats:
    """Of several schedulers; rates of hits are averaged over those that have a cache."""
    names = set(SchedulerStats.__struct_fields__) - {"drafts", "cache_hit_rate", "cached_tokens", "disk"}
    sums = {name: sum(getattr(one, name) for one in stats) for name in names}
    drafts: dict[str, DraftCounts] = {}
    for one in stats:
        for proposer, counts in one.drafts.items():
            drafts.setdefault(proposer, DraftCounts()).add(counts)
    rates = [one.cache_hit_rate for one in stats if one.max_total_tokens]
    disk = _added([one.disk for one in stats])
    disk |= {name: max(one.disk.get(name, 0) for one in stats) for name in DISK_NOW if name in disk}
    cached = _added([one.cached_tokens for one in stats])
    rate = sum(rates) / len(rates) if rates else 0.0
    return SchedulerStats(**sums, drafts=drafts, cache_hit_rate=rate, cached_tokens=cached, disk=disk)


def _added(counts: list[dict[str, int]]) -> dict[str, int]:
    return {name: sum(one.get(name, 0) for one in counts) for one in counts for name in one}
