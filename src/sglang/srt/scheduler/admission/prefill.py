"""Decides which requests are admitted, and how many tokens of each prompt a step computes.

Three budgets apply: rows of the step, rows of the table, and slots of the pool. Slots are reserved for an estimate of the tokens that
running requests will still produce: `OutputEstimate.ratio` of their limit, adapted to how often that was too little.

    a step's rows    [ decodes, jumps | rest of a prompt begun earlier | new prompt | new prompt | first chunk of a prompt ]

Only the last prompt may be left unfinished. A request whose uncached ids share a prefix with a prompt that is being computed waits
for it: in the next step it finds them in the cache.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np

from sglang.srt.config import ScheduleOptions
from sglang.srt.forward_batch import Int32Array, ModelInfo
from sglang.srt.scheduler.adapters import Adapters
from sglang.srt.scheduler.admission.waiting import WaitingQueue
from sglang.srt.scheduler.batch import Extend
from sglang.srt.scheduler.cache.kv_memory import KvMemory
from sglang.srt.scheduler.cache.radix_cache import Match
from sglang.srt.scheduler.media.encoder_gate import EncoderGate
from sglang.srt.scheduler.req import Req

SHARE_MIN = 32
"""The number of common uncached ids that is worth waiting for. Requests of one group wait for any number."""
CLIP_NEW_TOKENS = 4096
RETRY_STEPS = 16
MAX_DEFERRED = 256
"""Searching further in a long queue of requests with common prefixes would cost more than it saves."""


class OutputEstimate:
    """Which share of the tokens they may still produce running requests will need. Starts high, falls while all goes well,
    rises to what was seen when memory ran out."""

    START = 0.7
    MIN_SHARE = 0.14
    DECAY_STEPS = 600

    def __init__(self, conservativeness: float) -> None:
        self._start = min(self.START * conservativeness, 1.0)
        self._min = self._start * self.MIN_SHARE
        self._decay = (self._start - self._min) / self.DECAY_STEPS
        self.ratio = self._start

    def reset(self) -> None:
        self.ratio = self._start

    def note_step(self) -> None:
        self.ratio = max(self.ratio - self._decay, self._min)

    def note_retraction(self, running: list[Req]) -> None:
        """`running`: who is left after it."""
        produced = sum(len(req.output_ids) for req in running) + 20 * len(running)
        allowed = sum(req.finish.max_new_tokens for req in running) + 1
        self.ratio = min(max(self.ratio, produced / allowed), 1.0)

    def tokens(self, req: Req) -> float:
        """The number of tokens that `req` will still need beyond its fill_len."""
        return min(req.num_left, CLIP_NEW_TOKENS) * self.ratio


@dataclass(frozen=True)
class PrefillLimits:
    """`chunk_tokens`: rows for prompts in a step. `step_tokens`: rows of a step."""

    chunk_tokens: int
    step_tokens: int


def prefill_limits(options: ScheduleOptions, info: ModelInfo) -> PrefillLimits:
    """A step holds at least what a model computes in one."""
    step_tokens = info.max_batch_tokens
    chunk = options.chunked_prefill_size if options.chunked_prefill_size > 0 else step_tokens
    chunk = max(min(chunk, options.max_prefill_tokens), info.max_image_len, 1)
    return PrefillLimits(min(chunk, step_tokens), step_tokens)


class PrefillPlanner:
    """Owner of the one prompt that is begun and not finished. `unfit`: requests that left the queue because not even the
    whole pool would hold them."""

    def __init__(
        self,
        memory: KvMemory,
        waiting: WaitingQueue,
        estimate: OutputEstimate,
        limits: PrefillLimits,
        gate: EncoderGate,
        adapters: Adapters,
    ) -> None:
        self._memory = memory
        self._gate = gate
        self._adapters = adapters
        self._waiting = waiting
        self._estimate = estimate
        self._limits = limits
        self.partial: Req | None = None
        self.unfit: list[Req] = []
        self._blocked_for = 0

    def unblock(self) -> None:
        """Something changed that may let the next request in: memory was freed or a request came."""
        self._blocked_for = 0

    def still_blocked(self) -> bool:
        """For a step that is not planned: whether no request could be admitted, as far as is known."""
        if self._blocked_for > 0:
            self._blocked_for -= 1
            return True
        return False

    def plan(self, decodes: list[Req], jump_rows: int = 0) -> list[Extend]:
        """The prompts of this step; memory for their rows is reserved, and those admitted have left the queue. `decodes`: all
        that run, with a row each and `jump_rows` more."""
        rows = len(decodes) + jump_rows
        tokens = min(self._limits.chunk_tokens, self._limits.step_tokens - rows)
        extends: list[Extend] = []
        if self.partial is not None and tokens > 0:
            extends += self._continue(self.partial, tokens)
        if self.partial is None and len(self._waiting) and self._memory.rows.num_free:
            if self._blocked_for > 0:
                self._blocked_for -= 1
            else:
                self._admit(decodes, extends, tokens - sum(e.length for e in extends))
        return extends

    def _continue(self, req: Req, tokens: int) -> list[Extend]:
        hold = req.hold
        assert hold is not None
        end = self._memory.grow_far(hold, min(hold.kv_len + tokens, req.fill_len))
        if req.media is not None:
            end = req.media.last_end(hold.kv_len, end)
        if end <= hold.kv_len:
            return []
        if end == req.fill_len:
            self.partial = None
        return [Extend(req, hold.kv_len, end, end == req.fill_len, False)]

    def _admit(self, decodes: list[Req], extends: list[Extend], tokens: int) -> None:
        """Appends the prompts that go along to `extends`."""
        spare = self._memory.num_available - sum(map(self._estimate.tokens, decodes))
        spare -= sum(self._estimate.tokens(e.req) for e in extends)
        begun = _Begun()
        for extend in extends:
            begun.add(extend.req)
        admitted: list[Req] = []
        deferred = 0
        for req in self._waiting.ordered(self._memory.tree):
            if tokens <= 0 or self.partial is not None or not self._memory.rows.num_free or deferred > MAX_DEFERRED:
                break
            if not self._memory.fits_alone(req.fill_len):
                self._waiting.remove(req)
                self.unfit.append(req)
                continue
            if req.is_waiting:
                continue
            match = self._memory.match(req.fill_ids()[: req.reuse_limit()], req.salt)
            if self._memory.cached and begun.is_near(req, match):
                deferred += 1
                self._waiting.pass_over(req)
                continue
            if req.media is not None and not self._gate.is_ready(req.media, len(match.slots)):
                self._waiting.pass_over(req)
                continue
            start = len(match.slots)
            if req.media is not None and req.media.last_end(start, min(start + tokens, req.fill_len)) <= start:
                break  # an image would be cut: it goes first in its own step
            if req.adapter and not self._adapters.take_slot(req, (*decodes, *(extend.req for extend in extends))):
                self._waiting.pass_over(req)
                continue
            alone = not decodes and not extends
            cost = self._take(req, match, tokens, math.inf if req is self._waiting.due else spare, alone)
            if cost is None:
                self._blocked_for = 0 if alone else RETRY_STEPS
                break
            begun.add(req)
            extends.append(self._first_extend(req, tokens))
            tokens -= extends[-1].length
            spare -= cost
            admitted.append(req)
        self._waiting.note_admitted(admitted)

    def _take(self, req: Req, match: Match, tokens: int, spare: float, alone: bool) -> float | None:
        """Gives `req` a row, its cached prefix and slots for at most `tokens` more ids. Returns how much of `spare` that
        takes, or None when memory does not allow it. A request that is `alone`, or whose turn it is, is taken whatever the estimate."""
        memory, fill_len = self._memory, req.fill_len
        evictable = memory.tree.num_evictable
        hold = memory.open(match, req.salt, req.no_reuse, req.may_be_late)
        if hold is None:  # all states are taken
            return None
        newly_locked = evictable - memory.tree.num_evictable
        cost = fill_len - hold.kv_len + memory.run + self._estimate.tokens(req) + newly_locked
        if (cost <= spare or alone) and memory.grow(hold, min(hold.kv_len + tokens, fill_len)):
            req.hold = hold
            return cost
        memory.close(hold, req.fill_ids()[: hold.kv_len])
        if alone and not req.no_reuse:  # its cached prefix lies scattered over too many runs: start afresh
            req.no_reuse = True
            nothing = memory.match(match.slots[:0], req.salt)
            return self._take(req, nothing, tokens, spare, alone)
        return None

    def _first_extend(self, req: Req, tokens: int) -> Extend:
        """Takes an admitted request out of the queue and into the step."""
        self._waiting.admit(req)
        assert req.hold is not None
        start = req.hold.kv_len
        end = min(start + tokens, req.fill_len)
        if req.media is not None:
            end = req.media.last_end(start, end)
        if end < req.fill_len:
            self.partial = req
        return Extend(req, start, end, end == req.fill_len, True)


class _Begun:
    """Prefixes that the prompts of this step will have put into the cache by the next."""

    def __init__(self) -> None:
        self._starts: set[Hashable] = set()
        self._groups: dict[Hashable, Int32Array] = {}

    def add(self, req: Req) -> None:
        ids, hold = req.fill_ids(), req.hold
        assert hold is not None
        self._starts.add(self._start(req, ids, hold.node.id, hold.tree_len))
        if req.msg.group is not None:
            self._groups[req.msg.group, req.salt] = ids

    def is_near(self, req: Req, match: Match) -> bool:
        """Whether waiting a step makes `match` longer by something worth it."""
        ids, cached, limit = req.fill_ids(), len(match.slots), req.reuse_limit()
        if limit - cached >= SHARE_MIN and self._start(req, ids, match.node.id, cached) in self._starts:
            return True
        if req.msg.group is None or limit <= cached:
            return False
        other = self._groups.get((req.msg.group, req.salt))
        return other is not None and len(other) > cached and np.array_equal(ids[: cached + 1], other[: cached + 1])

    def _start(self, req: Req, ids: Int32Array, node_id: int, cached: int) -> Hashable:
        """Equal for requests with the same cached prefix whose next SHARE_MIN ids are the same."""
        return req.salt, node_id if cached else None, cached, ids[cached : cached + SHARE_MIN].tobytes()
