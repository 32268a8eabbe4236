"""The next step of all decoding requests: memory for their rows, retraction when there is none, and the step that begins ahead.

Overlap scheduling: a plain step begins before the host knows the tokens of the last one (docs/ideas/overlap.md).

    device   | forward k | sample k | forward k+1         | sample k+1 |
    host     plan k+1, launch ------ wait k, commit k, masks k+1, launch sample ...

A request that decodes in step k takes part in step k + 1 with one row whose id is "the result of sample i" (ForwardBatch.previous),
which the device fills in. Once the tokens are known, the request may have ended (its row of step k + 1 is ignored), its grammar may
have forced more tokens after the sampled one, or reasoning may end with another token than the sampled one (its sample of step k + 1
is discarded, as if it were late). All other work is done once the tokens are known, so that no owner ever sees a request with
unknown tokens.

A retracted request gives up its slots (what it computed stays in the prefix cache while there is room) and waits at the front of the
queue, or inside the queue if it was retracted for another client (admission/waiting.py). It keeps its output, its grammar state and
its seed, so that only its latency changes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np

from sglang.srt.forward_batch import ForwardBatch
from sglang.srt.scheduler.admission.prefill import OutputEstimate, PrefillPlanner
from sglang.srt.scheduler.admission.waiting import Turns, WaitingQueue, party
from sglang.srt.scheduler.batch import Extend, Flight, ScheduleBatch, numbers, ones, row_adapters
from sglang.srt.scheduler.cache.kv_memory import KvMemory
from sglang.srt.scheduler.req import Req
from sglang.srt.scheduler.speculation.planning import gains_by_waiting

HEADROOM_TOKENS = 20
"""Tokens that each other request can still generate after a retraction."""


class RunningBatch:
    """Owner of the requests that decode. A step has room for `step_tokens` rows."""

    def __init__(
        self,
        memory: KvMemory,
        waiting: WaitingQueue,
        prefill: PrefillPlanner,
        estimate: OutputEstimate,
        step_tokens: int,
    ) -> None:
        self._memory = memory
        self._waiting = waiting
        self._prefill = prefill
        self._estimate = estimate
        self._step_tokens = step_tokens
        self.reqs: list[Req] = []
        self.num_retractions = 0

    @property
    def holders(self) -> list[Req]:
        """All that hold a place."""
        return [*self.reqs, self._prefill.partial] if self._prefill.partial is not None else list(self.reqs)

    def reserve_step(self) -> list[Req]:
        """Reserves slots for all tokens that each request has, retracting if it must. Returns requests that can go no further:
        alone in the pool, they fill it."""
        stuck: list[Req] = []
        while True:
            short = [r for r in self.reqs if r.hold is not None and r.hold.reserved_len < r.fill_len]
            if not short:
                return stuck
            if self._memory.grow_by_one([r.hold for r in short if r.hold is not None]):
                continue
            victim = self._victim()
            if victim is not None:
                self.retract(victim)
                self._make_headroom()
                continue
            last = self.reqs[0]
            if last.no_reuse or not self._memory.fits_alone(last.fill_len):
                self.reqs.remove(last)
                stuck.append(last)
            else:  # its prefix lies scattered over too many runs: start afresh, in one piece
                last.no_reuse = True
                self.retract(last)

    def split(self, sits_out: Callable[[Req], bool]) -> tuple[list[Req], list[Extend]]:
        """Splits into requests with one row in the next step, and requests with several because of forced tokens. The rows of
        the latter are cut where a step ends. A prompt whose first token is late begins with its last row."""
        decodes: list[Req] = []
        jumps: list[Extend] = []
        spare = self._step_tokens - len(self.reqs)
        for req in self.reqs:
            assert req.hold is not None
            if sits_out(req):
                continue
            start, end = req.hold.kv_len, req.fill_len
            if end - start == 1 and req.ending is None and req.output_ids:
                decodes.append(req)
                continue
            end = min(end, start + 1 + spare)
            spare -= end - start - 1
            jumps.append(Extend(req, start, end, end == req.fill_len, False, is_jump=True))
        return decodes, jumps

    def build_ahead(self, flight: Flight) -> ScheduleBatch | None:
        """The step after `flight`, with memory for its rows; None where it must wait for the tokens: unless every request decodes
        one plain row, memory suffices without retraction, and speculation is not likely to gain more from the tokens."""
        batch = flight.batch
        if flight.late or batch.extends or batch.forward.prompt_logprobs or len(batch.decodes) != len(self.reqs):
            return None
        if not all(map(_is_plain, batch.decodes)) or gains_by_waiting(batch.decodes):
            return None
        going = [i for i, req in enumerate(batch.decodes) if req.num_left > 1]
        reqs = [batch.decodes[i] for i in going]
        holds = [req.hold for req in reqs if req.hold is not None]
        if not holds or any(hold.kv_len + 1 >= self._memory.rows.context_len for hold in holds):
            return None
        short = [hold for hold in holds if hold.reserved_len < hold.kv_len + 2]
        if short and not self._memory.grow_by_one(short):
            return None
        rows, positions = np.array([(hold.row, hold.kv_len + 1) for hold in holds], dtype=np.int32).T
        every = numbers(len(reqs))
        forward = ForwardBatch(
            input_ids=np.zeros(len(reqs), dtype=np.int32),
            positions=positions,
            out_cache_loc=self._memory.rows.table[rows, positions],
            req_pool_idx=rows,
            q_start=every,
            q_len=ones(len(reqs)),
            seq_lens=positions + np.int32(1),
            sample_rows=every,
            samples=[req.spec for req in reqs],
            previous=np.array(going, dtype=np.int32),
            row_adapter=row_adapters(reqs, []),
        )
        return ScheduleBatch(reqs, [], forward, list(reqs), [])

    def retract(self, req: Req) -> None:
        """Takes a running request off the batch and back to the front of the queue, since memory ran out."""
        self._take_off(req)
        self._waiting.push_front(req)
        self._estimate.note_retraction(self.reqs)

    def step_aside(self, req: Req) -> None:
        """Takes a request off the batch that others are not to wait for; it is its caller's now."""
        self._take_off(req)
        self._prefill.unblock()

    def give_turn(self, turns: Turns) -> None:
        """A client that has waited for long takes the place of another client's request, which goes back into the queue."""
        req = turns.makes_way(self.holders)
        if req is not None:
            self._take_off(req)
            self._waiting.add(req)
        self._prefill.unblock()

    def _take_off(self, req: Req) -> None:
        assert req.hold is not None
        self._memory.close(req.hold, req.fill_ids())
        req.hold = None
        if self._prefill.partial is req:
            self._prefill.partial = None
        else:
            self.reqs.remove(req)
        req.num_retractions += 1
        self.num_retractions += 1

    def retract_one(self) -> None:
        """Retracts one request, as if memory had run out; for tests."""
        if self.reqs:
            self.retract(self._victim() or self.reqs[0])

    def _victim(self) -> Req | None:
        """The request to retract: of the client that holds most places, the one that loses least (fewest outputs, then the
        longest prompt). None if only one is left."""
        candidates = self.holders
        if len(candidates) < 2:
            return None
        held = Counter(map(party, candidates))
        most = max(held.values())
        candidates = [req for req in candidates if held[party(req)] == most]
        return min(candidates, key=lambda req: (len(req.output_ids), -req.prompt_len))

    def _make_headroom(self) -> None:
        while self._memory.num_available < len(self.reqs) * (HEADROOM_TOKENS + self._memory.run):
            victim = self._victim()
            if victim is None:
                return
            self.retract(victim)


def overtaken(batch: ScheduleBatch) -> set[Req]:
    """The requests of a step that ran ahead, now that the tokens of the one before are known, that still run, but not with the one
    token that the step was computed for."""
    return {
        req
        for req in batch.decodes
        if req.hold is not None
        and (_surplus(req) or req.rewritten_at == req.num_ids or req.ending is not None or req.finish.is_searching)
    }


def _surplus(req: Req) -> bool:
    assert req.hold is not None
    return req.fill_len - req.hold.kv_len != 1


def _is_plain(req: Req) -> bool:
    """Whether a request takes part with one row, and only its token comes of that."""
    if req.hold is None or req.media is not None or req.ending is not None:
        return False
    return req.msg.logprobs is None and not req.spec.want_logprob
